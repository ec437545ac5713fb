from __future__ import annotations

import pytest

from procreward.errors import UnknownNameError


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
