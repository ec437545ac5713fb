from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import numpy as np
import pytest

from procreward.envs import robosuite_backend
from procreward.errors import (
    ConfigError,
    DatasetError,
    FrameError,
    MissingDependencyError,
    UnknownNameError,
)
from procreward.relabel._robomimic_render import StatePlayer, cameras_in, local_assets
from procreward.relabel.formats import open_source, open_writer
from procreward.relabel.robomimic import RobomimicSource, RobomimicWriter
from scripts.sample_data.episodes import SampleEpisode, draw_episodes, record_episodes
from scripts.sample_data.robomimic import write_robomimic
from tests.relabel.drawn import labels_of, seen_rewards

LENGTHS = (4, 7, 2)


@pytest.fixture(scope="module")
def episodes() -> list[SampleEpisode]:
    return draw_episodes(LENGTHS)


@pytest.fixture
def path(episodes: list[SampleEpisode], tmp_path: Path) -> Path:
    write_robomimic(episodes, tmp_path / "lift.hdf5")
    return tmp_path / "lift.hdf5"


def rewrite(path: Path, staged: Path, labels: Any = None, **options: Any) -> Path:
    source, writer = RobomimicSource(path), RobomimicWriter(options)
    staged.mkdir()
    given = [labels_of(one) for one in source.episodes] if labels is None else labels
    writer.write(source, given, staged, {"scorer": "nano", "k": 8})
    writer.validate(source, staged)
    return staged / path.name


def test_episodes(path: Path) -> None:
    source = open_source(path)
    assert isinstance(source, RobomimicSource)
    assert (source.format, source.root, source.background) == ("robomimic", path, True)
    assert source.views == ("agentview", "robot0_eye_in_hand")
    found = [
        (one.index, one.name, one.length, one.frames, one.instruction, one.terminated, one.fps)
        for one in source.episodes
    ]
    assert found == [
        (0, "demo_0", 4, 5, "pick up the cube", True, 20.0),
        (1, "demo_1", 7, 8, "stack the cubes", False, 20.0),
        (2, "demo_2", 2, 3, "pick up the cube", True, 20.0),
    ]
    assert source.masks == {"train": ("demo_0", "demo_1"), "valid": ("demo_2",)}


@pytest.mark.parametrize("next_obs", [True, False])
def test_pictures(episodes: list[SampleEpisode], tmp_path: Path, next_obs: bool) -> None:
    write_robomimic(episodes, tmp_path / "lift.hdf5", next_obs=next_obs)
    source = RobomimicSource(tmp_path / "lift.hdf5")
    runs = [source.frames(one, source.views) for one in source.episodes]  # all open at once
    for episode, drawn, run in zip(source.episodes, episodes, runs, strict=True):
        assert episode.frames == drawn.length + next_obs
        frames = list(run)
        for view in source.views:
            assert np.array_equal([one[view] for one in frames], drawn.frames[view][: len(frames)])
    first = next(source.frames(source.episodes[0], ["robot0_eye_in_hand"]))
    assert list(first) == ["robot0_eye_in_hand"]
    assert first["robot0_eye_in_hand"].shape == (64, 64, 3)
    with pytest.raises(UnknownNameError, match="Did you mean 'agentview'"):
        next(source.frames(source.episodes[0], ["agentveiw"]))


def test_a_reward_is_of_the_step_that_leads_to_the_next_picture(tmp_path: Path) -> None:
    # The square goes a quarter of its way with each of 4 steps; the second one turns back.
    write_robomimic(draw_episodes((4, 4)), tmp_path / "with.hdf5")
    write_robomimic(draw_episodes((4, 4)), tmp_path / "without.hdf5", next_obs=False)
    there_and_back = [0.25, 0.25, -0.25, -0.25]
    found = seen_rewards(RobomimicSource(tmp_path / "with.hdf5"), "agentview")
    assert found == [[0.25] * 4, there_and_back]
    # Without a picture after the last action, that one counts as having changed nothing.
    found = seen_rewards(RobomimicSource(tmp_path / "without.hdf5"), "agentview")
    assert found == [[0.25, 0.25, 0.25, 0.0], [*there_and_back[:3], 0.0]]


