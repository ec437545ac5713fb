"""The evaluations of a run: ``evaluations.jsonl``, the best policy, the table and the curve.

* :class:`History` - takes results, keeps the file and the best policy.
* :class:`Evaluation` - one line of the file.
* :func:`read_evaluations` - the file.
* :func:`format_evaluations` - a table for terminals.
* :func:`write_learning_curve` - a picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from procreward.config import field_names
from procreward.errors import ConfigError, MissingDependencyError
from procreward.report.records import atomic_path
from procreward.training.evaluation import EvalResult

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

__all__ = [
    "Evaluation",
    "History",
    "format_evaluations",
    "read_evaluations",
    "write_learning_curve",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """An evaluation and where in the run it was.

    Attributes:
        step: Environment steps that the learner had taken.
        success_rate: As :class:`~procreward.training.evaluation.EvalResult` has it, and so on.
        mean_length: Mean number of steps.
        mean_return: Mean return by the environment's own reward.
        mean_progress: Mean of the episodes' highest true progress, or None.
        episodes: Number of episodes.
        queries: Queries put to the reward model for training so far.
        failures: How many of them got no usable answer.
    """

    step: int
    success_rate: float | None
    mean_length: float
    mean_return: float
    mean_progress: float | None
    episodes: int
    queries: int
    failures: int

    @property
    def rank(self) -> tuple[float, float, float]:
        """What one is better by: success, then true progress, then the environment's return."""
        return (
            -1.0 if self.success_rate is None else self.success_rate,
            -1.0 if self.mean_progress is None else self.mean_progress,
            self.mean_return,
        )


class History:
    """Keeps the evaluations of a run, in memory and on disk.

    The best policy is chosen by true success, which the learner never sees; who wants a choice
    without it takes the newest checkpoint.
    """

    def __init__(self, out: Path, *, up_to: int | None = None) -> None:
        """Begin, or go on.

        Args:
            out: Folder of the run.
            up_to: Step of the checkpoint that is gone on from; later evaluations are dropped,
                though one whose policy is ``OUT/best`` is still to be beaten. None forgets all.

        Raises:
            ConfigError: If a file of earlier ones cannot be read.
        """
        self._out, self.path = out, out / "evaluations.jsonl"
        earlier = read_evaluations(self.path) if up_to is not None and self.path.exists() else []
        self.entries = [entry for entry in earlier if entry.step <= (up_to or 0)]
        kept = out / "best" / "best.json"
        # Of a step that is taken again, maybe; the policy is still there and its evaluation holds.
        self._kept = [_read(kept)] if up_to is not None and kept.is_file() else []
        self._write()

    @property
    def latest(self) -> Evaluation | None:
        """The newest evaluation."""
        return self.entries[-1] if self.entries else None

    @property
    def last_step(self) -> int | None:
        """The newest evaluation's step."""
        return None if self.latest is None else self.latest.step

    @property
    def best(self) -> Evaluation | None:
        """The best one, the earliest of equals."""
        return max(self._kept + self.entries, key=lambda entry: entry.rank, default=None)

    def add(
        self, model: BaseAlgorithm, result: EvalResult, *, queries: int, failures: int
    ) -> Evaluation:
        """Take a result, write the file, and keep the policy if it is the best so far.

        Args:
            model: The learner that was evaluated.
            result: What came out.
            queries: Queries put to the reward model so far.
            failures: How many of them got no usable answer.
        """
        from procreward.training.checkpoints import save_best

        entry = Evaluation(
            step=model.num_timesteps,
            success_rate=result.success_rate,
            mean_length=result.mean_length,
            mean_return=result.mean_return,
            mean_progress=result.mean_progress,
            episodes=len(result.seeds),
            queries=queries,
            failures=failures,
        )
        self.entries.append(entry)
        self._write()
        if self.best is entry:
            save_best(self._out, model, asdict(entry))
        return entry

    def _write(self) -> None:
        with atomic_path(self.path) as staged:
            lines = [json.dumps(asdict(entry)) + "\n" for entry in self.entries]
            staged.write_text("".join(lines), encoding="utf-8")


def read_evaluations(path: Path) -> list[Evaluation]:
    """Read ``evaluations.jsonl``.

    Args:
        path: The file.

    Raises:
        ConfigError: If a line is no evaluation; the message names it.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(_parsed(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"`{path}` line {number} must be an evaluation, got {line[:60]!r} ({error}); "
                "remove the line to go on."
            ) from error
    return found


def _parsed(text: str) -> Evaluation:
    raw = json.loads(text)
    return Evaluation(**{name: raw[name] for name in field_names(Evaluation)})


def _read(path: Path) -> Evaluation:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"`{path}` must be an evaluation, got something else ({error}); remove the link "
            f"`{path.parent}` to go on."
        ) from error


def format_evaluations(entries: Sequence[Evaluation]) -> str:
    """Lay out one line per evaluation under a header.

    Args:
        entries: The evaluations.
    """
    head = ("step", "success", "true progress", "episode steps", "env return", "queries", "failed")
    rows = [head, *(_cells(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cells(entry: Evaluation) -> tuple[str, ...]:
    def percent(share: float | None) -> str:
        return "unknown" if share is None else f"{100 * share:.0f} %"

    return (
        str(entry.step),
        percent(entry.success_rate),
        percent(entry.mean_progress),
        f"{entry.mean_length:.1f}",
        f"{entry.mean_return:.2f}",
        str(entry.queries),
        str(entry.failures),
    )


def write_learning_curve(entries: Sequence[Evaluation], path: Path, *, title: str) -> None:
    """Draw true success and true progress against the steps.

    Args:
        entries: At least one evaluation.
        path: Picture to write, ``.png``; replaced atomically.
        title: Heading.

    Raises:
        ConfigError: If there is no evaluation.
        MissingDependencyError: If matplotlib is not installed.
    """
    if not entries:
        raise ConfigError("`entries` must hold at least one evaluation, got none.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "Figures need matplotlib: pip install 'procreward[report]'."
        ) from error

    figure = Figure(figsize=(6.5, 4.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for label, style, points in (
        ("true success rate", "o-", [(entry.step, entry.success_rate) for entry in entries]),
        ("true progress", "s--", [(entry.step, entry.mean_progress) for entry in entries]),
    ):
        known = [(step, value) for step, value in points if value is not None]
        if known:
            steps, values = zip(*known, strict=True)
            panel.plot(steps, values, style, label=label, markersize=4)
            panel.legend(frameon=False, loc="lower right")
    panel.set_xlabel("environment steps")
    panel.set_ylabel(f"mean of {entries[-1].episodes} episodes")
    panel.set_ylim(-0.04, 1.04)
    panel.set_xlim(left=0)
    panel.grid(color="#E4E4E4", linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(title, fontsize=10.5)
    with atomic_path(path) as staged:
        figure.savefig(staged)
