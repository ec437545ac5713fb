"""How many environments a machine sustains with a scorer: what ``procreward bench`` prints.

Windows slide over synthetic pictures and all environments ask at once, through ``Scorer.score``
alone, so every reward model can be measured, behind a server as well. From the time of a query
follows at which k (steps between two queries) so many environments can be rewarded without making
them wait.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from procreward.checks import check, check_frame_size, check_int, is_number

if TYPE_CHECKING:
    from procreward.bench.frames import Episode
    from procreward.config import Preset
    from procreward.types import Scorer

__all__ = ["BenchConfig", "Sustained", "measure_sustained", "run_bench"]

Say = Callable[[str], None]

_DEFAULT_SIZE = (256, 256)
_SCENES = 4
_WARM_UPS = 2
_LEAST, _MOST = 3, 16
_STEPS_SHOWN = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """Measure how many environments this machine sustains with a reward model."""

    scorer: tyro.conf.Positional[str] = "nano"
    """Reward model: preset, registered scorer, model folder or hub id."""
    envs: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = (1, 4, 16, 64)
    """Numbers of environments that ask at once."""
    step_hz: float = 20.0
    """Control steps per second of an environment."""
    every_k_steps: int = 8
    """Steps that windows move by between two queries; even, for models of videos."""
    instruction: str = "Lift the red cube."
    """The task in words."""
    seconds: float = 5.0
    """Time to measure for at each number of environments."""
    out: Path | None = None
    """File for the figures, as JSON."""

    def __post_init__(self) -> None:
        check(len(self.envs) > 0, "envs", "at least one number", self.envs)
        for count in self.envs:
            check_int("envs", count, least=1)
        check_int("every_k_steps", self.every_k_steps, least=1)
        for name in ("step_hz", "seconds"):
            value = getattr(self, name)
            check(is_number(value) and value > 0, name, "above 0", value)
        if self.out is not None:
            check(not self.out.is_dir(), "out", "a file", str(self.out))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """What was measured for one number of environments.

    Attributes:
        environments: How many ask at once.
        latency_ms: Median time until all are answered.
        ms_per_query: The same per environment.
        queries_per_s: Queries answered per second.
        peak_gib: Most memory so far: the GPU's if the model is on one, else the process's.
        every_k_steps: Least number of steps between two queries that gives time enough to answer.
        invalid_share: Share of the answers without a usable value; synthetic pictures confuse.
    """

    environments: int
    latency_ms: float
    ms_per_query: float
    queries_per_s: float
    peak_gib: float
    every_k_steps: int
    invalid_share: float


def run_bench(config: BenchConfig, say: Say) -> list[Sustained]:
    """Measure a scorer and print a table.

    Args:
        config: What, and how much.
        say: Takes one line.

    Returns:
        One entry per number of environments, in increasing order.

    Raises:
        ProcrewardError: If the scorer cannot be built or does not answer.
    """
    from procreward.registry import get_scorer, resolve

    handle = resolve(config.scorer)
    scorer = get_scorer(handle)
    preset = handle.preset
    account = dict(scorer.describe())
    known = [str(account[name]) for name in ("device", "dtype", "engine") if name in account]
    say(
        f"{config.scorer} ({', '.join(known) or 'no model'}): {preset.window_frames} frames of "
        f"{'x'.join(map(str, frame_size(preset)))} in {len(views_of(preset))} view(s), moving by "
        f"{config.every_k_steps} steps"
    )
    say(f"{'envs':>6}{'ms/query':>12}{'queries/s':>12}{'memory GiB':>12}   every k steps")
    rows = []
    for count in sorted(set(config.envs)):
        row = measure_sustained(scorer, preset, count, config, cuda=_on_cuda(account))
        say(
            f"{row.environments:>6}{row.ms_per_query:>12.2f}{row.queries_per_s:>12.1f}"
            f"{row.peak_gib:>12.2f}   {row.every_k_steps}"
        )
        rows.append(row)
    for line in summary(rows, config.step_hz):
        say(line)
    say("Synthetic pictures: answers to yours may be longer and take more time.")
    if config.out is not None:
        figures = {
            "scorer": account,
            "step_hz": config.step_hz,
            "moved_by_steps": config.every_k_steps,
            "rows": [asdict(row) for row in rows],
        }
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return rows


def measure_sustained(
    scorer: Scorer, preset: Preset, count: int, config: BenchConfig, *, cuda: bool = False
) -> Sustained:
    """Measure one number of environments.

    Args:
        scorer: The scorer.
        preset: Its window and frame size.
        count: Environments.
        config: How much.
        cuda: Whether its model is on a GPU of this process.

    Returns:
        What was measured.
    """
    from procreward.bench.frames import sliding

    moments = list(
        sliding(
            [[episode] for episode in _episodes(preset, count, config)],
            window=preset.window_frames,
            stride=preset.frame_stride_steps,
            every=config.every_k_steps,
        )
    )
    seconds: list[float] = []
    invalid: list[bool] = []
    for number, queries in enumerate(moments):
        began = time.perf_counter()
        scores = scorer.score(queries)
        if number >= _WARM_UPS:
            seconds.append(time.perf_counter() - began)
            invalid += [not score.valid for score in scores]
        if len(seconds) >= _LEAST and sum(seconds) > config.seconds:
            break
    release = getattr(scorer, "release", None)
    if release is not None:
        release([query.stream for query in moments[0]])
    latency = statistics.median(seconds)
    return Sustained(
        environments=count,
        latency_ms=1000 * latency,
        ms_per_query=1000 * latency / count,
        queries_per_s=count / latency,
        peak_gib=_peak_gib(cuda),
        every_k_steps=max(1, math.ceil(latency * config.step_hz)),
        invalid_share=statistics.fmean(invalid),
    )


def summary(rows: Sequence[Sustained], step_hz: float) -> list[str]:
    """Say how many environments are sustained at which k.

    Args:
        rows: What was measured.
        step_hz: Control steps per second.

    Returns:
        One line for each k at which more environments are sustained than at the one before.
    """
    lines, before = [], 0
    for steps in _STEPS_SHOWN:
        most = max((row.environments for row in rows if row.every_k_steps <= steps), default=0)
        if most > before:
            lines.append(
                f"At {step_hz:g} steps/s and a query every {steps} step(s) this machine sustains "
                f"{most} environment(s)."
            )
            before = most
    if not lines:
        least = min(rows, key=lambda row: row.every_k_steps)
        lines.append(
            f"At {step_hz:g} steps/s this machine sustains {least.environments} environment(s) "
            f"with a query every {least.every_k_steps} steps."
        )
    return lines


def views_of(preset: Preset) -> tuple[str, ...]:
    """Return the views that a scorer is set up for, or one.

    Args:
        preset: Its preset.
    """
    options: Mapping[str, Any] = preset.scorer.options
    if options.get("views"):
        return tuple(options["views"])
    return (options.get("view") or "front",)


def frame_size(preset: Preset) -> tuple[int, int]:
    """Return the ``(width, height)`` that a scorer is set up for, or 256x256.

    Args:
        preset: Its preset.
    """
    asked = preset.frame_size or preset.scorer.options.get("frame_size")
    return check_frame_size("frame_size", asked) if asked else _DEFAULT_SIZE


def _episodes(preset: Preset, count: int, config: BenchConfig) -> list[Episode]:
    """As many episodes as environments, with a few different scenes among them."""
    from procreward.bench.frames import Episode, moving_frames

    moments = _WARM_UPS + _MOST
    window = (preset.window_frames - 1) * preset.frame_stride_steps + 1
    length = window + (moments - 1) * config.every_k_steps
    size, views = frame_size(preset), views_of(preset)
    scenes = [
        {
            view: moving_frames(length, size, seed=index * len(views) + place)
            for place, view in enumerate(views)
        }
        for index in range(min(count, _SCENES))
    ]
    return [
        Episode(
            name=f"bench-{count}-{index}",
            frames=scenes[index % len(scenes)],
            instruction=config.instruction,
            fps=config.step_hz,
        )
        for index in range(count)
    ]


def _on_cuda(account: Mapping[str, object]) -> bool:
    return str(account.get("device", "")).startswith("cuda")


def _peak_gib(cuda: bool) -> float:
    import torch

    from procreward.bench.clock import Clock

    return Clock(torch.device("cuda" if cuda else "cpu")).peak_gib()