def test_demos_are_sorted_by_number(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data"].move("demo_0", "demo_10")
        del file["mask"]
    source = RobomimicSource(path)
    assert [(one.index, one.name) for one in source.episodes] == [
        (1, "demo_1"),
        (2, "demo_2"),
        (10, "demo_10"),
    ]
    assert source.masks == {}


def set_ends(path: Path, rewards: tuple[float, ...] | None, dones: tuple[int, ...] | None) -> None:
    with h5py.File(path, "r+") as file:
        for number, demo in enumerate(file["data"].values()):
            for key, values in (("rewards", rewards), ("dones", dones)):
                if values is None:
                    del demo[key]
                else:
                    demo[key][-1] = values[number]


@pytest.mark.parametrize(
    ("rewards", "dones", "terminated"),
    [
        ((1.0, 0.0, 1.0), (1, 1, 1), [True, False, True]),
        ((0.4, 0.9, 1.0), (1, 1, 1), [False, False, True]),  # shaped; all ends are marked
        ((0.0, 0.0, 0.0), (1, 0, 1), [True, False, True]),  # only successes are marked
        ((0.0, 0.0, 0.0), (1, 1, 1), [False, False, False]),
        (None, (1, 1, 1), [True, True, True]),
        ((0.0, 1.0, 0.0), None, [False, True, False]),
        (None, None, [False, False, False]),
    ],
)
def test_terminated(path: Path, rewards: Any, dones: Any, terminated: list[bool]) -> None:
    set_ends(path, rewards, dones)
    assert [one.terminated for one in RobomimicSource(path).episodes] == terminated


@pytest.mark.parametrize(
    ("env_args", "ep_meta", "instruction"),
    [
        ({"env_name": "Lift"}, {"lang": " open it "}, "open it"),
        ({"lang": "close it"}, {"lang": ""}, "close it"),
        ({"env_kwargs": {"instruction": "close it"}}, None, "close it"),
        ({"env_name": "Lift"}, None, ""),
        ({"env_kwargs": None}, None, ""),
        (None, {"lang": 3}, ""),
    ],
)
def test_instruction(path: Path, env_args: Any, ep_meta: Any, instruction: str) -> None:
    with h5py.File(path, "r+") as file:
        for attributes, name, value in (
            (file["data"].attrs, "env_args", env_args),
            (file["data/demo_0"].attrs, "ep_meta", ep_meta),
        ):
            del attributes[name]
            if value is not None:
                attributes[name] = json.dumps(value)
    assert RobomimicSource(path).episodes[0].instruction == instruction


def test_demos_as_robosuite_records_them(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        data = file["data"]
        for demo in data.values():
            del demo.attrs["num_samples"], demo["rewards"], demo["dones"]
            demo["obs/more/inside"] = np.zeros(3)
        del data.attrs["env_args"], data.attrs["total"], file["mask"]
        data.attrs["env_info"] = json.dumps({"control_freq": 25})
    source = RobomimicSource(path)
    assert [(one.length, one.fps) for one in source.episodes] == [(4, 25.0), (7, 25.0), (2, 25.0)]
    with h5py.File(rewrite(path, path.parent / "staged"), "r") as file:
        assert file["data/demo_0/rewards"].shape == (4,)
        assert "rewards_env" not in file["data/demo_0"]


def test_fingerprint_follows_the_file(path: Path) -> None:
    source = RobomimicSource(path)
    prints = [source.fingerprint(one) for one in source.episodes]
    assert len(set(prints)) == 3
    assert RobomimicSource(path).fingerprint(source.episodes[0]) == prints[0]
    with h5py.File(path, "r+") as file:
        file["data/demo_0/obs/agentview_image"][0] = 0
    changed = RobomimicSource(path)
    assert changed.fingerprint(changed.episodes[0]) != prints[0]


def test_rewritten(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    target = rewrite(path, tmp_path / "staged")
    assert path.read_bytes() == before
    # As robomimic opens it.
    with (
        h5py.File(target, "r", swmr=True, libver="latest") as file,
        h5py.File(path, "r") as old,
    ):
        demo = file["data/demo_1"]
        assert demo["rewards"].dtype == np.float64
        assert demo["rewards"][()].tolist() == [1.0 + 0.1 * step for step in range(1, 8)]
        assert demo["rewards_env"][()].tolist() == [0.0] * 7
        assert demo["progress"].dtype == np.float32
        assert np.isnan(demo["progress"][0])
        assert demo["progress"][1:].tolist() == [step / 16 for step in range(1, 7)]
        assert np.isnan(demo["success_prob"][()]).all()
        assert demo["complete"][()].tolist() == [False] * 3 + [True] * 4
        assert json.loads(file["data"].attrs["procreward"]) == {"scorer": "nano", "k": 8}
        added = {"rewards_env", "progress", "success_prob", "complete"}
        for name in ("demo_0", "demo_1", "demo_2"):
            new, kept = file["data"][name], old["data"][name]
            assert set(new) - set(kept) == added
            assert dict(new.attrs) == dict(kept.attrs)
            for key in ("actions", "dones", "states", "obs/agentview_image", "next_obs/proprio"):
                assert np.array_equal(new[key][()], kept[key][()])
        assert file["data"].attrs["total"] == 13
        assert file["data"].attrs["env_args"] == old["data"].attrs["env_args"]
        assert file["mask/train"][()].tolist() == [b"demo_0", b"demo_1"]
    again = RobomimicSource(target)
    assert [one.terminated for one in again.episodes] == [True, False, True]


def test_rewritten_with_dones(path: Path, tmp_path: Path) -> None:
    target = rewrite(path, tmp_path / "staged", dones="complete")
    with h5py.File(target, "r") as file:
        # Complete from picture 3 on, which is the one after the third action.
        assert file["data/demo_1/dones"][()].tolist() == [0, 0, 1, 1, 1, 1, 1]
        assert file["data/demo_1/dones_env"][()].tolist() == [0, 0, 0, 0, 0, 0, 1]
        # Terminated, although no picture is complete.
        assert file["data/demo_2/dones"][()].tolist() == [0, 1]
        assert file["data/demo_2/dones"].dtype == np.int64


def test_rewritten_twice_keeps_what_the_environment_gave(path: Path, tmp_path: Path) -> None:
    once = rewrite(path, tmp_path / "once", dones="complete")
    source = RobomimicSource(once)
    labels = [labels_of(one, reward=np.full(one.length, 9.0)) for one in source.episodes]
    with h5py.File(rewrite(once, tmp_path / "twice", labels), "r") as file:
        assert file["data/demo_0/rewards"][()].tolist() == [9.0] * 4
        assert file["data/demo_0/rewards_env"][()].tolist() == [0.0, 0.0, 0.0, 1.0]
        assert file["data/demo_1/dones_env"][()].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_numbers_that_are_nan_stay(path: Path, tmp_path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_0/rewards"][1] = np.nan
        file["data/demo_0/states"][0] = np.nan
    with h5py.File(rewrite(path, tmp_path / "staged"), "r") as file:
        assert np.isnan(file["data/demo_0/rewards_env"][()]).tolist() == [False, True, False, False]


def test_demos_without_labels_are_left_out(path: Path, tmp_path: Path) -> None:
    source = RobomimicSource(path)
    labels = [labels_of(source.episodes[number]) for number in (0, 2)]
    left = RobomimicSource(rewrite(path, tmp_path / "staged", labels))
    assert [one.name for one in left.episodes] == ["demo_0", "demo_2"]
    assert left.masks == {"train": ("demo_0",), "valid": ("demo_2",)}
    with h5py.File(left.root, "r") as file:
        assert file["data"].attrs["total"] == 6
    with pytest.raises(DatasetError, match="No demo"):
        rewrite(path, tmp_path / "none", [])


def test_same_bytes(path: Path, tmp_path: Path) -> None:
    # HDF5 keeps times in whole seconds, where it keeps them.
    first = rewrite(path, tmp_path / "first").read_bytes()
    time.sleep(1.1)
    assert rewrite(path, tmp_path / "second").read_bytes() == first


def test_same_bytes_where_demos_are_left_out(path: Path, tmp_path: Path) -> None:
    labels = [labels_of(RobomimicSource(path).episodes[1])]
    first = rewrite(path, tmp_path / "first", labels, dones="complete").read_bytes()
    time.sleep(1.1)
    second = rewrite(path, tmp_path / "second", labels, dones="complete").read_bytes()
    assert second == first


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data["demo_0/rewards"].write_direct(np.full(4, np.nan)), "finite"),
        (lambda data: data["demo_0"].pop("progress"), "`progress` must be"),
        (lambda data: data["demo_0/actions"].write_direct(np.ones((4, 7))), "`actions` must be"),
        (lambda data: data["demo_0/rewards_env"].write_direct(np.ones(4)), "rewards before"),
        (lambda data: data["demo_0/dones"].write_direct(np.full(4, 7)), "`dones` must be"),
        (lambda data: data["demo_0/obs"].move("proprio", "p"), "`obs/proprio` must be"),
        (lambda data: data["demo_0"].attrs.modify("num_samples", 5), "`num_samples` must be 4"),
        (lambda data: data.attrs.modify("total", 5), "`total` must be 13"),
        (lambda data: data.copy("demo_0", "demo_7"), "the source's demos"),
        (lambda data: data.file["mask"].pop("train"), "`mask/train` must be kept"),
    ],
)
def test_validation_finds(
    path: Path, tmp_path: Path, spoil: Callable[[Any], Any], said: str
) -> None:
    target = rewrite(path, tmp_path / "staged")
    with h5py.File(target, "r+") as file:
        spoil(file["data"])
    with pytest.raises(DatasetError, match=said):
        RobomimicWriter({}).validate(RobomimicSource(path), target.parent)


def test_labels_of_other_demos_are_refused(path: Path, tmp_path: Path) -> None:
    longer = labels_of(RobomimicSource(path).episodes[0], reward=np.zeros(5))
    with pytest.raises(DatasetError, match="'demo_0' must be of a demo of 4 actions"):
        rewrite(path, tmp_path / "staged", [longer])


def test_options() -> None:
    assert isinstance(open_writer("robomimic", {"dones": "keep"}), RobomimicWriter)
    with pytest.raises(ConfigError, match="`dones` must be one of 'keep', 'complete'"):
        RobomimicWriter({"dones": "success"})
    with pytest.raises(UnknownNameError, match="Unknown option 'done'"):
        RobomimicWriter({"done": "keep"})


def cut(key: str, rows: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = file[key][:rows]
        del file[key]
        file[key] = values

    return change


def rename(old: str, new: str) -> Callable[[h5py.File], None]:
    return lambda file: file.move(old, new)


def no_pictures(file: h5py.File) -> None:
    for demo in file["data"].values():
        del demo["obs"]["agentview_image"], demo["obs"]["robot0_eye_in_hand_image"]


def not_json(file: h5py.File) -> None:
    file["data"].attrs["env_args"] = "{"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (rename("data", "episodes"), "group `data` of demos"),
        (rename("data/demo_1", "data/episode_1"), "got 'episode_1'"),
        (rename("data/demo_1/actions", "data/demo_1/moves"), "demo_1 must have `actions`"),
        (cut("data/demo_1/rewards", 6), "demo_1, rewards must have 7 rows"),
        (cut("data/demo_1/obs/agentview_image", 5), "agentview_image must have 7 rows"),
        (cut("data/demo_1/next_obs/proprio", 1), "next_obs/proprio must have 7 rows"),
        (
            rename("data/demo_1/obs/agentview_image", "data/demo_1/obs/front"),
            "must have the pictures `obs/",
        ),
        (rename("data/demo_2", "data/demo_3"), "`mask/valid` names 'demo_2'"),
        (no_pictures, "to draw them it must have `model_file`"),
        (not_json, "`env_args` is no JSON"),
    ],
)
def test_inconsistent_files(path: Path, spoil: Callable[[h5py.File], None], said: str) -> None:
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(DatasetError, match=said):
        RobomimicSource(path)


