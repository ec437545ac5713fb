"""``report.png``: the curves of a run's episodes side by side, and how they are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from procreward.optional import MATPLOTLIB, need
from procreward.report.content import row
from procreward.report.figures import Thresholds, find_flags
from procreward.report.records import atomic_path
from procreward.report.runs import Entry, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ["write_plot"]

_MOST = 48
"""Episodes that are drawn; more would not be read."""

_READING, _TRUTH, _DONE, _GOOD = "#0B6EBD", "#8B929C", "#D1690E", "#1D7A43"
_STALL, _BAD = "#D99A2B", "#BD2F2F"
_GRID = "#E4E4E4"


def write_plot(run: Run, path: Path, thresholds: Thresholds, *, title: str) -> None:
    """Draw a panel per episode, and histograms below.

    Args:
        run: The run; the first 48 of its episodes are drawn.
        path: Picture to write; replaced atomically.
        thresholds: What counts as a stall or a drop.
        title: Heading of the figure.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    need(MATPLOTLIB)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = run.entries[:_MOST]
    columns = min(6, max(3, math.ceil(math.sqrt(len(entries)))))
    lines = math.ceil(len(entries) / columns)
    # Texts are shown as they are: a dollar sign begins no formula.
    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(2.7 * columns, 1.75 * lines + 3.0), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.75 * lines + 0.6, 2.4])
        above, below = parts
        _draw_curves(above, entries, thresholds, columns, lines)
        _draw_histograms(below, run.entries, thresholds)
        shown = "" if len(entries) == len(run.entries) else f"first {len(entries)} of "
        figure.suptitle(f"{title}: {shown}{len(run.entries)} episodes", fontsize=12)
        with atomic_path(path) as staged:
            figure.savefig(staged)


def _draw_curves(
    figure: SubFigure, entries: Sequence[Entry], thresholds: Thresholds, columns: int, lines: int
) -> None:
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
    for panel, entry in zip(panels, entries, strict=False):
        _draw_episode(panel, entry, thresholds)
    for panel in list(figure.axes)[len(entries) :]:
        panel.set_visible(False)
    for panel in figure.axes[::columns]:
        panel.set_ylabel("progress", fontsize=8)
    _draw_legend(figure)


def _draw_legend(figure: SubFigure) -> None:
    """Explain the signs once, below the curves."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure.legend(
        handles=[
            Line2D([], [], color=_READING, linewidth=1.5, marker="o", markersize=2.4, label="read"),
            Line2D([], [], color=_TRUTH, linewidth=1.0, linestyle=(0, (2, 1.5)), label="true"),
            Line2D([], [], color=_BAD, linestyle="", marker="x", markersize=5, label="invalid"),
            Line2D([], [], color=_DONE, linewidth=1.2, label="complete"),
            Line2D([], [], color=_GOOD, linewidth=1.2, label="success, as recorded"),
            Patch(color=_STALL, alpha=0.3, linewidth=0, label="stall"),
            Patch(color=_BAD, alpha=0.3, linewidth=0, label="drop"),
        ],
        loc="outside lower center",
        ncols=7,
        frameon=False,
        fontsize=8,
    )


def _draw_episode(panel: Axes, entry: Entry, thresholds: Thresholds) -> None:
    trace = entry.record.trace
    for flag in find_flags(trace, thresholds):
        if flag.kind != "invalid":
            colour = _STALL if flag.kind == "stall" else _BAD
            panel.axvspan(flag.start, max(flag.end, flag.start + 1), color=colour, alpha=0.13, lw=0)
    truth = [(one.step, one.true_progress) for one in trace if one.true_progress is not None]
    panel.plot(*_columns(truth), color=_TRUTH, linewidth=1.0, linestyle=(0, (2, 1.5)))
    held = [(one.step, one.progress) for one in trace if one.progress is not None]
    panel.plot(*_columns(held), color=_READING, linewidth=1.5, drawstyle="steps-post")
    asked = [one for one in trace if one.queried]
    read = [(one.step, one.progress) for one in asked if one.valid and one.progress is not None]
    panel.plot(*_columns(read), color=_READING, linestyle="", marker="o", markersize=2.4)
    failed = [(one.step, one.progress or 0.0) for one in asked if not one.valid]
    panel.plot(*_columns(failed), color=_BAD, linestyle="", marker="x", markersize=5)
    for step, colour in ((entry.record.complete_step, _DONE), (entry.record.success_step, _GOOD)):
        if step is not None:
            panel.axvline(step, color=colour, linewidth=1.2)
    panel.set_title(_short(entry.name), fontsize=8.5)
    panel.set_ylim(-0.04, 1.06)
    panel.set_xlim(0, max(entry.record.steps, 1))
    panel.set_yticks([0.0, 0.5, 1.0])
    panel.tick_params(labelsize=7)
    panel.grid(color=_GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _short(text: str) -> str:
    return text if len(text) <= 28 else text[:27] + "…"


def _draw_histograms(figure: SubFigure, entries: Sequence[Entry], thresholds: Thresholds) -> None:
    rows = [row(entry, thresholds) for entry in entries]
    panels = figure.subplots(1, 4)
    bins = [index / 10 for index in range(11)]
    signed = [2 * edge - 1 for edge in bins]
    for panel, name, title, edges in (
        (panels[0], "final", "final progress", bins),
        (panels[1], "voc", "VOC", signed),
        (panels[2], "length", "length in steps", 10),
    ):
        values = [one[name] for one in rows if one[name] is not None]
        panel.hist(values, bins=edges, color=_READING, alpha=0.8)
        panel.set_title(title, fontsize=9)
    done = [one["complete"] is not None and one["held"] for one in rows]
    lost = [one["complete"] is not None and not one["held"] for one in rows]
    counts = [sum(done), sum(lost), len(rows) - sum(done) - sum(lost)]
    panels[3].bar(["complete", "lost again", "not"], counts, color=_READING, alpha=0.8)
    panels[3].set_title("completion", fontsize=9)
    for panel in panels:
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.yaxis.get_major_locator().set_params(integer=True)
