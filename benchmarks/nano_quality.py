"""How good the shipped model is, on held-out seeds, through the same scorer that users call.

    python benchmarks/nano_quality.py --out nano_quality.json

renders held-out episodes once into ``--data`` (seeds from 1,000,000 on, never trained on) and
writes a flat dictionary of figures; every per-task figure has the task's name as suffix. Progress
errors are in points of a percentage.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from procreward.config import Preset, load_preset
from procreward.models.nano import WEIGHTS
from procreward.models.nano.metrics import auc, balanced_accuracy, spearman
from procreward.models.nano.readout import episode_windows
from procreward.models.nano.render import TEST_SEEDS, render_shards
from procreward.models.nano.shards import Shard, read_shard
from procreward.models.nano.tasks import TASKS, get_task
from procreward.registry import get_scorer, resolve
from procreward.types import Query, Scorer

Floats = npt.NDArray[np.float64]
MOVING_POINTS = 15.0
PEAK_POINTS = 40.0
NOISE_POINTS = 2.0
STATIC_QUERIES = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """A held-out episode."""

    task: str
    kind: str
    instruction: str
    frames: npt.NDArray[np.uint8]
    truth: Floats
    success: npt.NDArray[np.bool_]

    def queries(self, rows: npt.NDArray[np.int64], instruction: str | None = None) -> list[Query]:
        """Return one query per row of frame indices ``(windows, 4)``."""
        text = self.instruction if instruction is None else instruction
        return [
            Query(
                frames={"camera": self.frames[row]},
                instruction=text,
                frame_steps=tuple(int(i) for i in row),
                fps=5.0,
            )
            for row in rows
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """An episode with what the model said about it, in points; NaN where invalid."""

    episode: Episode
    predicted: Floats

    @property
    def failed(self) -> bool:
        """Whether the episode ends without success."""
        return not bool(self.episode.success[-1])

    @property
    def moving(self) -> bool:
        """Whether the true progress moves enough to be ranked."""
        return float(np.ptp(self.episode.truth)) >= MOVING_POINTS

    def held(self) -> Floats:
        """Return the predictions with invalid ones replaced by the last valid one, as in use."""
        values = self.predicted.copy()
        for index in np.flatnonzero(np.isnan(values)):
            values[index] = values[index - 1] if index else 0.0
        return values

    def rho(self) -> float:
        """Return the rank correlation with the truth."""
        return spearman(self.held(), self.episode.truth)

    def clock(self) -> float:
        """Return the rank correlation of elapsed time with the truth."""
        return spearman(np.arange(len(self.predicted)), self.episode.truth)

    def noisy_truth(self) -> float:
        """Return what the truth itself would get, read with an error of two points.

        Long stretches of a failing episode barely move, and ranks within them are noise.
        """
        truth = self.episode.truth
        noise = np.random.default_rng(len(truth)).normal(0.0, NOISE_POINTS, len(truth))
        return spearman(truth + noise, truth)


def load_episodes(data: Path, per_task: int) -> list[Episode]:
    """Render what is missing and read the held-out episodes."""
    episodes = []
    for name in TASKS:
        for path in render_shards(
            get_task(name), episodes=per_task, seed_start=TEST_SEEDS, out=data, shard_size=25
        ):
            episodes += split(read_shard(path))
    return episodes


def split(shard: Shard) -> list[Episode]:
    """Return a shard's episodes."""
    episodes = []
    for number, start in enumerate(shard.starts()):
        part = slice(int(start), int(start + shard.lengths[number]))
        episodes.append(
            Episode(
                task=shard.task,
                kind=shard.kinds[number],
                instruction=shard.instruction,
                frames=shard.frames[part],
                truth=100.0 * shard.progress[part].astype(np.float64),
                success=shard.success[part],
            )
        )
    return episodes


Verdicts = list[tuple[str, bool, bool]]


def build_scorer(preset: Preset, mode: str | None) -> Scorer:
    """Build the scorer of a preset, in another mode (``mode`` or ``mode+readout``) if asked."""
    config = preset.scorer
    if mode is not None:
        name, _, readout = mode.partition("+")
        changed = {"mode": name, "readout": readout or "greedy"}
        config = replace(config, options={**config.options, **changed})
    return get_scorer(resolve(config))