@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_truncated_file(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DatasetError, match=r"lift.hdf5' must be a whole HDF5 file"):
        RobomimicSource(path)


def test_damaged_pictures(path: Path) -> None:
    source = RobomimicSource(path)
    with h5py.File(path, "r") as file:
        chunk = file["data/demo_1/obs/agentview_image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="demo_1, obs/agentview_image is damaged at picture 0"):
        list(source.frames(source.episodes[1], ["agentview"]))
    assert len(list(source.frames(source.episodes[0], ["agentview"]))) == 5


MODEL = """<mujoco><asset><mesh name="a" file="/home/someone/robosuite/models/assets/a.stl"/>
<mesh name="b" file="meshes/b.stl"/></asset><worldbody><camera name="frontview" pos="0 0 1"/>
<camera mode="fixed" name="agentview"/></worldbody></mujoco>"""


def test_recorded_model() -> None:
    assert cameras_in(MODEL) == ("agentview", "frontview")
    here = local_assets(MODEL)
    assert "/home/someone" not in here
    assert '/robosuite/models/assets/a.stl"' in here
    assert '"meshes/b.stl"' in here
    with pytest.raises(MissingDependencyError, match="'mimicgen', which is not installed"):
        local_assets(MODEL.replace("robosuite", "mimicgen"))
    with pytest.raises(DatasetError, match="must be a MuJoCo model in XML"):
        local_assets("<mujoco>")


def test_drawing_needs_robosuite(
    episodes: list[SampleEpisode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "states.hdf5"
    write_robomimic(episodes, path, pictures=False)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo.attrs["model_file"] = MODEL
    source = RobomimicSource(path)
    assert (source.background, source.views) == (False, ("agentview", "frontview"))
    assert [one.frames for one in source.episodes] == list(LENGTHS)

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(robosuite_backend.importlib.metadata, "version", version)
    with pytest.raises(MissingDependencyError, match="needs the package 'robosuite'"):
        next(source.frames(source.episodes[0], ["agentview"]))


# robosuite writes the model to a file that it does not close.
@pytest.mark.filterwarnings("ignore:.*model.xml:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.sim
def test_drawn_from_states(tmp_path: Path) -> None:
    """Pictures of states, beside those the simulator showed when it was in them."""
    views, size = ("agentview", "robot0_eye_in_hand"), 64
    (played,) = record_episodes(played=(("Lift", "expert"),), views=views, size=size, max_steps=6)
    described = json.loads(played.env_args)
    described["env_kwargs"] |= {"camera_heights": size, "camera_widths": [size], "camera_names": []}
    path = tmp_path / "states.hdf5"
    write_robomimic([played], path, pictures=False)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(described)
        model = file["data/demo_0"].attrs["model_file"]
    source = RobomimicSource(path)
    assert set(views) < set(source.views)
    frames = list(source.frames(source.episodes[0], views))
    assert len(frames) == 6
    for view in views:
        drawn = np.stack([one[view] for one in frames]).astype(int)
        shown = played.frames[view][:-1].astype(int)
        assert drawn.shape == (6, size, size, 3)
        # The recorded model has its numbers rounded.
        assert np.abs(drawn[0] - shown[0]).mean() < 0.5
        # The simulator showed what it had derived one substep (2 ms) before.
        apart = np.abs(drawn - shown).mean()
        assert apart < 0.3 * np.abs(drawn[1:] - shown[:-1]).mean()
    player = StatePlayer(model)
    state = played.sim_states[0]
    player.draw(state, views, (size, size))
    with pytest.raises(DatasetError, match="no camera 'left'"):
        player.draw(state, ["left"], (size, size))
    with pytest.raises(DatasetError, match="finite numbers"):
        player.draw(state[1:], views, (size, size))
    problems: list[Exception] = []

    def elsewhere() -> None:
        try:
            player.draw(state, views, (size, size))
        except FrameError as error:
            problems.append(error)

    thread = Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [type(one) for one in problems] == [FrameError]
    player.close()
