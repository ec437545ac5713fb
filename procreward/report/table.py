"""A plain-text table of episodes, for terminals and logs."""

from __future__ import annotations

from collections.abc import Sequence

from procreward.report.records import EpisodeRecord

__all__ = ["format_table"]

_HEADER = (
    "policy",
    "episode",
    "steps",
    "return",
    "final progress",
    "completion",
    "env success",
    "queries",
    "invalid answers",
)


def format_table(records: Sequence[EpisodeRecord]) -> str:
    """Lay out one line per episode under a header.

    Args:
        records: The episodes, one per line in this order.

    Returns:
        Lines joined by newlines, without a trailing one. Words are left-aligned, numbers right.
    """
    rows = [_HEADER, *(_row(record) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _row(record: EpisodeRecord) -> tuple[str, ...]:
    progress = record.final_progress
    return (
        record.policy,
        str(record.episode),
        str(record.steps),
        f"{record.episode_return:+.3f}",
        "none" if progress is None else f"{100 * progress:.0f} %",
        _moment(record.complete_step, held=record.trace[-1].complete),
        _moment(record.success_step, held=record.final_success),
        str(record.queries),
        str(record.invalid_answers),
    )


def _moment(step: int | None, *, held: bool) -> str:
    if step is None:
        return "no"
    return f"step {step}" if held else f"step {step}, lost"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join(cells).rstrip()
