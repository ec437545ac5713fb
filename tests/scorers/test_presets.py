"""Every shipped preset, on a tiny model of the architecture it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from procreward.config import Preset, as_json, load_preset, preset_names
from procreward.registry import get_scorer, resolve
from procreward.types import Query
from tests.tiny import save_tiny, save_tiny_adapter, save_tiny_qwen25

EMBEDDED = "nano"
SHORT = 4


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("twins")
    qwen3 = save_tiny(root / "qwen3")
    return {
        "qwen3": qwen3,
        "qwen25": save_tiny_qwen25(root / "qwen25"),
        "adapter": save_tiny_adapter(root / "adapter", qwen3),
    }


def on_a_twin(preset: Preset, twins: dict[str, Path]) -> dict[str, Any]:
    """The preset with another model, and an answer that is soon over; all else is its own."""
    spec: dict[str, Any] = {"preset": preset.name}
    options: dict[str, Any] = {}
    if preset.scorer.model not in (None, EMBEDDED):
        ours = "qwen25" if "ProgressLM" in str(preset.scorer.model) else "qwen3"
        spec |= {"model": str(twins[ours]), "revision": None, "dtype": "float32"}
        if preset.scorer.adapter is not None:
            spec["adapter"] = str(twins["adapter"])
        if "max_new_tokens" in preset.scorer.options:
            options["max_new_tokens"] = SHORT
    if preset.scorer.name == "progresslm":
        options["demo"] = ["reach the cube", "lift the cube"]
    return {**spec, "options": options}


def a_query(preset: Preset) -> Query:
    """What an environment would ask with the preset's own window, views and frame size."""
    width, height = preset.frame_size or (64, 64)
    count = preset.window_frames
    coarse = np.random.default_rng(0).integers(40, 216, (count, 4, 4, 3), np.uint8)
    frames = np.repeat(np.repeat(coarse, height // 4, axis=1), width // 4, axis=2)
    views: Any = preset.scorer.options.get("views") or ("front",)
    return Query(
        frames=dict.fromkeys(views, frames),
        instruction="lift the red cube",
        frame_steps=tuple(range(0, count * preset.frame_stride_steps, preset.frame_stride_steps)),
        stream="episode",
        fps=20.0,
    )


@pytest.mark.parametrize("name", preset_names())
def test_it_is_built_and_answers_its_own_window(name: str, twins: dict[str, Path]) -> None:
    preset = load_preset(name)
    handle = resolve(on_a_twin(preset, twins))
    scorer = get_scorer(handle)
    account = scorer.describe()
    assert json.loads(json.dumps(account)) == account
    for option, value in as_json(handle.config.options).items():
        if option in account and option != "demo":
            assert account[option] == value
    (score,) = scorer.score([a_query(preset)])
    assert score.valid or score.reason in ("truncated", "unparsable")
    assert score.mode
