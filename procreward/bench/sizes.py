"""The dimensions of the models that benchmarks build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from procreward.bench.twins import TwinSize

__all__ = [
    "JUDGE_TWIN",
    "PROGRESS_TWIN",
    "QWEN3_VL_2B",
    "QWEN3_VL_4B",
    "SIZES",
    "TINY",
    "VOCABULARY",
]

VOCABULARY = 151_936
"""Rows of the full-size models' embedding."""

QWEN3_VL_2B = TwinSize(
    hidden=2048,
    layers=28,
    intermediate=6144,
    heads=16,
    kv_heads=8,
    head_dim=128,
    sections=(24, 20, 20),
    vision_hidden=1024,
    vision_layers=24,
    vision_intermediate=4096,
    vision_heads=16,
    vision_positions=2304,
    deepstack=(5, 11, 17),
    max_positions=262_144,
    initializer_range=0.02,
)
"""Qwen3-VL-2B, which ProcVLM is."""

QWEN3_VL_4B = replace(QWEN3_VL_2B, hidden=2560, layers=36, intermediate=9728, heads=32)
"""Qwen3-VL-4B, which the completion judge is, without its adapter; its vision tower is the 2B's."""

TINY = TwinSize(
    hidden=96,
    layers=3,
    intermediate=192,
    heads=4,
    kv_heads=2,
    head_dim=24,
    vision_hidden=64,
    vision_layers=3,
    deepstack=(0, 1, 2),
    initializer_range=0.05,
)
"""Runs in milliseconds; for trying a benchmark out."""

JUDGE_TWIN = TwinSize(
    hidden=128,
    layers=4,
    intermediate=384,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vision_hidden=32,
    vision_layers=4,
    vision_intermediate=96,
    deepstack=(0, 1, 2),
    initializer_range=0.1,
)
"""Stands for the 4B judge: over 64 frames of 224x224 the vision tower does 24 % of the operations,
there 22 %. Attention does a larger share of the rest than it does there."""

PROGRESS_TWIN = TwinSize(
    hidden=128,
    layers=4,
    intermediate=384,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vision_hidden=96,
    vision_layers=4,
    vision_intermediate=256,
    initializer_range=0.04,
)
"""Stands for ProgressLM, as a Qwen2.5-VL."""

SIZES: Mapping[str, tuple[TwinSize, TwinSize, int | None]] = MappingProxyType(
    {
        "full": (QWEN3_VL_2B, QWEN3_VL_4B, VOCABULARY),
        "tiny": (TINY, TINY, None),
    }
)
"""By name: ProcVLM's size, the judge's, and the rows of their embedding (None: the tokenizer's)."""
