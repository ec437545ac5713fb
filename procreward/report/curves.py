"""``progress.png``: the progress curves of several episodes, one panel per kind of policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from procreward.errors import ConfigError, MissingDependencyError
from procreward.report.records import EpisodeRecord, StepTrace, atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_progress_figure"]

_COLOURS = ("#0B6EBD", "#D1690E", "#3B8E5A", "#8A5FBF", "#B33A5B", "#6B6B6B")
_INVALID = "#C22929"


def write_progress_figure(
    records: Sequence[EpisodeRecord], path: Path, *, title: str | None = None
) -> None:
    """Draw predicted progress against steps and save it as a picture.

    Each kind of policy gets a panel, each episode a colour: the solid line is the scorer's reading
    (held between queries, dots at the queries, crosses at invalid answers), the dashed line the
    true progress where the environment knows it, a star the environment's first success and a
    triangle the first step the model counted the task as done.

    Args:
        records: At least one episode.
        path: Picture to write, ``.png``; replaced atomically.
        title: Heading of the figure; default: environment, scorer and instruction.

    Raises:
        ConfigError: If there is no episode.
        MissingDependencyError: If matplotlib is not installed.
    """
    if not records:
        raise ConfigError("`records` must hold at least one episode, got none.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Figures need matplotlib: pip install 'procreward[report]'."
        ) from error

    kinds = list(dict.fromkeys(record.policy for record in records))
    figure = Figure(figsize=(max(4.4 * len(kinds), 6.5), 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, kind in zip(panels, kinds, strict=True):
        _draw_panel(panel, kind, [record for record in records if record.policy == kind])
    panels[0].set_ylabel("progress (0 to 1)")
    figure.suptitle(_heading(records[0]) if title is None else title, fontsize=12)
    # One or two panels are narrower than all signs in a row.
    _draw_legend(figure, columns=5 if len(kinds) > 2 else 3)
    with atomic_path(path) as staged:
        figure.savefig(staged)


def _heading(record: EpisodeRecord) -> str:
    return f"{record.env_id}, scorer {record.scorer}\n“{record.instruction}”"


def _draw_panel(panel: Axes, kind: str, records: Sequence[EpisodeRecord]) -> None:
    """Draw all episodes of one policy."""
    for index, record in enumerate(records):
        _draw_episode(panel, record, _COLOURS[index % len(_COLOURS)])
    wins = sum(record.final_success for record in records)
    panel.set_title(f"{kind}: {wins} of {len(records)} end in success", fontsize=10.5)
    panel.set_xlabel("environment step")
    panel.set_ylim(-0.04, 1.16)
    panel.set_xlim(left=0)
    panel.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    panel.grid(color="#E4E4E4", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_episode(panel: Axes, record: EpisodeRecord, colour: str) -> None:
    """Draw truth, reading, queries and markers of one episode."""
    truth = [
        (entry.step, entry.true_progress)
        for entry in record.trace
        if entry.true_progress is not None
    ]
    panel.plot(
        [step for step, _ in truth],
        [value for _, value in truth],
        color=colour,
        linewidth=1.1,
        linestyle=(0, (4, 2.5)),
        alpha=0.55,
    )
    known = [entry for entry in record.trace if entry.progress is not None]
    steps, values = _points(known)
    panel.plot(steps, values, color=colour, linewidth=1.8, drawstyle="steps-post")
    asked = [entry for entry in known if entry.queried and entry.valid]
    panel.plot(*_points(asked), color=colour, linestyle="", marker="o", markersize=3.2)
    failed = [entry for entry in record.trace if entry.queried and not entry.valid]
    panel.plot(*_points(failed), color=_INVALID, linestyle="", marker="x", markersize=6)
    for step, symbol, height in (
        (record.success_step, "*", 1.06),
        (record.complete_step, "v", 1.12),
    ):
        if step is not None:
            size = 11.0 if symbol == "*" else 6.0
            panel.plot([step], [height], color=colour, marker=symbol, markersize=size)


def _points(entries: Sequence[StepTrace]) -> tuple[list[int], list[float]]:
    return [entry.step for entry in entries], [entry.progress or 0.0 for entry in entries]


def _draw_legend(figure: Figure, *, columns: int) -> None:
    """Explain the signs once, below all panels."""
    from matplotlib.lines import Line2D

    def sign(label: str, colour: str = "#444444", **style: object) -> Line2D:
        return Line2D([], [], color=colour, label=label, **style)  # type: ignore[arg-type]  # mixed keywords

    figure.legend(
        handles=[
            sign("reading of the model", linewidth=1.8, marker="o", markersize=3.2),
            sign("true progress", linewidth=1.1, linestyle=(0, (4, 2.5)), alpha=0.6),
            sign("environment success", linestyle="", marker="*", markersize=11),
            sign("completion by the model", linestyle="", marker="v", markersize=6),
            sign("invalid answer", _INVALID, linestyle="", marker="x", markersize=6),
        ],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )
