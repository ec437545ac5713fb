"""How ProgressLM's answers are read.

With reasoning an answer has four tags, ``<ref_think>``, ``<ref>``, ``<score_think>`` and
``<score>``, and upstream's rules hold: the first match of each tag, ``n/a`` for a picture that
cannot be placed, ``33%`` in percent, a bare number above 1 in percent as well and any other as a
share (so a bare ``1`` is 100 %). Without reasoning the answer is the number alone.

Stricter than upstream, since a reward must not be made up: only numbers in plain digits count
(no sign, exponent, ``nan``, ``inf`` or other scripts' digits), and without reasoning a number that
is part of a word, a range, a fraction or a longer number is not read, nor any behind an ``n/a``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NOTHINK_STOP", "THINK_STOP", "Reading", "read_nothink", "read_think"]

THINK_STOP: tuple[str, ...] = ("</score>",)
"""Nothing after it matters."""

NOTHINK_STOP: tuple[re.Pattern[str], ...] = (
    re.compile(r"[0-9]\s*%", re.ASCII),
    re.compile(r"(?<![A-Za-z0-9])n/a(?![A-Za-z0-9])", re.ASCII | re.IGNORECASE),
)
"""What ends an answer without reasoning: a percentage or ``n/a``, whichever comes first."""

_NA = ("n/a", "na")
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_REF = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
_SCORE = re.compile(r"<score>(.*?)</score>", re.DOTALL)
_SCORE_VALUE = re.compile(rf"({_NUMBER})\s*(%?)")
_INTEGER = re.compile(r"[0-9]+")

# Not within a word, a number with commas, a range, a fraction; not behind a sign.
_ALONE = rf"(?<![\w.,+/\-\u2212\u2013])({_NUMBER})(?![\w/]|[.,\-\u2212\u2013][0-9])"
_PERCENT_OR_NA = re.compile(
    rf"{_ALONE}\s*%|(?P<na>(?<![A-Za-z0-9])n/a(?![A-Za-z0-9]))", re.IGNORECASE
)
_ANY = re.compile(_ALONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an answer says.

    Attributes:
        progress: Share done in [0, 1], or None.
        reason: Why there is none: ``"n/a"``, ``"truncated"`` or ``"unparsable"``.
        percent: The number in percent before it was clamped, or None.
        ref: Number of the closest step or key frame, from 1, or None.
        source: ``"percent"``, ``"number"`` (without a percent sign) or ``"any_number"`` (a number
            among other words); empty without progress.
    """

    progress: float | None = None
    reason: str = ""
    percent: float | None = None
    ref: float | None = None
    source: str = ""

    @property
    def clamped(self) -> bool:
        """Whether the number as written was above 100 %."""
        return self.percent is not None and self.percent > 100.0


def read_think(text: str, *, finished: bool = True) -> Reading:
    """Read an answer with reasoning.

    Args:
        text: The answer, any string.
        finished: Whether it ended by itself; one that was cut off can still hold a whole score.

    Returns:
        The progress, or why there is none.

    Example:
        >>> read_think("<ref>2</ref> ... <score>33%</score>")
        Reading(progress=0.33, reason='', percent=33.0, ref=2.0, source='percent')
        >>> read_think("<ref>n/a</ref><score_think>n/a</score_think><score>n/a</score>").reason
        'n/a'
    """
    ref = _read_ref(text)
    found = _SCORE.search(text)
    if found is None:
        return Reading(reason="unparsable" if finished else "truncated", ref=ref)
    value = found.group(1).strip()
    if value.strip("\"'").lower() in _NA:
        return Reading(reason="n/a", ref=ref)
    number = _SCORE_VALUE.fullmatch(value)
    if number is None:
        return Reading(reason="unparsable", ref=ref)
    return _reading(number.group(1), "percent" if number.group(2) else "number", ref)


def read_nothink(text: str, *, finished: bool = True) -> Reading:
    """Read an answer without reasoning.

    Args:
        text: The answer, any string.
        finished: Whether it ended by itself. In one that was cut off only a percentage or ``n/a``
            counts, since more digits could have followed.

    Returns:
        The progress, or why there is none.

    Example:
        >>> read_nothink("The progress is 75 %").progress
        0.75
        >>> read_nothink("0.75").progress
        0.75
        >>> read_nothink("N/A").reason
        'n/a'
    """
    value = text.strip()
    if value.strip("\"'").lower() in _NA:
        return Reading(reason="n/a")
    found = _PERCENT_OR_NA.search(value)
    if found is not None:
        return Reading(reason="n/a") if found["na"] else _reading(found.group(1), "percent")
    if not finished:
        return Reading(reason="truncated")
    found = _ANY.search(value)
    if found is None:
        return Reading(reason="unparsable")
    return _reading(found.group(1), "number" if found.group() == value else "any_number")


def _read_ref(text: str) -> float | None:
    found = _REF.search(text)
    if found is None or found.group(1).strip().lower() in _NA:
        return None
    number = _INTEGER.search(found.group(1))
    # Bounded, since a model may write four hundred digits and JSON knows no infinity.
    return None if number is None else min(float(number.group()), 1e12)


def _reading(digits: str, source: str, ref: float | None = None) -> Reading:
    value = float(digits)
    share = value / 100.0 if source == "percent" or value > 1.0 else value
    percent = value if source == "percent" or value > 1.0 else 100.0 * value
    return Reading(progress=min(share, 1.0), percent=percent, ref=ref, source=source)
