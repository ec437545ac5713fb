from __future__ import annotations

import importlib

import pytest

from procreward import optional
from procreward.errors import MissingDependencyError


def test_what_is_there_is_imported() -> None:
    assert optional.need(optional.H5PY) is importlib.import_module("h5py")
    assert optional.need(optional.ARROW).__name__ == "pyarrow.parquet"


def test_what_is_missing_is_named_with_the_command() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        optional.need(("no_such_package", "Pictures need this", "procreward[pictures]"))
    assert str(caught.value) == (
        "Pictures need this, which could not be imported (No module named 'no_such_package'). "
        'Run `pip install "procreward[pictures]"`.'
    )
    assert isinstance(caught.value.__cause__, ImportError)
