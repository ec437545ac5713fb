"""Every example in a docstring, in the README and in docs/ runs and gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import procreward
import procreward.envs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


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


def examples_in_pages() -> dict[str, str]:
    """Page and number to code; blocks marked ``py`` need what is not installed here."""
    return {
        f"{page.relative_to(ROOT)}-{number}": code
        for page in PAGES
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        )
    }


def test_examples_are_found_in_pages() -> None:
    pages = {name.rsplit("-", 1)[0] for name in examples_in_pages()}
    assert {"README.md", "docs/environments.md", "docs/checking.md", "docs/training.md"} <= pages


@pytest.mark.sim
# robosuite's GymWrapper gives Gymnasium float64 bounds for a float32 space.
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting to float32:UserWarning")
@pytest.mark.parametrize("name", examples_in_pages())
def test_examples_in_pages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(examples_in_pages()[name], name, "exec"), {"__name__": "page"})
