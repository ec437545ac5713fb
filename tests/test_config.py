from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from procreward.config import (
    DEFAULT,
    Preset,
    RewardConfig,
    ScorerConfig,
    given_settings,
    load_preset,
    preset_names,
)
from procreward.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("every_k_steps", 0, "`every_k_steps` must be an integer of at least 1, got 0. Use 1"),
        ("every_k_steps", 2.0, "`every_k_steps` must be an integer of at least 1, got 2.0"),
        ("every_k_steps", True, "`every_k_steps` must be an integer"),
        ("window_frames", 0, "`window_frames` must be an integer of at least 1, got 0"),
        ("frame_stride_steps", -1, "`frame_stride_steps` must be"),
        ("frame_size", (0, 4), r"`frame_size` must be \(width, height\)"),
        ("frame_size", 128, r"`frame_size` must be \(width, height\)"),
        ("views", 3, "`views` must be a string, a sequence of strings or None, got 3"),
        ("views", ["front", None], "`views` must be a string, a sequence of strings or None"),
        ("pad", 1, "`pad` must be True, False or None, got 1"),
        ("skip_unchanged", -0.5, r"`skip_unchanged` must be a number in \[0, 255\]"),
        ("shaping", "dense", "`shaping` must be one of .*'pbrs'.*, got 'dense'"),
        ("gamma", 0.0, r"`gamma` must be a number in \(0, 1\], got 0.0. It must equal"),
        ("gamma", 1.2, r"`gamma` must be a number in \(0, 1\], got 1.2"),
        ("gamma", float("nan"), r"`gamma` must be a number in \(0, 1\], got nan"),
        ("gamma", "0.9", r"`gamma` must be a number in \(0, 1\], got '0.9'"),
        ("scale", 0.0, "`scale` must be above 0, got 0.0"),
        ("scale", float("inf"), "`scale` must be above 0, got inf"),
        ("ratchet", "yes", "`ratchet` must be a bool, got 'yes'"),
        ("offset", 0, "`offset` must be a bool, got 0"),
        ("smooth_alpha", 0.0, r"`smooth_alpha` must be a number in \(0, 1\]"),
        ("success_bonus", -1.0, "`success_bonus` must be a finite number of at least 0"),
        ("on_complete", "stop", "`on_complete` must be one of"),
        ("complete_threshold", 0.0, "`complete_threshold` must be"),
        ("confirm_queries", 0, "`confirm_queries` must be"),
        ("confirm_window", 1, "`confirm_window` must be an integer of at least 2, got 1. It"),
        ("release_threshold", 1.5, "`release_threshold` must be"),
        ("stall_queries", 0, "`stall_queries` must be"),
        ("stall_delta", 0.0, "`stall_delta` must be"),
        ("regression_delta", 0.0, "`regression_delta` must be"),
        ("env_reward_weight", float("nan"), "`env_reward_weight` must be a finite number"),
        ("max_consecutive_failures", 0, "`max_consecutive_failures` must be"),
    ],
)
def test_reward_config_names_setting_rule_and_value(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardConfig(**{name: value})


def test_reward_config_keeps_what_it_is_given() -> None:
    config = RewardConfig(frame_size=[64, 48], views=["a", "b"], every_k_steps=3)  # type: ignore[arg-type]  # on purpose
    assert (config.frame_size, config.every_k_steps, config.gamma) == ((64, 48), 3, 0.99)
    # As a tuple, so that the config that JSON gives back is equal.
    assert config.views == ("a", "b")


def test_replace_rejects_unknown_settings() -> None:
    with pytest.raises(UnknownNameError, match=r"setting 'gama'. Did you mean 'gamma'\?"):
        RewardConfig().replace(gama=0.5)


def test_given_settings_tells_given_from_default() -> None:
    def function(gamma: float = DEFAULT.gamma, scale: float = DEFAULT.scale) -> dict[str, Any]:
        return given_settings(locals())

    assert function() == {}
    assert function(gamma=0.99) == {"gamma": 0.99}
    assert repr(DEFAULT.gamma) == "0.99"


def test_every_setting_has_a_marker() -> None:
    assert set(vars(DEFAULT)) == {item.name for item in dataclasses.fields(RewardConfig)}


def test_scorer_config_round_trip() -> None:
    config = ScorerConfig(name="procvlm", model="somewhere", options={"mode": "direct"})
    plain = config.to_dict()
    assert plain == {"name": "procvlm", "model": "somewhere", "options": {"mode": "direct"}}
    assert ScorerConfig.from_dict(json.loads(json.dumps(plain))) == config
    config = ScorerConfig(name="judge", quantization="auto", merge_adapter=False)
    plain = config.to_dict()
    assert plain == {"name": "judge", "quantization": "auto", "merge_adapter": False}
    assert ScorerConfig.from_dict(json.loads(config.key())) == config


def test_scorer_config_key_does_not_depend_on_the_order_of_options() -> None:
    one = ScorerConfig(name="x", options={"a": 1, "b": (2, 3)})
    other = ScorerConfig(name="x", options={"b": [2, 3], "a": 1})
    assert one.key() == other.key()
    assert one.key() != ScorerConfig(name="x", options={"a": 1}).key()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "`name` must be a non-empty string, got ''"),
        ({"name": "x", "model": ""}, "`model` must be a non-empty string or None"),
        ({"name": "x", "device": None}, "`device` must be a non-empty string, got None"),
        ({"name": "x", "quantization": "int4"}, "`quantization` must be one of 'none', 'nf4'"),
        ({"name": "x", "merge_adapter": 1}, "`merge_adapter` must be a bool, got 1"),
        ({"name": "x", "options": [1]}, "`options` must be a mapping"),
        ({"name": "x", "options": {"a": {1, 2}}}, "`options` must hold only what JSON can"),
        ({"name": "x", "options": {"a": float("nan")}}, "`options` must hold only what JSON can"),
        ({"model": "m"}, "`name` must be given"),
    ],
)
def test_scorer_config_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScorerConfig.from_dict(values)


