r"""How fast recordings are relabelled, against the loop that one would write without this package.

The **naive loop** takes one frame after the other: it seeks to the window's frames in the video
and decodes them (in this process, by OpenCV, where that is installed), preprocesses them with the
processor of transformers, and has the model ``generate`` the whole answer, one query a call.
**Ours** is ``procreward relabel`` from its sources to its published files. Both have the same
videos, windows, prompts and weights, load nothing inside of what is timed, and run in turns::

    OMP_NUM_THREADS=1 python benchmarks/relabel.py --out benchmarks/results/relabel_cpu.json
    python benchmarks/relabel.py --device cuda --model full --most-frames 60 --naive-frames 16 \
        --step-episodes 1 --repetitions 2 --out relabel_cuda.json

* ``speedup_vs_naive``: frames per second, ours over the naive loop's, every frame asked about
  (``--every-k-frames 1``); the naive loop's cost of a frame is that of ``--naive-frames`` frames
  spread over all episodes. ``speedup_vs_naive_decoded_once`` leaves out what the naive loop spends
  on seeking and decoding.
* ``disagreements``: frames of the naive loop whose progress is another one than ours.
* ``decode_share``: share of the time for which the model stands still for pictures.
* ``gpu_utilisation``: mean of the driver's samples while ours runs; null, with the reason, without
  a GPU.
* ``steps_ms_per_query``: milliseconds per query as the loop becomes ours; every row adds one thing
  to the row before. ``decoded_once``: the naive loop without its decoding, as if frames were at
  hand; ``encoded_once``: our engine with transformers' operators, which ends an answer behind its
  number, one query at a time (``--step-episodes`` episodes); ``answers_drafted``: with the last
  answer as a guess and operators of its own; ``batched``: the queries of 16 episodes together;
  ``overlapped``: ours as it is.

``--model nano`` is the shipped model on rendered episodes of Lift; ``full`` a Qwen3-VL-2B with
random weights on drawn pictures, whose answers are imposed (of about ninety tokens; all arithmetic
is real); ``tiny`` the same code on a small one. Medians over ``--repetitions``; spreads are the
largest over the smallest value. ``--clock cpu`` times processors instead of the wall, for a machine
that has other work: overlap saves nothing there.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from _relabel_cases import Case, WithoutAhead, nano_case, random_case
from _relabel_naive import Naive, NaiveTimes, decoder_name

from procreward.relabel import RelabelConfig, RelabelReport, relabel
from procreward.relabel.readings import read_readings
from procreward.relabel.run import run_jobs
from procreward.relabel.scoring import GroupJob, GroupResult, score_group

TOLERANCE = 1e-4
"""Progress that differs by more is another one: a digit of an answer is 0.01 or 0.0001."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure how fast recordings are relabelled."""

    model: Literal["nano", "full", "tiny"] = "nano"
    """The shipped model, or random weights: two billion of them, or few."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda or cuda:N."""
    episodes: int = 24
    """Episodes, a video each."""
    most_frames: int = 100
    """Frames of an episode, at most."""
    size: int = 256
    """Side of the videos' pictures in pixels."""
    every_k_frames: int = 1
    """Frames from one query to the next."""
    naive_frames: int = 48
    """Frames that the naive loop is timed on."""
    step_episodes: int = 2
    """Episodes that are asked about one query at a time, for the steps from the naive loop to ours;
    0 for no steps."""
    repetitions: int = 3
    """Runs of each kind; the median counts."""
    clock: Literal["wall", "cpu"] = "wall"
    """Time that passes, or that of processors, those of decoders included."""
    cache: Path = Path("build/bench")
    """Where rendered episodes are kept."""
    out: Path | None = None
    """File for the figures, as JSON."""


class Clock:
    """Time of one kind, to the end of what the device was told."""

    def __init__(self, settings: Settings) -> None:
        self._wall = settings.clock == "wall"
        self._cuda = settings.device.startswith("cuda")

    def now(self) -> float:
        """Return seconds since some moment."""
        if self._cuda:
            torch.cuda.synchronize()
        if self._wall:
            return time.perf_counter()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime


class Utilisation:
    """Samples how busy a GPU is."""

    def __init__(self, device: str) -> None:
        self.samples: list[float] = []
        self.reason = ""
        self._device = device
        self._read = self._by_nvml
        if not device.startswith("cuda"):
            self.reason = "no GPU"
            return
        for read in (self._by_nvml, self._by_command):
            try:
                read()
            except Exception as error:  # what reads it may be absent in several ways
                self.reason = f"cannot be read: {error}"
            else:
                self._read, self.reason = read, ""
                break

    @property
    def mean(self) -> float | None:
        """Mean of the samples, in [0, 1], or None."""
        return statistics.fmean(self.samples) if self.samples else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample on a thread while something runs in the context."""
        if self.reason:
            yield
            return
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                self.samples.append(self._read())

        thread = threading.Thread(target=watch)
        thread.start()
        yield
        over.set()
        thread.join()

    def _by_nvml(self) -> float:
        return torch.cuda.utilization(self._device) / 100.0

    def _by_command(self) -> float:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(found.split()[torch.device(self._device).index or 0]) / 100.0


def build_case(settings: Settings, folder: Path) -> Case:
    """Write the videos and build the model."""
    if settings.model == "nano":
        return nano_case(
            folder,
            settings.cache,
            episodes=settings.episodes,
            size=settings.size,
            most_frames=settings.most_frames,
        )
    return random_case(
        folder,
        device=settings.device,
        model=settings.model,
        episodes=settings.episodes,
        size=settings.size,
        most_frames=settings.most_frames,
        every=settings.every_k_frames,
    )


def inline(
    jobs: Iterable[tuple[int, GroupJob]], source: Any, on_frames: Callable[[int], object]
) -> Iterator[tuple[int, GroupResult]]:
    """Work off jobs with pictures decoded when they are needed, by nobody else."""
    source.background = False
    for number, job in jobs:
        yield number, score_group(job, source, on_frames=on_frames)


@dataclass(slots=True, eq=False)
class Ours:
    """Runs of ``relabel``, each into a folder of its own."""

    case: Case
    settings: Settings
    folder: Path
    scorers: dict[bool, Any] = field(default_factory=dict)
    runs: int = 0

    def scorer(self, *, exact: bool = False) -> Any:
        """Return our scorer; the same at every call."""
        if exact not in self.scorers:
            self.scorers[exact] = self.case.scorer(exact)
        return self.scorers[exact]

    def run(self, scorer: Any, **changes: Any) -> tuple[RelabelReport, Path]:
        """Relabel, with everything as it is by default but for changes."""
        self.runs += 1
        driver = changes.pop("driver", run_jobs)
        window = self.case.window
        config = RelabelConfig(
            source=next(iter(self.case.videos.values())).parent,
            out=self.folder / f"run-{self.runs}",
            scorer=scorer,
            every_k_frames=self.settings.every_k_frames,
            window_frames=window.frames,
            frame_stride_frames=window.stride,
            pad=True,
            frame_size=window.size,
        )
        config = config.replace(**changes)
        return relabel(config, lambda text: None, driver=driver), config.out


def progress_of(out: Path) -> dict[tuple[str, int], float | None]:
    """Return what a run's model said, by episode and frame."""
    return {
        (episode.name, one.frame): None if one.score is None else one.score.progress
        for path in sorted(out.glob("cache/*/every-*/group-*.jsonl"))
        for episode in read_readings(path)
        for one in episode.readings
    }


