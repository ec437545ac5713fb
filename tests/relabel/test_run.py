from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from procreward import ProgressReward, registry
from procreward.errors import (
    ConfigError,
    DatasetError,
    InstructionError,
    LockedError,
    ScorerFailedError,
    UnknownNameError,
)
from procreward.relabel import RelabelConfig, RelabelReport, relabel
from procreward.report.records import read_records
from tests.relabel.kill import tree
from tests.relabel.sets import ramp, write_frames, write_instructions, write_video

registry.register_scorer("grey", "tests.relabel.scorers:Grey")
registry.register_scorer("grey-down", "tests.relabel.scorers:Down")
registry.register_scorer("grey-mute", "tests.relabel.scorers:Mute")

GREY = registry.ScorerConfig(name="grey")
Make = Callable[..., RelabelConfig]


@pytest.fixture(autouse=True)
def _fresh_scorers() -> Iterator[None]:
    yield
    registry.clear_scorers()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Settings for a dataset of three short episodes."""
    source = tmp_path / "frames"
    for index, count in enumerate((10, 6, 13)):
        write_frames(source / f"ep_{index}", ramp(count, 20 + 5 * index))
    write_instructions(source, ep_1="push the cube", **{"*": "lift the cube"})

    def config(**changes: Any) -> RelabelConfig:
        settings: dict[str, Any] = {
            "source": source,
            "out": tmp_path / "out",
            "scorer": "grey",
            "every_k_frames": 4,
            "window_frames": 2,
            "group_episodes": 2,
        }
        return RelabelConfig(**(settings | changes))

    return config


def run(config: RelabelConfig) -> RelabelReport:
    return relabel(config, lambda text: None)


def rewards(out: Path) -> list[list[float]]:
    return [[one.reward for one in each.trace[1:]] for each in read_records(out / "episodes.jsonl")]


def test_files(make: Make, tmp_path: Path) -> None:
    said: list[str] = []
    report = relabel(make(), said.append)
    assert (report.episodes, report.frames, report.queries, report.asked) == (3, 29, 11, 11)
    assert report.exit_status == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "cache",
        "episodes.jsonl",
        "procreward_progress.parquet",
        "records.jsonl",
        "relabel.json",
        "source.txt",
    }
    assert report.files == tuple(
        out / name
        for name in (
            "procreward_progress.parquet",
            "episodes.jsonl",
            "records.jsonl",
            "source.txt",
            "relabel.json",
        )
    )
    assert (out / "source.txt").read_text() == f"{tmp_path / 'frames'}\n"
    assert said[-1].startswith("3 episodes, 29 frames, 11 of them asked about (11 queries now)")
    account = json.loads((out / "relabel.json").read_text())
    assert account["source"] == {
        "name": "frames",
        "format": "frames",
        "views": ["frames"],
        "episodes": 3,
    }
    assert account["scorer"] == {"name": "grey"}
    assert account["settings"]["reward"]["gamma"] == 0.99
    assert account["settings"]["every_k_frames"] == 4
    assert account["causal"] is True
    for path in out.rglob("*.json*"):
        assert str(tmp_path) not in path.read_text()


def test_sidecar(make: Make, tmp_path: Path) -> None:
    run(make())
    table = pq.read_table(tmp_path / "out" / "procreward_progress.parquet")
    assert {field.name: str(field.type) for field in table.schema} == {
        "index": "int64",
        "episode_index": "int64",
        "frame_index": "int64",
        "progress_sparse": "float",
        "reward": "float",
        "potential": "float",
        "success_prob": "float",
        "complete": "bool",
        "queried": "bool",
        "valid": "bool",
    }
    assert table["index"].to_pylist() == list(range(29))
    assert table["episode_index"].to_pylist() == [0] * 10 + [1] * 6 + [2] * 13
    assert table["frame_index"].to_pylist() == [*range(10), *range(6), *range(13)]
    queried = [row["frame_index"] for row in table.to_pylist() if row["queried"]]
    assert queried == [0, 4, 8, 9, 0, 4, 5, 0, 4, 8, 12]
    metadata = table.schema.metadata
    assert metadata[b"reward_model_path"] == b"grey"
    assert json.loads(metadata[b"procreward"])["settings"]["scorer"] == {"name": "grey"}
    # Held: the reading at picture 4 stands for 4 to 7.
    progress = table["progress_sparse"].to_numpy()
    assert progress[4] == np.float32((20 + 9 * 3.5) / 255)
    assert len(set(progress[4:8].tolist())) == 1
    # No action follows the last picture of an episode.
    assert np.flatnonzero(np.isnan(table["reward"].to_numpy())).tolist() == [9, 15, 28]


def test_records_have_procvlm_s_keys(make: Make, tmp_path: Path) -> None:
    run(make())
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    assert list(record) == [
        "episode_index",
        "video_path",
        "task",
        "sample_index",
        "frame_index",
        "timestamp_sec",
        "window_frame_indices",
        "progress",
        "parsed_progress",
        "progress_source",
        "reasoning",
        "model_output",
    ]
    assert (record["video_path"], record["task"]) == ("ep_0", "lift the cube")
    assert (record["frame_index"], record["window_frame_indices"]) == (4, [3, 4])
    assert record["progress"] == 100.0 * (20 + 9 * 3.5) / 255
    assert json.loads(lines[4])["task"] == "push the cube"


def test_a_rollout_relabelled_has_its_online_rewards(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "scorer": "grey",
        "frame_size": (64, 64),
        "window_frames": 3,
        "frame_stride_steps": 2,
        "shaping": "pbrs",
        "gamma": 0.97,
        "scale": 3.0,
        "smooth_alpha": 0.6,
        "offset": True,
        "success_bonus": 1.5,
        "complete_threshold": 0.501,
        "confirm_queries": 1,
        "confirm_window": 1,
    }
    online, paid = [], 0.0
    env = gym.make("procreward.envs:procreward/Toy-v0", max_episode_steps=23)
    wrapped = ProgressReward(env, every_k_steps=5, **settings)
    for episode in range(3):
        folder = tmp_path / "rollouts" / f"ep_{episode}"
        folder.mkdir(parents=True)
        wrapped.reset(seed=episode)
        found, ended, step = [], False, 0
        while not ended:
            Image.fromarray(env.render()).save(folder / f"{step}.png")
            _, reward, terminated, truncated, info = wrapped.step(env.unwrapped.expert_action())
            found.append(reward)
            paid += info["procreward"]["complete"]
            ended, step = terminated or truncated, step + 1
        Image.fromarray(env.render()).save(folder / f"{step}.png")
        online.append(found)
    wrapped.close()
    settings["frame_stride_frames"] = settings.pop("frame_stride_steps")
    config = RelabelConfig(
        source=tmp_path / "rollouts",
        out=tmp_path / "out",
        instruction="Move the red point onto the green disc.",
        every_k_frames=5,
        **settings,
    )
    run(config)
    assert rewards(tmp_path / "out") == online
    assert paid > 0  # the bonus was tried, too
    assert len({value for one in online for value in one}) > 20


def test_run_again_asks_nothing_and_changes_nothing(make: Make, tmp_path: Path) -> None:
    run(make())
    before = tree(tmp_path / "out")
    assert run(make()).asked == 0
    assert tree(tmp_path / "out") == before
    run(make(out=tmp_path / "other"))
    assert tree(tmp_path / "other") == before


def test_other_rewards_need_no_model(make: Make, tmp_path: Path) -> None:
    run(make())
    before = rewards(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"differ: reward\. Give `overwrite`"):
        run(make(scale=2.0))
    assert run(make(scale=2.0, overwrite=True)).asked == 0
    doubled = [[2.0 * value for value in one] for one in before]
    assert rewards(tmp_path / "out") == [pytest.approx(one, abs=1e-15) for one in doubled]
    # Twice the distance between queries: all are there. Half of it: some are not.
    report = run(make(every_k_frames=8, overwrite=True))
    assert (report.asked, report.queries) == (0, 8)
    report = run(make(every_k_frames=2, overwrite=True))
    assert (report.asked, report.queries) == (6, 17)
    run(make(every_k_frames=2, out=tmp_path / "fresh"))
    assert rewards(tmp_path / "out") == rewards(tmp_path / "fresh")


def test_a_part_first_and_then_the_rest(make: Make, tmp_path: Path) -> None:
    assert run(make(limit=1)).asked == 4
    assert run(make(episodes="0,2", overwrite=True)).asked == 4
    assert run(make(overwrite=True)).asked == 3
    run(make(out=tmp_path / "whole"))
    for name in ("procreward_progress.parquet", "records.jsonl", "episodes.jsonl"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == whole
    table = pq.read_table(tmp_path / "out" / "procreward_progress.parquet")
    assert len(table) == 29


def test_index_counts_through_the_dataset(make: Make, tmp_path: Path) -> None:
    run(make(episodes="1-2"))
    table = pq.read_table(tmp_path / "out" / "procreward_progress.parquet")
    assert table["index"].to_pylist() == list(range(10, 29))


def test_interpolated_progress_leaves_rewards_alone(make: Make, tmp_path: Path) -> None:
    run(make(out=tmp_path / "held"))
    run(make(out=tmp_path / "lines", fill="interpolate"))
    assert rewards(tmp_path / "lines") == rewards(tmp_path / "held")
    table = pq.read_table(tmp_path / "lines" / "procreward_progress.parquet")
    progress = table["progress_sparse"].to_numpy()
    assert np.all(np.diff(progress[:10]) > 0)
    assert progress[6] == pytest.approx((progress[4] + progress[8]) / 2)
    assert json.loads((tmp_path / "lines" / "relabel.json").read_text())["causal"] is False


def test_dry_run_writes_nothing(make: Make, tmp_path: Path) -> None:
    said: list[str] = []
    relabel(make(dry_run=True), said.append)
    assert not (tmp_path / "out").exists()
    assert "3 of 3 episodes, 29 frames" in said[0]
    assert "queries to ask: about 11, time: about 0 s (from 5 queries;" in said[0]
    relabel(make(dry_run=True, estimate=False), said.append)
    assert "queries to ask: about 11, time: not estimated" in said[1]
    run(make())
    relabel(make(dry_run=True, every_k_frames=2, overwrite=True), said.append)
    assert "queries to ask: about 6, time: about 0 s (from 7 queries;" in said[2]
    relabel(make(dry_run=True), said.append)
    assert "queries to ask: about 0, time: none" in said[3]


def test_a_dry_run_says_what_the_model_would_not_do(make: Make, tmp_path: Path) -> None:
    said: list[str] = []
    relabel(make(dry_run=True, scorer="grey-down"), said.append)
    assert "time: unknown, since no query was answered" in said[0]
    (tmp_path / "frames" / "ep_0" / "001.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="ep_0"):
        relabel(make(dry_run=True), said.append)
    relabel(make(dry_run=True, on_error="skip"), said.append)
    assert "time: about 0 s" in said[1]


def test_broken_episodes(tmp_path: Path, make: Make) -> None:
    source = tmp_path / "videos"
    for index in range(3):
        write_video(source / f"ep_{index}.mp4", ramp(12), damage=index == 1)
    (source / "ep_3.mp4").write_bytes(b"nothing")
    config = make(source=source, instruction="lift")
    with pytest.raises(DatasetError, match=r"'ep_3'.*ep_3\.mp4' is damaged or no video"):
        run(config)
    assert not (tmp_path / "out").exists()  # said before anything is done
    with pytest.raises(DatasetError, match="'ep_1' cannot be decoded"):
        run(config.replace(episodes="0-2"))
    report = run(config.replace(on_error="skip"))
    assert report.exit_status == 1
    assert list(report.skipped) == ["ep_1", "ep_3"]
    table = pq.read_table(tmp_path / "out" / "procreward_progress.parquet")
    assert set(table["episode_index"].to_pylist()) == {0, 2}
    assert table["index"].to_pylist() == [*range(12), *range(24, 36)]
    account = json.loads((tmp_path / "out" / "relabel.json").read_text())
    assert account["skipped"]["ep_1"] == ("Episode 'ep_1' cannot be decoded; its video is damaged.")
    # They are tried again, and nothing else is asked again.
    write_video(source / "ep_1.mp4", ramp(12))
    (source / "ep_3.mp4").unlink()
    report = run(config.replace(overwrite=True))
    assert (report.asked, report.exit_status) == (4, 0)


def test_unanswered_queries_are_held_and_counted(make: Make, tmp_path: Path) -> None:
    report = run(make(scorer="grey-mute", max_consecutive_failures=100))
    # Until something is known, every picture is asked about.
    assert (report.queries, report.unanswered) == (29, {"unparsable": 29})
    assert report.silent == ("ep_0", "ep_1", "ep_2")
    assert report.exit_status == 1
    table = pq.read_table(tmp_path / "out" / "procreward_progress.parquet")
    assert np.isnan(table["progress_sparse"].to_numpy()).all()
    assert not any(table["valid"].to_pylist())
    assert rewards(tmp_path / "out") == [[0.0] * 9, [0.0] * 5, [0.0] * 12]


def test_a_model_that_is_down_publishes_nothing(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ScorerFailedError):
        run(make(scorer="grey-down"))
    assert tree(tmp_path / "out") == {}


def test_bad_input_is_refused_before_anything_is_written(make: Make, tmp_path: Path) -> None:
    source = tmp_path / "frames"
    for error, match, changes in (
        (UnknownNameError, "Did you mean 'grey'", {"scorer": "gray"}),
        (UnknownNameError, "Unknown view 'wrist'", {"views": ("wrist",)}),
        (UnknownNameError, "Unknown format 'lerobot'", {"format": "lerobot"}),
        (DatasetError, "no such file", {"source": tmp_path / "nowhere"}),
        (DatasetError, "has no place for rewards", {"rewrite": True}),
        (ConfigError, "`episodes` must be of the dataset's 3", {"episodes": "0-3"}),
        (ConfigError, "`out` must be a folder outside", {"out": source / "rewards"}),
        (InstructionError, "Episode 'ep_0' has no instruction", {"instruction": " "}),
    ):
        with pytest.raises(error, match=match):
            run(make(**changes))
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="`out` must be empty or of an earlier run"):
        run(make())


def test_one_run_at_a_time(make: Make, tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from procreward.relabel.publishing import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])):\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", program, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(LockedError, match=f"process {other.pid} on .*Wait for it"):
            run(make())
        os.kill(other.pid, signal.SIGKILL)
    assert (out / ".lock").exists()
    assert run(make()).exit_status == 0  # the lock ended with its process
    assert not (out / ".lock").exists()
