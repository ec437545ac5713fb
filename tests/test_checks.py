from __future__ import annotations

import math

import pytest

from procreward.checks import (
    check,
    check_choice,
    check_frame_size,
    check_int,
    check_names,
    check_unit,
)
from procreward.errors import ConfigError, UnknownNameError


def test_a_message_names_setting_rule_value_and_fix() -> None:
    check(True, "scale", "above 0", 1.0)
    with pytest.raises(ConfigError, match=r"^`scale` must be above 0, got -1\.0\.$"):
        check(False, "scale", "above 0", -1.0)
    with pytest.raises(ConfigError, match=r"^`scale` must be above 0, got 0\. Use 1\.$"):
        check(False, "scale", "above 0", 0, "Use 1.")


def test_integers() -> None:
    check_int("steps", 2, least=2)
    for value in (1, True, 2.0, "2", None):
        with pytest.raises(ConfigError, match="`steps` must be an integer of at least 2, got"):
            check_int("steps", value, least=2)


def test_numbers_between_0_and_1() -> None:
    check_unit("gamma", 1, allow_zero=False)
    check_unit("gamma", 0.0, allow_zero=True)
    for value in (0.0, -0.1, 1.1, math.nan, True):
        with pytest.raises(ConfigError, match=r"`gamma` must be a number in \(0, 1\], got"):
            check_unit("gamma", value, allow_zero=False)
    with pytest.raises(ConfigError, match=r"in \[0, 1\], got -0\.1"):
        check_unit("gamma", -0.1, allow_zero=True)


def test_frame_sizes() -> None:
    assert check_frame_size("frame_size", [64, 48]) == (64, 48)
    for value in (64, (64,), (64, 0), (64.0, 48.0), "64"):
        with pytest.raises(ConfigError, match=r"`frame_size` must be \(width, height\) in pixels"):
            check_frame_size("frame_size", value)


def test_choices() -> None:
    check_choice("mode", None, ("fast", None))
    with pytest.raises(ConfigError, match="`mode` must be one of 'fast', None, got 'slow'"):
        check_choice("mode", "slow", ("fast", None))


def test_names() -> None:
    check_names("setting", {"gamma": 1}, ["gamma", "scale"])
    with pytest.raises(UnknownNameError, match=r"Unknown setting 'gama'\. Did you mean 'gamma'\?"):
        check_names("setting", {"scale": 1, "gama": 1}, ["gamma", "scale"])
