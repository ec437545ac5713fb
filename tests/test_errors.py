from __future__ import annotations

import pickle

import pytest

from procreward.errors import ServerError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Lfit-v0", ""),
        ("procreward/Lfit-v0", " Did you mean 'procreward/Lift-v0'?"),
        ("Lift-v0", " Did you mean 'procreward/Lift-v0'?"),
        ("", ""),
    ],
)
def test_hint_at_the_closest_name_or_the_one_with_a_namespace(name: str, hint: str) -> None:
    known = ["procreward/Door-v0", "procreward/Lift-v0"]
    error = UnknownNameError("environment", name, known)
    expected = f"Unknown environment {name!r}.{hint} Known: procreward/Door-v0, procreward/Lift-v0."
    assert str(error) == expected
    assert (error.kind, error.name, error.known) == ("environment", name, known)


@pytest.mark.parametrize(
    "error",
    [UnknownNameError("scorer", "procvml", ["procvlm"]), ServerError("no answer", "timeout")],
)
def test_errors_come_back_from_worker_processes(error: Exception) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
