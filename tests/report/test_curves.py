from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from procreward.errors import ConfigError
from procreward.report.curves import write_progress_figure
from tests.report.helpers import episode, step_trace


def width_and_colours(path: Path) -> tuple[int, int]:
    picture = np.asarray(Image.open(path).convert("RGB"))
    return picture.shape[1], len(np.unique(picture.reshape(-1, 3), axis=0))


def test_one_panel_a_policy(tmp_path: Path) -> None:
    write_progress_figure([episode(), episode("expert", 1)], tmp_path / "one.png")
    kinds = [episode(), episode("fail"), episode("random")]
    write_progress_figure(kinds, tmp_path / "three.png")
    one, _ = width_and_colours(tmp_path / "one.png")
    three, colours = width_and_colours(tmp_path / "three.png")
    assert (one, three) == (845, 1716)
    assert colours > 50


def test_an_episode_without_truth_or_readings_is_drawn(tmp_path: Path) -> None:
    blank = [step_trace(n, progress=None, true_progress=None, valid=False) for n in range(3)]
    write_progress_figure([episode(trace=tuple(blank))], tmp_path / "progress.png", title="none")
    assert (tmp_path / "progress.png").stat().st_size > 1000


def test_no_episode_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one episode"):
        write_progress_figure([], tmp_path / "progress.png")
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_is_imported_only_when_drawing() -> None:
    code = (
        "import sys, procreward.report.curves, procreward.report.overlay, procreward.rollout; "
        "sys.exit('matplotlib' in sys.modules or 'imageio_ffmpeg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
