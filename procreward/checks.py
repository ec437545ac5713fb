"""Checks of settings, and the one form of their messages.

* :func:`check` - any rule.
* :func:`check_int`, :func:`check_unit`, :func:`check_choice`, :func:`check_frame_size` - the rules
  that come up again.
* :func:`check_names` - keys that must be known.
* :func:`check_folder` - where results go.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path

from procreward.errors import ConfigError, UnknownNameError

__all__ = [
    "check",
    "check_choice",
    "check_folder",
    "check_frame_size",
    "check_int",
    "check_names",
    "check_unit",
    "is_int",
    "is_number",
]


def is_int(value: object, *, least: int) -> bool:
    """Whether a value is an integer (no bool) of at least ``least``."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def is_number(value: object) -> bool:
    """Whether a value is a finite number (no bool)."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def check(ok: bool, name: str, rule: str, value: object, fix: str = "") -> None:
    """Refuse a setting that breaks a rule.

    Args:
        ok: Whether it keeps the rule.
        name: What the message calls the setting.
        rule: What it must be, such as ``"above 0"``.
        value: What it is.
        fix: A sentence that ends the message.

    Raises:
        ConfigError: If it is not ``ok``.
    """
    if not ok:
        raise ConfigError(f"`{name}` must be {rule}, got {value!r}.{' ' if fix else ''}{fix}")


def check_int(name: str, value: object, *, least: int, fix: str = "") -> None:
    """Refuse what is not an integer of at least ``least``.

    Args:
        name: What the message calls it.
        value: What should be the integer.
        least: The least that is allowed.
        fix: A sentence that ends the message.

    Raises:
        ConfigError: If it is not.
    """
    check(is_int(value, least=least), name, f"an integer of at least {least}", value, fix)


def check_unit(name: str, value: float, *, allow_zero: bool, fix: str = "") -> None:
    """Refuse what is not a number between 0 and 1.

    Args:
        name: What the message calls it.
        value: What should be the number.
        allow_zero: Whether the range is [0, 1] rather than (0, 1].
        fix: A sentence that ends the message.

    Raises:
        ConfigError: If it is not.
    """
    ok = is_number(value) and 0.0 <= value <= 1.0 and (allow_zero or value > 0.0)
    check(ok, name, f"a number in {'[' if allow_zero else '('}0, 1]", value, fix)


def check_frame_size(name: str, value: object) -> tuple[int, int]:
    """Return a width and a height in pixels as a tuple, or refuse them.

    Args:
        name: What the message calls them.
        value: What should be two integers of at least 1.

    Raises:
        ConfigError: If it is not.
    """
    ok = isinstance(value, Sequence) and len(value) == 2 and all(is_int(v, least=1) for v in value)
    check(
        ok, name, "(width, height) in pixels, each at least 1", value, "For example `(128, 128)`."
    )
    assert isinstance(value, Sequence)
    return (int(value[0]), int(value[1]))


def check_choice(name: str, value: object, choices: Sequence[str | None]) -> None:
    """Refuse what is not one of a few choices.

    Args:
        name: What the message calls it.
        value: What should be one of them.
        choices: What is allowed.

    Raises:
        ConfigError: If it is none of them.
    """
    check(value in choices, name, f"one of {', '.join(map(repr, choices))}", value)


def check_names(kind: str, names: Iterable[object], known: Iterable[str]) -> None:
    """Refuse a name that is not known.

    Args:
        kind: What the message calls such a name, such as ``"setting"``.
        names: The names that were given, such as the keys of a mapping.
        known: The names there are.

    Raises:
        UnknownNameError: At the first unknown one, with the closest known one.
    """
    known = list(known)
    for name in names:
        if name not in known:
            raise UnknownNameError(kind, str(name), known)


def check_folder(folder: Path) -> None:
    """Make a folder of results, and see that files can be written into it.

    Args:
        folder: The folder.

    Raises:
        ConfigError: If they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"`out` must be a folder that can be written to, got {str(folder)!r}: {error}."
        ) from error
