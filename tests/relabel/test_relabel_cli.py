from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from procreward import registry
from procreward.cli import main
from tests.relabel.kill import tree
from tests.relabel.sets import ramp, write_frames

registry.register_scorer("grey", "tests.relabel.scorers:Grey")


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "frames", str(tmp_path / "out")
    for name in ("a", "b"):
        write_frames(source / name, ramp(5))
    command = ["relabel", str(source), "--out", out, "--scorer", "grey", "--every-k-frames", "2"]
    assert status(*command) == 2
    assert "error: Episode 'a' has no instruction" in capsys.readouterr().err
    command += ["--instruction", "lift"]
    assert status(*command, "--dry-run") == 0
    assert "2 of 2 episodes, 10 frames" in capsys.readouterr().out
    assert not Path(out).exists()
    assert status(*command, "--episodes", "1") == 0
    assert "1 episodes, 5 frames, 3 of them asked about" in capsys.readouterr().out
    (source / "a" / "003.png").write_bytes(b"no picture")
    assert status(*command, "--overwrite") == 2
    assert "error: Episode 'a' cannot be read" in capsys.readouterr().err
    assert status(*command, "--overwrite", "--on-error", "skip") == 1
    captured = capsys.readouterr()
    assert "skipped: a: Episode 'a' cannot be read: 'frames/a/003.png'" in captured.err
    assert "1 episodes, 5 frames" in captured.out


def test_a_full_disk(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames" / "a", ramp(60))
    command = [sys.executable, "-m", "procreward", "relabel", "frames", "--out", "out"]
    command += ["--instruction", "lift", "--scorer", "constant", "--every-k-frames", "1"]
    full = subprocess.run(
        ["sh", "-c", 'ulimit -f 4 && exec "$@"', "sh", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == 2
    assert "error: [Errno 27] File too large" in full.stderr
    assert "Traceback" not in full.stderr
    # What was made is cleared away, so that the same command can be given again.
    assert [Path(name).name for name in tree(tmp_path / "out")] == ["scorer.json"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_frames(tmp_path / "frames" / "a", ramp(5))
    command = ["relabel", str(tmp_path / "frames"), "--out", str(tmp_path / "out")]
    command += ["--instruction", "lift", "--scorer", "nano", "--engine", "vllm"]
    assert status(*command) == 2
    assert 'pip install "procreward[vllm]"' in capsys.readouterr().err