def ask(scorer: Scorer, queries: Sequence[Query]) -> Floats:
    """Return the progress of every query in points, NaN where the model gave none."""
    scores = scorer.score(queries)
    return np.array([np.nan if s.progress is None else 100.0 * s.progress for s in scores])


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def progress_figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the figures of predicted against true progress."""
    errors = np.concatenate([o.predicted - o.episode.truth for o in outcomes])
    failing = [o for o in outcomes if o.failed]
    moving = [o for o in failing if o.moving]
    of = {kind: [o for o in outcomes if o.episode.kind == kind] for kind in ("expert", "retry")}
    peaks = [bool(np.any(o.predicted - o.episode.truth > PEAK_POINTS)) for o in failing]
    misses = [p for p, o in zip(peaks, failing, strict=True) if o.episode.kind == "miss"]
    return {
        "spearman_expert": mean([o.rho() for o in of["expert"]]),
        "spearman_retry": mean([o.rho() for o in of["retry"]]),
        "spearman_failing": mean([o.rho() for o in moving]),
        "clock_spearman_expert": mean([o.clock() for o in of["expert"]]),
        "clock_spearman_retry": mean([o.clock() for o in of["retry"]]),
        "clock_spearman_failing": mean([o.clock() for o in moving]),
        "noisy_truth_spearman_failing": mean([o.noisy_truth() for o in moving]),
        "mae_points": float(np.nanmean(np.abs(errors))),
        "auc_success": auc([o.held()[-1] for o in outcomes], [not o.failed for o in outcomes]),
        "false_peak_share": mean(peaks),
        "false_peak_share_miss": mean(misses),
        "failing_episodes": len(failing),
        "failing_episodes_moving": len(moving),
        "miss_episodes": len(misses),
        "episodes": len(outcomes),
        "invalid_rate": float(np.isnan(errors).mean()),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The controls of one expert episode; progress as a share, the error in points."""

    task: str
    slope: float
    right: float
    wrong: float
    wrong_finished: float
    reworded: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """An episode to ask about, and what to try on it besides.

    Attributes:
        episode: The episode.
        wrong: Another task's instruction for the controls, or None for no controls.
    """

    episode: Episode
    wrong: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """What the models said about an episode."""

    outcome: Outcome
    control: Control | None
    verdicts: Verdicts


def plan_jobs(episodes: Sequence[Episode]) -> list[Job]:
    """Return one job per episode; expert episodes get the controls, each its own wrong task."""
    names = list(TASKS)
    instructions = {episode.task: episode.instruction for episode in episodes}
    jobs = []
    experts = 0
    for episode in episodes:
        wrong = None
        if episode.kind == "expert":
            own = names.index(episode.task)
            other = names[(own + 1 + experts % (len(names) - 1)) % len(names)]
            # The environment's own sentence for the other task, or a trained one if not rendered.
            wrong = instructions.get(other, TASKS[other].phrasings[0])
            experts += 1
        jobs.append(Job(episode=episode, wrong=wrong))
    return jobs


_models: dict[str, Scorer] = {}
"""The models of this process, see ``set_up``."""


def set_up(mode: str | None, judged: bool) -> None:
    """Build the models of a process."""
    _models["scorer"] = build_scorer(load_preset("nano"), mode)
    if judged:
        _models["judge"] = build_scorer(load_preset("nano-judge"), None)


def measure(job: Job) -> Measured:
    """Ask the models about one episode."""
    episode = job.episode
    queries = episode.queries(episode_windows(len(episode.frames)))
    outcome = Outcome(episode=episode, predicted=ask(_models["scorer"], queries))
    return Measured(
        outcome=outcome,
        control=None if job.wrong is None else run_control(outcome, job.wrong),
        verdicts=run_judge(episode) if "judge" in _models else [],
    )


def measure_all(
    jobs: Sequence[Job], mode: str | None, judged: bool, workers: int
) -> list[Measured]:
    """Ask about all episodes, in ``workers`` processes."""
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=set_up, initargs=(mode, judged)
    ) as pool:
        return list(tqdm(pool.map(measure, jobs, chunksize=4), total=len(jobs), leave=False))


