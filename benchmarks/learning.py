"""Does a policy learn from the camera's progress alone? Meta-World and Lift, with the real model.

    OMP_NUM_THREADS=1 python benchmarks/learning.py --jobs 2

trains every run of the plan that ``--out`` does not hold yet, and prints the table. A finished run
is written at once, so the command can be stopped and started again. ``--only drawer-close`` and
``--only drawer-close/nano-delta`` pick runs by the beginning of their key, ``--seeds 0 1`` by seed;
``--table`` prints and ``--plot`` draws what is there, without training.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tyro
from _learning_report import curves, tables
from _learning_runs import NANO, OTHERS, TASKS, Run, perform

MAIN_TASKS = ("drawer-close", "window-open", "button-press-topdown")
OUT = Path("benchmarks/results/learning.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Train policies on camera progress and on what it is to be compared with."""

    out: Path = OUT
    """Where finished runs are kept, a JSON file."""
    jobs: int = 2
    """Runs at a time, each in a process of its own."""
    only: tuple[str, ...] = ()
    """Beginnings of keys, such as `drawer-close/nano-delta`; none means all of the plan."""
    seeds: tuple[int, ...] = ()
    """Seeds to train; none means those of the plan."""
    scorer: str = "nano"
    """The reward model; another than `nano` is for trying out."""
    steps: int = 0
    """Environment steps of a run; 0 for the task's own."""
    raw: Path | None = None
    """Folder for policies and single readings, which are not needed for the table."""
    table: bool = False
    """Print the table and train nothing."""
    plot: Path | None = None
    """Folder for the curves, a picture per task; trains nothing."""


def plan() -> list[Run]:
    """Return all runs, in the order in which they are trained."""

    def runs(tasks: Sequence[str], rewards: Sequence[str], seeds: Sequence[int]) -> Iterator[Run]:
        for reward in rewards:
            for seed in seeds:
                for task in tasks:
                    k = TASKS[task].every_k_steps
                    yield Run(task=task, reward=reward, every_k_steps=k, seed=seed)

    out = [
        *runs(MAIN_TASKS, ("nano-delta", "truth-delta"), (0,)),
        *runs(MAIN_TASKS, ("truth-delta", "sparse", "dense", "clock"), range(5)),
        *runs(MAIN_TASKS, ("nano-delta",), range(5)),
        *runs(MAIN_TASKS, ("nano-raw",), range(5)),
        *runs(MAIN_TASKS, ("nano-pbrs",), range(3)),
    ]
    out += [
        Run(task="drawer-close", reward=reward, every_k_steps=k, seed=seed)
        for reward in ("truth-delta", "nano-delta")
        for k in (16, 4, 1)
        for seed in range(3)
    ]
    for seed in range(2):
        out += runs(("lift",), ("nano-delta", "truth-delta", "sparse"), (seed,))
    out += [replace(next(runs(("drawer-close",), ("nano-delta",), (0,))), latency="deferred")]
    return list(dict.fromkeys(out))


def chosen(settings: Settings) -> list[Run]:
    """Return the runs of the plan that were asked for."""
    runs = plan()
    if any(prefix.split("/")[0] == "toy" for prefix in settings.only):
        runs += [
            Run(task="toy", reward=reward, every_k_steps=4, seed=seed)
            for reward in (*NANO, *OTHERS)
            if reward != "dense"
            for seed in range(2)
        ]
    if settings.only:
        runs = [run for run in runs if any(_begins(run.key, prefix) for prefix in settings.only)]
    if settings.seeds:
        runs = [run for run in runs if run.seed in settings.seeds]
    return [replace(run, scorer=settings.scorer, steps=settings.steps) for run in runs]


def _begins(key: str, prefix: str) -> bool:
    return f"{key}/".startswith(f"{prefix.rstrip('/')}/")


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the finished runs by key."""
    if not path.exists():
        return {}
    records = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return {record["key"]: record for record in records}


def add(path: Path, record: dict[str, Any]) -> None:
    """Add a finished run, whoever else is adding one, and never leave half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        runs = read(path) | {record["key"]: record}
        lines = ",\n".join(json.dumps(runs[key], sort_keys=True) for key in sorted(runs))
        staged = path.with_suffix(".part")
        staged.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")
        os.replace(staged, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def train(settings: Settings) -> None:
    """Train what is not there yet."""
    done = read(settings.out)
    left = [run for run in chosen(settings) if run.key not in done]
    print(f"{len(left)} runs to train, {len(done)} are there", flush=True)
    context = get_context("spawn")
    with ProcessPoolExecutor(settings.jobs, mp_context=context) as pool:
        futures = [pool.submit(perform, run, settings.raw) for run in left]
        for number, future in enumerate(as_completed(futures), start=1):
            record = future.result()
            add(settings.out, record)
            curve = " ".join(f"{value:.2f}" for value in record["success"])
            print(f"{number:3}/{len(left)} {record['key']:40} {curve}", flush=True)


def main(settings: Settings) -> None:
    """Run the command line."""
    if not settings.table and settings.plot is None:
        train(settings)
    records = list(read(settings.out).values())
    every_k_steps = {name: task.every_k_steps for name, task in TASKS.items()}
    if settings.plot is not None:
        for path in curves(records, every_k_steps, settings.plot):
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
    if records:
        print(tables(records, every_k_steps))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
