from __future__ import annotations

from pathlib import Path

import pytest

from procreward import registry
from procreward.errors import ConfigError, DatasetError
from procreward.relabel import RelabelConfig, relabel
from tests.relabel.kill import tree
from tests.relabel.lerobot.made import HAND, VIEW, make
from tests.relabel.sets import ramp, write_frames

registry.register_scorer("grey", "tests.relabel.scorers:Grey")


def config(source: Path, out: Path, **changes: object) -> RelabelConfig:
    settings: dict[str, object] = {"scorer": "grey", "window_frames": 2, "instruction": "lift"}
    return RelabelConfig(source=source, out=out, **(settings | changes))  # type: ignore[arg-type]  # settings of many types


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_s_is_left_alone(overwrite: bool, tmp_path: Path) -> None:
    write_frames(tmp_path / "frames" / "ep", ramp(5))
    for name in ("cache/blobs/a", "dataset/meta/info.json", ".lock"):
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    before = tree(tmp_path / "project")
    given = config(tmp_path / "frames", tmp_path / "project", overwrite=overwrite)
    with pytest.raises(ConfigError, match="`out` must be empty or of an earlier run"):
        relabel(given, lambda text: None)
    (tmp_path / "project" / "cache" / "blobs" / "a").unlink()
    (tmp_path / "project" / "cache" / "blobs").rmdir()
    with pytest.raises(ConfigError, match="`out` must be empty or of an earlier run"):
        relabel(given, lambda text: None)
    del before["cache/blobs/a"]
    assert tree(tmp_path / "project") == before


@pytest.mark.parametrize(
    "names",
    [[], ["cache/"], [".lock", ".staged/"], ["cache/0123456789ab/", "cache/.nfs0", "notes.txt"]],
)
def test_a_folder_of_a_run_that_was_killed_is_gone_on_with(
    names: list[str], tmp_path: Path
) -> None:
    write_frames(tmp_path / "frames" / "ep", ramp(5))
    (tmp_path / "out").mkdir()
    for name in names:
        path = tmp_path / "out" / name
        path.mkdir(parents=True) if name.endswith("/") else path.touch()
    assert relabel(config(tmp_path / "frames", tmp_path / "out"), lambda text: None).episodes == 1


def test_a_missing_video_is_said_before_anything_is_done(tmp_path: Path) -> None:
    source = make(tmp_path, "v2.1", images=False)
    hand = source / f"videos/chunk-000/{HAND}/episode_000000.mp4"
    hand.unlink()
    given = config(source, tmp_path / "out", instruction=None)
    # A camera that nobody looks at; but the new dataset would lack it.
    for on_error in ("stop", "skip"):
        with pytest.raises(
            DatasetError, match=rf"{HAND}/episode_000000\.mp4' of episode 0 is miss"
        ):
            relabel(given.replace(rewrite=True, on_error=on_error), lambda text: None)
    assert relabel(given.replace(dry_run=True, estimate=False), lambda text: None).exit_status == 0
    (source / f"videos/chunk-001/{VIEW}/episode_000002.mp4").unlink()
    with pytest.raises(DatasetError, match=r"episode_000002\.mp4' of episode 2 is missing"):
        relabel(given, lambda text: None)
    assert not (tmp_path / "out").exists()
    report = relabel(given.replace(on_error="skip"), lambda text: None)
    assert (report.episodes, list(report.skipped)) == (2, ["episode_000002"])
    given = given.replace(on_error="skip", rewrite=True, episodes="2", overwrite=True)
    with pytest.raises(DatasetError, match=r"got none of 1; 'episode_000002': The video .*missing"):
        relabel(given, lambda text: None)


def test_the_dataset_is_not_in_the_folder_that_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_frames(tmp_path / "frames" / "ep", ramp(5))
    relabel(config(tmp_path / "frames", out), lambda text: None)
    (tmp_path / "frames").rename(out / "dataset")  # where a rewritten one would be
    (tmp_path / "link").symlink_to(out)
    for source in (out / "dataset", tmp_path / "link" / "dataset"):
        with pytest.raises(ConfigError, match=r"`out` must be a folder without the dataset .*data"):
            relabel(config(source, out, overwrite=True), lambda text: None)
    with pytest.raises(ConfigError, match="`out` must be a folder outside of the dataset"):
        relabel(config(out / "dataset", tmp_path / "link" / "dataset" / "x"), lambda text: None)
    assert len(list((out / "dataset" / "ep").iterdir())) == 5
