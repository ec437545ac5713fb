from __future__ import annotations

import pytest

from procreward.config import RewardConfig
from procreward.errors import ConfigError, UnknownNameError
from procreward.wrapping import merge_settings, render_fps, split_options


def test_keywords_override_a_config() -> None:
    config = RewardConfig(scorer="constant", gamma=0.9)
    assert merge_settings(config, {"gamma": 0.5}) == RewardConfig(scorer="constant", gamma=0.5)
    assert merge_settings(None, {"gamma": 0.5}) == RewardConfig(gamma=0.5)
    with pytest.raises(ConfigError, match="`config` must be a RewardConfig, got dict"):
        merge_settings({"gamma": 0.5}, {})  # type: ignore[arg-type]  # on purpose


def test_options_are_split_in_a_copy() -> None:
    options = {"level": 1, "procreward": {"instruction": "go"}}
    assert split_options(options) == ({"level": 1}, {"instruction": "go"})
    assert options == {"level": 1, "procreward": {"instruction": "go"}}
    others = {"level": 1}
    assert split_options(others)[0] is others
    assert split_options(None) == (None, {})
    with pytest.raises(UnknownNameError, match="reset option 'instructions'"):
        split_options({"procreward": {"instructions": "go"}})


def test_an_environment_need_not_say_how_fast_it_runs() -> None:
    assert render_fps({"render_fps": 20}) == 20
    assert render_fps({}) is None
    assert render_fps(None) is None
