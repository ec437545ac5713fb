"""Every example in a docstring and in the README runs and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import procreward
import procreward.envs

README = Path(__file__).parents[1] / "README.md"


def modules_with_examples() -> list[str]:
    names = [
        item.name
        for package in (procreward, procreward.envs)  # the latter lies elsewhere when editable
        for item in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
    ]
    found = []
    for name in names:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        if ">>> " in Path(spec.origin).read_text():
            found.append(name)
    return found


def test_examples_are_found_in_every_part() -> None:
    found = modules_with_examples()
    assert {"procreward.wrapper", "procreward.shaping", "procreward.errors"} <= set(found)
    assert any(name.startswith("procreward.envs.") for name in found)


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.sim
@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_readme_examples(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
