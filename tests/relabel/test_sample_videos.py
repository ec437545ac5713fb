from __future__ import annotations

from pathlib import Path

import numpy as np

from procreward.relabel import open_source
from scripts.sample_data.episodes import draw_episodes
from scripts.sample_data.videos import write_videos


def test_sample_videos(tmp_path: Path) -> None:
    episodes = draw_episodes()
    write_videos(episodes, tmp_path / "videos")
    source = open_source(tmp_path / "videos")
    assert source.format == "video"
    assert [one.frames for one in source.episodes] == [one.length + 1 for one in episodes]
    assert [one.instruction for one in source.episodes] == [one.instruction for one in episodes]
    for one, drawn in zip(source.episodes, episodes, strict=True):
        assert one.fps == drawn.fps
        for number, pictures in enumerate(source.frames(one, source.views)):
            for view, picture in pictures.items():
                apart = np.abs(picture.astype(int) - drawn.frames[view][number]).mean()
                assert apart < 12  # a video is lossy
