from __future__ import annotations

from pathlib import Path

import pytest

from procreward import registry
from procreward.errors import ConfigError
from procreward.relabel import RelabelConfig, relabel
from tests.relabel.kill import tree
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


@pytest.mark.parametrize("names", [[], ["cache/"], [".lock", ".staged/"], ["cache/0123456789ab/"]])
def test_a_folder_of_a_run_that_was_killed_is_gone_on_with(
    names: list[str], tmp_path: Path
) -> None:
    write_frames(tmp_path / "frames" / "ep", ramp(5))
    (tmp_path / "out").mkdir()
    for name in names:
        path = tmp_path / "out" / name
        path.mkdir(parents=True) if name.endswith("/") else path.touch()
    assert relabel(config(tmp_path / "frames", tmp_path / "out"), lambda text: None).episodes == 1


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
