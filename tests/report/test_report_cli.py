from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from procreward.cli import main
from procreward.report.page import SCRIPTS
from tests.report.runs import relabelled


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = relabelled(tmp_path, videos=False)
    assert status("report", str(run), "--plot") == 0
    captured = capsys.readouterr()
    assert "3 episodes, 3 with a video" in captured.out
    assert f"written:\n  {run / 'report.html'}\n  {run / 'report.png'}\n" in captured.out
    assert "filming: 100%" in captured.err
    (tmp_path / "source set" / "falls" / "001.png").unlink()
    assert status("report", str(run)) == 2
    error = capsys.readouterr().err
    assert "error: `source` must be the dataset that was relabelled" in error
    (tmp_path / "source set" / "falls" / "001.png").write_bytes(b"no picture")
    assert status("report", str(run)) == 1
    assert "error: no video of falls: Episode 'falls' cannot be read" in capsys.readouterr().err
    assert status("report", str(tmp_path)) == 2
    assert "must be a finished run" in capsys.readouterr().err


def test_a_run_that_has_moved_with_its_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = relabelled(tmp_path / "here", videos=False)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = tmp_path / "there" / run.name
    assert status("report", str(moved)) == 2
    assert "Give its path with --source" in capsys.readouterr().err
    source = str(tmp_path / "there" / "source set")
    assert status("report", str(moved), "--source", source) == 0


def test_the_templates_are_in_the_wheel(tmp_path: Path) -> None:
    checkout = Path(__file__).parents[2]
    copy = tmp_path / "copy"
    kept = ("procreward/report", "envs", "configs")
    for name in kept:
        shutil.copytree(checkout / name, copy / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "procreward/__init__.py"):
        shutil.copy(checkout / name, copy / name)
    text = (copy / "pyproject.toml").read_text()
    start, end = text.index("packages = ["), text.index("[tool.setuptools.package-dir]")
    packages = 'packages = ["procreward", "procreward.report"]\n\n'
    (copy / "pyproject.toml").write_text(text[:start] + packages + text[end:])
    build = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"page.html", "page.css", *(f"{name}.js" for name in SCRIPTS)}
    assert {f"procreward/report/templates/{name}" for name in wanted} <= names
