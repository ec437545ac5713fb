"""The command line of ``benchmarks/engine.py``."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from procreward.bench.measure import Figures, judge_goals

__all__ = ["main"]

Say = Callable[[str], None]

_CACHE = Path("build/bench")


def main(say: Say, argv: Sequence[str] | None = None) -> None:
    """Measure, say what was measured, write it down.

    Args:
        say: Takes one line.
        argv: Arguments without the program's name; None for those of the process.
    """
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.device == "cpu" and args.size is None:
        figures = _run_cpu(args, say)
    else:
        figures = _run_device(args, say)
    if args.out is not None:
        rounded = {key: float(f"{value:.6g}") for key, value in figures.items()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the inference engine.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--job", action="append", help="only this job; may be repeated")
    parser.add_argument("--size", choices=("full", "tiny"), help="of the GPU jobs' models")
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 4, 16, 64], help="GPU jobs")
    parser.add_argument("--quick", action="store_true", help="as little as possible")
    parser.add_argument("--cache", type=Path, default=_CACHE, help="what is rendered and trained")
    parser.add_argument("--out", type=Path, help="file for the figures, a flat JSON object")
    return parser


def _chosen(args: argparse.Namespace, known: Sequence[str]) -> list[str]:
    names: list[str] = args.job or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"--job must be one of {', '.join(known)}, got {', '.join(unknown)}.")
    return names


def _run_cpu(args: argparse.Namespace, say: Say) -> Figures:
    from procreward.bench.cpu_jobs import CPU_GOALS, CPU_JOBS, CpuSettings

    settings = CpuSettings(cache=args.cache, moments=8 if args.quick else None)
    figures: Figures = {}
    for name in _chosen(args, list(CPU_JOBS)):
        began = time.perf_counter()
        found = CPU_JOBS[name](settings)
        figures |= found
        say(f"{name} ({time.perf_counter() - began:.0f} s)")
        _say_all(found, say)
    say("Baselines read our prompts and preprocessing, which are faster than their own.")
    judge_goals(figures, CPU_GOALS, say)
    return figures


def _run_device(args: argparse.Namespace, say: Say) -> Figures:
    from procreward.bench.device_jobs import DEVICE_JOBS, DeviceSettings, device_goals, run_device

    settings = DeviceSettings(
        device=args.device,
        size=args.size or "full",
        environments=tuple(args.envs),
        quick=args.quick,
    )
    figures = run_device(settings, _chosen(args, DEVICE_JOBS), say)
    judge_goals(figures, device_goals(settings), say)
    return figures


def _say_all(figures: Figures, say: Say) -> None:
    for key, value in figures.items():
        say(f"  {key:48} {value:12.6g}")
