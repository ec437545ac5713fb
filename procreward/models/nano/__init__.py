"""The embedded default model: how it is built, trained, checked and exported.

``nano`` is a true Qwen3-VL of a few million parameters with its own small tokenizer, trained from
scratch on scripted robosuite and Meta-World episodes. The folder ``weights`` beside this file is
what :func:`procreward.engine.loading.model.load_model` opens under the name ``"nano"``.

From nothing to weights::

    python -m procreward.models.nano.render --task all --episodes 400 --out data/nano
    python -m procreward.models.nano.render --task all --episodes 20 --seed-start 900000
    python -m procreward.models.nano.train --data data/nano --out runs/nano
    python -m procreward.models.nano.export --run runs/nano --out procreward/models/nano/weights
    python -m procreward.models.nano.judge --data data/nano --base procreward/models/nano/weights
    python benchmarks/nano_quality.py --out nano_quality.json
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["WEIGHTS"]

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights, tokenizer and preprocessing settings."""
