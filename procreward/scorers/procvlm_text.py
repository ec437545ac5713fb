"""ProcVLM's prompt, and how its answers are read.

The prompt is the published one (``evqa/templates/procedural_c.txt`` in ProcVLM/ProcVLM), word for
word: the model was trained on it. Answers end in ``<progress>84.13%</progress>``.
"""

from __future__ import annotations

__all__ = ["DIRECT_PREFIX", "PROMPT", "STOP", "procvlm_prompt"]

PROMPT = (
    'Given the recent observation and the task "{task}", first infer the remaining atomic actions '
    "required to complete the task. Then estimate the current completion percentage and output it "
    "as a float wrapped by <progress> tags."
)
"""The published prompt; ``{task}`` stands for the instruction."""

STOP = "</progress>"
"""Nothing after it matters."""

DIRECT_PREFIX = "Therefore, the estimated progress is <progress>"
"""What mode ``direct`` puts in the assistant's mouth: the last line of every trained answer."""


def procvlm_prompt(task: str) -> str:
    """Return the prompt for one task.

    Args:
        task: The instruction; braces in it are left alone.

    Returns:
        The text that follows the pictures.
    """
    return PROMPT.replace("{task}", task)
