"""Every format goes through the same run: labels, a new dataset, the same bytes again."""

from __future__ import annotations

import importlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from procreward.relabel import RelabelConfig, open_source, relabel
from scripts.sample_data.__main__ import TARGETS
from scripts.sample_data.episodes import draw_episodes
from tests.relabel.kill import tree


@pytest.mark.parametrize("name", list(TARGETS))
def test_relabelled_twice(name: str, tmp_path: Path) -> None:
    module, _, function = TARGETS[name].partition(":")
    episodes = draw_episodes()
    getattr(importlib.import_module(module), function)(episodes, tmp_path / name)
    source = open_source(tmp_path / name)
    config = RelabelConfig(
        source=tmp_path / name,
        out=tmp_path / "out",
        scorer="scripted",
        every_k_frames=3,
        group_episodes=2,
        rewrite=name != "videos",
    )
    report = relabel(config, lambda text: None)
    assert (report.episodes, report.exit_status) == (len(episodes), 0)
    table = pq.read_table(tmp_path / "out" / "procreward_progress.parquet")
    assert len(table) == sum(one.frames for one in source.episodes)
    assert (tmp_path / "out" / "dataset").is_dir() == config.rewrite
    before = tree(tmp_path / "out")
    assert relabel(config, lambda text: None).asked == 0
    assert tree(tmp_path / "out") == before
    relabel(config.replace(out=tmp_path / "other"), lambda text: None)
    assert tree(tmp_path / "other") == before
