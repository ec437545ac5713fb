"""Training with Stable-Baselines3 on what a reward model sees.

* :func:`load_train_config`, :class:`TrainConfig`, :class:`EvalConfig` - the settings.
* :func:`train` - a whole run, what ``procreward train`` does.
* :func:`build_learner`, :func:`evaluate`, :class:`Evaluator` - its parts, for scripts of your own.

Needs ``pip install "procreward[train]"`` when it is used, not when it is imported.
"""

from __future__ import annotations

from procreward.training.config import EvalConfig, TrainConfig, load_train_config
from procreward.training.evaluation import EvalResult, Evaluator, evaluate
from procreward.training.history import Evaluation
from procreward.training.learner import build_learner
from procreward.training.run import TrainReport, train

__all__ = [
    "EvalConfig",
    "EvalResult",
    "Evaluation",
    "Evaluator",
    "TrainConfig",
    "TrainReport",
    "build_learner",
    "evaluate",
    "load_train_config",
    "train",
]