def test_scorer_config_rejects_unknown_keys() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'device'"):
        ScorerConfig.from_dict({"name": "x", "devise": "cpu"})


def test_every_shipped_preset_loads_and_has_a_summary() -> None:
    assert {"constant", "scripted", "procvlm-2b", "procvlm-2b-fp32"} <= set(preset_names())
    for name in preset_names():
        preset = load_preset(name)
        assert preset.name == name
        assert preset.summary


def test_procvlm_preset_is_as_published() -> None:
    preset = load_preset("procvlm-2b")
    assert preset.scorer == ScorerConfig(
        name="procvlm",
        model="ce-amtic/ProcVLM-2B",
        revision="a7f5c18c6128a9c2a478a62ecc356f19f0e0bcf5",
        options={"mode": "reasoning", "max_new_tokens": 256, "image_order": "images_first"},
    )
    assert (preset.window_frames, preset.frame_stride_steps, preset.pad) == (8, 1, False)
    assert preset.frame_size == (256, 256)


def test_preset_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scorer: {name: constant}\nwindow_frames: 3\nframe_size: [32, 16]\n")
    expected = Preset(
        name="mine", scorer=ScorerConfig(name="constant"), window_frames=3, frame_size=(32, 16)
    )
    assert load_preset(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("window_frames: 3\n", "must be a mapping with a `scorer` mapping"),
        ("scorer: constant\n", "must be a mapping with a `scorer` mapping"),
        ("- 1\n", "must be a mapping with a `scorer` mapping"),
        ("scorer: {name: constant}\nwindow_frames: 0\n", "`window_frames` must be"),
        ("scorer: {name: constant}\npad: 3\n", "`pad` must be true or false, got 3"),
        ("scorer: {name: constant}\nwindow: 3\n", "Unknown preset setting 'window'"),
        ("scorer: {name: [}\n", "is not valid YAML"),
    ],
)
def test_preset_file_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_preset(path)


def test_missing_preset_file_and_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"'no/such\.yaml' cannot be read"):
        load_preset("no/such.yaml")
    with pytest.raises(UnknownNameError, match=r"preset 'constnt'. Did you mean 'constant'\?"):
        load_preset("constnt")
