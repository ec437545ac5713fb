"""What is handed out has all that belongs to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "configs", "docs", "envs", "examples", "procreward", "scripts", "tests")
FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md")


def test_the_sdist_is_the_checkout(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*FILES, "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    sources = {
        str(path.relative_to(copy))
        for path in copy.rglob("*")
        # A hidden file, or one that an editor is just writing, is nobody's.
        if path.suffix in {".py", ".md", ".txt", ".yaml", ".png", ".json", ".safetensors", ".sh"}
        and not path.name.startswith(".")
    }
    build = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=copy, check=True, capture_output=True
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert sources - packed == set()
