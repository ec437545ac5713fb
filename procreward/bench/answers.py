"""Answers as a trained ProcVLM writes them, for models whose weights are random.

Random weights write random text of any length. So that passes, drafts and stops cost what they
cost in use, their tokens are imposed (:mod:`procreward.bench.imposed`), and these are the tokens: a
list of what is left to do and a percentage with two decimals. From one question to the next the
digits change nearly always, and an item falls off the list now and then.
"""

from __future__ import annotations

import numpy as np

from procreward.scorers.procvlm_text import DIRECT_PREFIX, procvlm_prompt

__all__ = ["INSTRUCTION", "AnswerScript", "answer_corpus"]

INSTRUCTION = "put the mug from the counter into the open drawer and close it"

_ACTIONS = (
    "move the gripper above the mug",
    "lower the gripper around the mug",
    "close the fingers on the mug",
    "lift the mug off the counter",
    "carry the mug over to the drawer",
    "lower the mug into the drawer",
    "open the fingers and move up",
    "push the drawer until it is closed",
)
_STEP = 0.004
_NOISE = 0.006


class AnswerScript:
    """What one environment is to be told, step by step.

    Args:
        seed: Another seed, another course.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 11])
        self._progress = float(self._rng.uniform(0.05, 0.35))

    def next(self) -> tuple[str, float]:
        """Return the answer to the next question and the percentage in it, in [0, 99.99]."""
        self._progress = min(self._progress + _STEP, 0.999)
        noisy = self._progress + float(self._rng.normal(0.0, _NOISE))
        progress = min(max(noisy, 0.0), 0.9999)
        return written(progress, self._progress), 100 * progress


def written(progress: float, done: float) -> str:
    """Write an answer.

    Args:
        progress: The number in it, in [0, 1].
        done: Share of the actions that are done, in [0, 1).
    """
    left = _ACTIONS[int(done * len(_ACTIONS)) :]
    items = "".join(f"{number}. {action}\n" for number, action in enumerate(left, start=1))
    head = "The following actions are required: \n"
    return f"{head}{items}{DIRECT_PREFIX}{100 * progress:.2f}%</progress>."


def answer_corpus() -> list[str]:
    """Return the words that a tokenizer has to know: prompts and answers."""
    texts = [written(share, share) for share in np.linspace(0.0, 0.99, 9)]
    return [procvlm_prompt(INSTRUCTION), *texts, "user\n", "assistant\n", "system\n"]