def run_control(outcome: Outcome, wrong: str) -> Control:
    """Ask about an episode held still, under another instruction and in other words."""
    scorer, episode = _models["scorer"], outcome.episode
    still = np.zeros((STATIC_QUERIES, 4), dtype=np.int64)
    level = ask(scorer, episode.queries(still)) / 100.0
    rows = episode_windows(len(episode.frames))[::3]
    reworded = ask(scorer, episode.queries(rows, TASKS[episode.task].held_out))
    last = episode_windows(len(episode.frames))[-1:]
    return Control(
        task=episode.task,
        slope=abs(float(np.polyfit(np.linspace(0, 1, len(level)), level, 1)[0])),
        right=float(np.nanmean(outcome.predicted[::3])) / 100.0,
        wrong=float(np.nanmean(ask(scorer, episode.queries(rows, wrong)))) / 100.0,
        # An expert's last picture is that of a finished task, only not of the one that is named.
        wrong_finished=float(ask(scorer, episode.queries(last, wrong))[0]) / 100.0,
        reworded=float(np.nanmean(np.abs(reworded - episode.truth[::3]))),
    )


def control_figures(controls: Sequence[Control]) -> dict[str, float]:
    """Return the static-video and instruction controls."""
    return {
        "static_slope": max((c.slope for c in controls), default=float("nan")),
        "right_instruction_mean": mean([c.right for c in controls]),
        "wrong_instruction_mean": mean([c.wrong for c in controls]),
        "wrong_instruction_finished_mean": mean([c.wrong_finished for c in controls]),
        "mae_points_new_wording": mean([c.reworded for c in controls]),
    }


def run_judge(episode: Episode) -> Verdicts:
    """Return task, verdict and truth of every second window."""
    scores = _models["judge"].score(episode.queries(episode_windows(len(episode.frames))[::2]))
    truths = episode.success[::2].tolist()
    return [(episode.task, bool(s.complete), t) for s, t in zip(scores, truths, strict=True)]


def judge_figures(verdicts: Verdicts) -> dict[str, float]:
    """Return how well the judge tells complete from not complete."""
    accuracy = balanced_accuracy([v[1] for v in verdicts], [v[2] for v in verdicts])
    return {"judge_balanced_accuracy": accuracy}


def milliseconds(scorer: Scorer, episode: Episode, repetitions: int = 30) -> float:
    """Return the median time of one query on one core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    queries = episode.queries(episode_windows(len(episode.frames)))
    times = []
    for index in range(repetitions):
        began = time.perf_counter()
        scorer.score([queries[index % len(queries)]])
        times.append(1000 * (time.perf_counter() - began))
    torch.set_num_threads(threads)
    return float(np.median(times))


def by_task(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes of each task that has any."""
    groups = {name: [o for o in outcomes if o.episode.task == name] for name in TASKS}
    return {name: group for name, group in groups.items() if group}


def run(
    data: Path, per_task: int, mode: str | None, *, judged: bool, workers: int
) -> dict[str, float | str]:
    """Measure everything."""
    preset = load_preset("nano")
    episodes = load_episodes(data, per_task)
    measured = measure_all(plan_jobs(episodes), mode, judged, workers)
    outcomes = [m.outcome for m in measured]
    controls = [m.control for m in measured if m.control is not None]
    verdicts = [verdict for m in measured for verdict in m.verdicts]
    figures: dict[str, float | str] = {
        "mode": mode or str(preset.scorer.options.get("mode", "reasoning"))
    }
    figures |= progress_figures(outcomes) | control_figures(controls)
    figures |= judge_figures(verdicts) if judged else {}
    for name, group in by_task(outcomes).items():
        parts = progress_figures(group)
        parts |= control_figures([c for c in controls if c.task == name])
        parts |= judge_figures([v for v in verdicts if v[0] == name]) if judged else {}
        figures |= {f"{key}_{name}": value for key, value in parts.items()}
    if judged:
        judge = build_scorer(load_preset("nano-judge"), None)
        figures["judge_query_ms_one_core"] = milliseconds(judge, episodes[0])
    for choice in {"direct": 0, "reasoning": 0, str(figures["mode"]): 0}:
        figures[f"query_ms_one_core_{choice}"] = milliseconds(
            build_scorer(preset, choice), episodes[0]
        )
    figures["query_ms_one_core"] = figures[f"query_ms_one_core_{figures['mode']}"]
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()]
    figures["size_mb"] = sum(sizes) / 1e6
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data/nano-test"))
    parser.add_argument("--episodes", type=int, default=100, help="held-out episodes per task")
    modes = ("reasoning", "reasoning+expectation", "direct", "direct+expectation")
    parser.add_argument("--mode", choices=modes, default=None)
    parser.add_argument("--no-judge", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="processes that ask the models")
    args = parser.parse_args()
    figures = run(
        args.data, args.episodes, args.mode, judged=not args.no_judge, workers=args.workers
    )
    args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key, value in figures.items():
        if not key.endswith(tuple(f"_{name}" for name in TASKS)):
            print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
