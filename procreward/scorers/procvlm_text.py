"""ProcVLM's prompt, and how its answers are read.

The prompt is the published one (``evqa/templates/procedural_c.txt`` in ProcVLM/ProcVLM), word for
word: the model was trained on it. Answers end in ``<progress>84.13%</progress>``. The number is
read as upstream reads it (first match, always a percentage, clamped), but in ASCII digits only; a
few spellings that the model is known to produce are read as well, and so is a number whose ``%``
ends the answer, since answers are stopped there. A number that is not in the text, or not whole, is
never made up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "DIRECT_COMPLETE",
    "DIRECT_PREFIX",
    "LEAD",
    "NUMBER_COMPLETE",
    "PROMPT",
    "STOP",
    "Reading",
    "procvlm_prompt",
    "read_progress",
    "reasoning_of",
]

PROMPT = (
    'Given the recent observation and the task "{task}", first infer the remaining atomic actions '
    "required to complete the task. Then estimate the current completion percentage and output it "
    "as a float wrapped by <progress> tags."
)
"""The published prompt; ``{task}`` stands for the instruction."""

STOP = "</progress>"
"""Nothing after it matters."""

LEAD = "<progress>"
"""What stands directly in front of the number."""

DIRECT_PREFIX = f"Therefore, the estimated progress is {LEAD}"
"""What mode ``direct`` puts in the assistant's mouth: the last line of every trained answer."""

_NUMBER = r"[+-]?[0-9]+(?:\.[0-9]+)?"

DIRECT_COMPLETE = re.compile(rf"{_NUMBER}\s*%", re.ASCII)
"""Ends an answer that began behind the tag: no digit can follow."""

NUMBER_COMPLETE = re.compile(rf"{LEAD}\s*{_NUMBER}\s*%", re.ASCII | re.IGNORECASE)
"""Ends an answer: the number is whole, and only the closing tag is missing."""

_LEAD_IN = DIRECT_PREFIX.removesuffix(LEAD).strip()

_UPSTREAM = re.compile(rf"{LEAD}\s*({_NUMBER})\s*(?:%\s*)?{STOP}", re.IGNORECASE)
_UNCLOSED = re.compile(rf"{LEAD}\s*({_NUMBER})\s*%\s*\Z", re.IGNORECASE)
# The model sometimes breaks its tags: "\< progr ess>84%\</ progress >".
_SPACED = r"[ \t]*".join("progress")
_OPEN = rf"\\?<[ \t]*{_SPACED}[ \t]*\\?>"
_CLOSE = rf"\\?<[ \t]*\\?/[ \t]*{_SPACED}[ \t]*\\?>"
_TOLERANT = re.compile(rf"{_OPEN}\s*({_NUMBER})\s*(?:(?:\\?%|\\)\s*)?{_CLOSE}", re.IGNORECASE)
_SPELLINGS = ((_UPSTREAM, "tag"), (_UNCLOSED, "tag"), (_TOLERANT, "malformed_tag"))
_ANY_TAG = re.compile(rf"{_OPEN}|{_CLOSE}", re.IGNORECASE)

# Finished answers without a tag open with one of these; a condition ("when ...") must not follow.
_FINISHED = re.compile(
    r"(?:^|[.!\n]\s*)"
    r"(?:(?:(?:so|thus|therefore),?\s+)?(?:the|this)\s+task\s+is\s+(?:already\s+|now\s+)?"
    r"(?:finished|complete|completed|done)"
    r"(?=\s*(?:$|[.,;!]|because\b|since\b|as\b(?!\s+soon\b)))"
    r"|(?:the\s+)?image\s+shows\s+the\s+final\s+result\b)",
    re.IGNORECASE,
)
_ACTIONS_LEFT = re.compile(
    r"actions\s+(?:are|is)\s+required|^\s*(?:-|\d+\s*[.:)])\s*\S", re.I | re.M
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an answer says.

    Attributes:
        progress: Share done in [0, 1], or None.
        reason: Why there is none: ``"truncated"`` or ``"unparsable"``.
        percent: The number as written, in percent, or None.
        source: ``"tag"``, ``"malformed_tag"`` or ``"finished_text"``; empty without progress.
    """

    progress: float | None = None
    reason: str = ""
    percent: float | None = None
    source: str = ""

    @property
    def clamped(self) -> bool:
        """Whether the number as written was outside [0, 100]."""
        return self.percent is not None and not 0.0 <= self.percent <= 100.0


def procvlm_prompt(task: str) -> str:
    """Return the prompt for one task.

    Args:
        task: The instruction; braces in it are left alone.

    Returns:
        The text that follows the pictures.
    """
    return PROMPT.replace("{task}", task)


def read_progress(text: str, *, finished: bool = True) -> Reading:
    r"""Read the progress out of an answer.

    Args:
        text: The answer, any string.
        finished: Whether the answer ended by itself. One that was cut off by the token limit can
            still hold a whole number, with its tag or at least its ``%`` behind it, but says
            nothing by its words alone.

    Returns:
        The progress, or why there is none.

    Example:
        >>> read_progress("1. lift\n<progress>84%</progress>.").progress
        0.84
        >>> read_progress("1. lift\n<progress>84%").progress
        0.84
        >>> read_progress("1. reach\n<progress>8", finished=False).reason
        'truncated'
    """
    for pattern, source in _SPELLINGS:
        match = pattern.search(text)
        if match:
            percent = float(match.group(1))
            progress = min(max(percent, 0.0), 100.0) / 100.0
            return Reading(progress=progress, percent=percent, source=source)
    if not finished:
        return Reading(reason="truncated")
    if _FINISHED.search(text) and not _ANY_TAG.search(text) and not _ACTIONS_LEFT.search(text):
        return Reading(progress=1.0, source="finished_text")
    return Reading(reason="unparsable")


def reasoning_of(text: str) -> str:
    """Return what an answer says before it comes to the number.

    Args:
        text: The answer.

    Returns:
        The words before the first progress tag and the half sentence that leads up to it, or all
        of them, without outer white space.
    """
    match = _ANY_TAG.search(text)
    before = text[: match.start()] if match else text
    return before.strip().removesuffix(_LEAD_IN).strip()