def spread_frames(case: Case, count: int, every: int) -> list[tuple[str, int]]:
    """Choose frames that are asked about, evenly over all episodes."""
    asked = [
        (name, frame) for name, length in case.lengths.items() for frame in range(0, length, every)
    ]
    count = min(count, len(asked))
    return [asked[(2 * number + 1) * len(asked) // (2 * count)] for number in range(count)]


@dataclass(slots=True)
class Measured:
    """Seconds per query of every run, and what else was seen."""

    naive: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    decode_share: list[float] = field(default_factory=list)
    parts: list[NaiveTimes] = field(default_factory=list)
    other: int = 0


def measure(case: Case, ours: Ours, settings: Settings, gpu: Utilisation) -> Measured:
    """Run the naive loop and ours in turns."""
    clock, found = Clock(settings), Measured()
    naive = Naive(
        loaded=case.loaded,
        videos=case.videos,
        instructions=case.instructions,
        window=case.window,
        max_new_tokens=case.max_new_tokens,
        imposed=case.imposed,
    )
    frames = spread_frames(case, settings.naive_frames, settings.every_k_frames)
    naive.ask(*frames[0], NaiveTimes())  # what is set up at first is no part of it
    ours.run(ours.scorer(), limit=1)
    for _ in range(settings.repetitions):
        times, began = NaiveTimes(), clock.now()
        said = {frame: naive.ask(*frame, times) for frame in frames}
        taken = clock.now() - began
        found.naive.append(taken / len(frames))
        found.model.append(taken / len(frames) * (1.0 - times.decode / times.total))
        found.parts.append(times)
        with gpu.watching():
            began = clock.now()
            report, out = ours.run(ours.scorer())
            taken = clock.now() - began
        found.ours.append(taken / report.queries)
        found.decode_share.append(report.waited_s / report.asking_s)
    there = progress_of(out)
    found.other = sum(not same(value, there[frame]) for frame, value in said.items())
    return found


def same(one: float | None, other: float | None) -> bool:
    """Whether two readings are the same but for rounding."""
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE


def measure_steps(case: Case, ours: Ours, settings: Settings) -> dict[str, list[float]]:
    """Time what lies between the naive loop and ours; seconds per query by step."""
    fast, strict = ours.scorer(), ours.scorer(exact=True)
    few = {"limit": settings.step_episodes}
    alone = {"driver": inline, "group_episodes": 1, "batch_queries": 1, **few}
    steps: dict[str, dict[str, Any]] = {
        "encoded_once": {"scorer": WithoutAhead(strict), **alone},
        "answers_drafted": {"scorer": WithoutAhead(fast), **alone},
        "batched": {"scorer": WithoutAhead(fast), "driver": inline},
    }
    clock = Clock(settings)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(settings.repetitions):
        names = list(steps) if number % 2 else list(reversed(steps))
        for name in names:
            began = clock.now()
            report, _ = ours.run(**steps[name])
            taken[name].append((clock.now() - began) / report.queries)
    return taken


def figures_of(
    found: Measured, steps: dict[str, list[float]], settings: Settings
) -> dict[str, Any]:
    """Put the figures together."""
    median = statistics.median
    ratios = [naive / ours for naive, ours in zip(found.naive, found.ours, strict=True)]
    model = [naive / ours for naive, ours in zip(found.model, found.ours, strict=True)]
    figures: dict[str, Any] = {
        "speedup_vs_naive": median(ratios),
        "speedup_vs_naive_spread": max(ratios) / min(ratios),
        "speedup_vs_naive_decoded_once": median(model),
        "naive_queries_per_s": 1.0 / median(found.naive),
        "ours_queries_per_s": 1.0 / median(found.ours),
        "ours_frames_per_s": settings.every_k_frames / median(found.ours),
        "decode_share": median(found.decode_share),
        "disagreements": found.other,
        "compared": found.parts[-1].queries,
    }
    for name in ("decode", "preprocess", "generate"):
        share = [getattr(one, name) / one.total for one in found.parts]
        figures[f"naive_{name}_share"] = median(share)
    table = {"naive": median(found.naive), "decoded_once": median(found.model)}
    table |= {name: median(values) for name, values in steps.items()}
    table["overlapped"] = median(found.ours)
    figures["steps_ms_per_query"] = {name: 1000 * value for name, value in table.items()}
    return figures


def machine(settings: Settings) -> dict[str, Any]:
    """Say what it was measured on and with."""
    names = ("torch", "transformers", "numpy")
    about = {name: version(name) for name in names}
    cuda = settings.device.startswith("cuda")
    return {
        **about,
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(settings.device) if cuda else None,
        "naive_decoder": decoder_name(),
    }


def processor() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def main(settings: Settings) -> dict[str, Any]:
    """Measure, say it and write it down."""
    gpu = Utilisation(settings.device)
    # Progress bars of many short runs say nothing.
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        case = build_case(settings, Path(folder) / "videos")
        ours = Ours(case, settings, Path(folder))
        errors, sys.stderr = sys.stderr, nowhere
        try:
            found = measure(case, ours, settings, gpu)
            steps = measure_steps(case, ours, settings) if settings.step_episodes else {}
        finally:
            sys.stderr = errors
    figures = figures_of(found, steps, settings)
    figures["gpu_utilisation"] = gpu.mean
    figures["gpu_utilisation_why_not"] = gpu.reason
    kept = (name for name in Settings.__slots__ if name not in ("cache", "out"))
    figures["settings"] = {name: getattr(settings, name) for name in kept}
    figures["machine"] = machine(settings)
    print(json.dumps(figures, indent=2))
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
