from __future__ import annotations

import importlib

import pytest

import procreward


def test_all_is_sorted_and_complete() -> None:
    assert procreward.__all__ == sorted(procreward.__all__)
    public = {name for name in procreward._HOMES if not name.startswith("_")}
    assert set(procreward.__all__) == public | {"__version__"}


@pytest.mark.parametrize("name", procreward.__all__)
def test_every_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(procreward, name)
    assert name in dir(procreward)
    if name != "__version__":
        assert found.__doc__
        home = importlib.import_module(f"procreward.{procreward._HOMES[name]}")
        assert getattr(home, name) is found
        assert name in home.__all__


def test_version_is_that_of_the_distribution() -> None:
    assert procreward.__version__ == "0.1.0"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'procreward' has no attribute 'Progres'"):
        procreward.Progres  # noqa: B018
