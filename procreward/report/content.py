"""What the page says about an episode, as JSON has it.

* :func:`row` - its line in the table.
* :func:`details` - its curves and all that the models said.
* :func:`finite` - numbers that JSON can hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from procreward.relabel.readings import Reading
from procreward.report.figures import Flag, Thresholds, find_flags, spans, value_order_correlation
from procreward.report.records import StepTrace
from procreward.report.runs import Entry
from procreward.types import Score

__all__ = ["details", "finite", "row"]

_SPARK_POINTS = 40


def finite(value: float | None, digits: int = 4) -> float | None:
    """Round a number; None for what JSON has no number for.

    Example:
        >>> finite(0.123456), finite(float("nan"))
        (0.1235, None)
    """
    if value is None or not math.isfinite(value):
        return None
    rounded = round(float(value), digits)
    return int(rounded) if rounded == int(rounded) else rounded


def row(entry: Entry, thresholds: Thresholds) -> dict[str, Any]:
    """Sum up an episode.

    Args:
        entry: The episode.
        thresholds: What counts as a stall or a drop.
    """
    record, trace = entry.record, entry.record.trace
    flags = find_flags(trace, thresholds)
    kinds = [flag.kind for flag in flags]
    return {
        "key": entry.key,
        "number": entry.number,
        "name": entry.name,
        "task": record.instruction,
        "policy": record.policy,
        "length": record.steps,
        "final": finite(record.final_progress),
        "complete": record.complete_step,
        "held": trace[-1].complete,
        "success": record.env_success,
        "voc": finite(value_order_correlation(trace)),
        "queries": record.queries,
        "invalid": record.invalid_answers,
        "stalls": kinds.count("stall"),
        "drops": kinds.count("drop"),
        "return": finite(record.episode_return),
        "error": finite(_true_error(trace)),
        "spark": _spark([entry.progress for entry in trace]),
    }


def _true_error(trace: Sequence[StepTrace]) -> float | None:
    """Mean distance between reading and true progress at the queries that were answered."""
    pairs = [
        (entry.progress, entry.true_progress) for entry in trace if entry.queried and entry.valid
    ]
    errors = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return math.fsum(errors) / len(errors) if errors else None


def _spark(values: Sequence[float | None]) -> list[float | None]:
    """The curve in few points, first and last among them."""
    last = len(values) - 1
    points = min(_SPARK_POINTS, len(values))
    places = [round(last * place / max(points - 1, 1)) for place in range(points)]
    return [finite(values[place], 3) for place in places]


def details(entry: Entry, thresholds: Thresholds) -> dict[str, Any]:
    """Give the curves of an episode, by step, and its queries.

    Args:
        entry: The episode.
        thresholds: What counts as a stall or a drop.
    """
    trace = entry.record.trace
    truth = [finite(one.true_progress) for one in trace]
    return {
        "progress": [finite(one.progress) for one in trace],
        "potential": [finite(one.potential) for one in trace],
        "reward": [finite(one.reward, 6) for one in trace],
        "truth": truth if any(value is not None for value in truth) else None,
        "complete": spans(one.complete for one in trace),
        "success": entry.record.success_step,
        "terminated": entry.record.terminated,
        "queries": [_query(one, entry.readings.get(one.step)) for one in trace if one.queried],
        "flags": [_flag(flag) for flag in _flags(entry, thresholds)],
    }


def _flags(entry: Entry, thresholds: Thresholds) -> list[Flag]:
    """The flags of an episode, with answers that a judge alone failed to give."""
    found = find_flags(entry.record.trace, thresholds)
    known = {flag.start for flag in found if flag.kind == "invalid"}
    failed = [step for step, one in entry.readings.items() if one.reasons and step not in known]
    found += [Flag(kind="invalid", start=step, end=step) for step in failed]
    return sorted(found, key=lambda flag: flag.start)


def _flag(flag: Flag) -> dict[str, Any]:
    return _said(
        {
            "kind": flag.kind,
            "start": flag.start,
            "end": flag.end,
            "best": finite(flag.best),
            "lowest": finite(flag.lowest),
        }
    )


def _query(entry: StepTrace, reading: Reading | None) -> dict[str, Any]:
    """One query, as the record has it, and more where the run kept it."""
    query: dict[str, Any] = {
        "step": entry.step,
        "valid": entry.valid,
        "progress": finite(entry.progress) if entry.valid else None,
        "text": entry.text,
    }
    if reading is None:
        return query | _said({"reason": entry.reason})
    query |= _answer(reading.score, reading.failed) | {"valid": entry.valid}
    query["window"] = list(reading.window)
    if reading.judge_window:
        query["judge"] = _answer(reading.judge_score, reading.judge_failed)
    return _said(query)


def _answer(score: Score | None, failed: str) -> dict[str, Any]:
    """What a model said."""
    if score is None:
        return {"valid": False, "reason": failed or "no answer", "text": ""}
    return _said(
        {
            "valid": score.valid,
            "progress": finite(score.progress),
            "chance": finite(score.success_prob),
            "complete": score.complete,
            "text": score.text,
            "reason": score.reason,
            "mode": score.mode,
            "spread": finite(score.spread),
            "details": _details(score.details),
        }
    )


def _details(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in sorted(values.items())}


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not said."""
    return {name: value for name, value in values.items() if not _is_nothing(value)}


def _is_nothing(value: Any) -> bool:
    return value is None or value == {} or (value == "" and isinstance(value, str))
