"""The ``procreward`` command.

::

    procreward demo              roll out policies with a model's reward; videos, curves, a table
    procreward verify env ID     check an environment, wrapped
    procreward verify scorer N   check a reward model
    procreward score VIDEO ...   progress along a video, as JSON lines
    procreward check video ...   whether a task is completed in a video, as JSON lines
    procreward relabel SOURCE    put dense rewards into a recorded dataset
    procreward report RUN        one HTML file: videos, curves, answers of a relabelled set or demo
    procreward train --config C  train a policy on a model's reward; checkpoints, curves, a video
    procreward bench [SCORER]    how many environments this machine sustains
    procreward --version         which version this is

Errors that procreward raises on purpose are one line on stderr and exit status 2; a failed check is
status 1, and so is a video about which no query was answered, a dataset of which episodes were
skipped, or a report on episodes whose pictures cannot be read. A run that Ctrl-C ends is status
130, and one whose output nobody reads any more (``| head``) is 141.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import tyro

from procreward.bench.sustained import BenchConfig
from procreward.check_video import CheckVideo
from procreward.demo import DemoConfig
from procreward.errors import ProcrewardError
from procreward.relabel.options import RelabelOptions
from procreward.report.config import ReportConfig
from procreward.training.options import TrainOptions

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = ["main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyEnv:
    """Check an environment: Gymnasium's own checks, then those of the wrapper around it."""

    id: tyro.conf.Positional[str]
    """Gymnasium id, such as "procreward/Lift-v0"; "module:id" imports the module first."""
    scorer: str = "constant"
    """Reward model in the wrapper: preset, registered scorer, model folder or hub id."""
    instruction: str | None = None
    """The task in words; without it, what the environment says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyScorer:
    """Check a reward model against the scorer's contract."""

    name: tyro.conf.Positional[str]
    """Reward model: preset, registered scorer, model folder or hub id."""


_Verified: TypeAlias = (
    Annotated[VerifyEnv, tyro.conf.subcommand("env", prefix_name=False)]
    | Annotated[VerifyScorer, tyro.conf.subcommand("scorer", prefix_name=False)]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Check an environment or a reward model, and explain what fails."""

    what: _Verified


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Print a model's progress (percent) along a video, one JSON object per query."""

    video: tyro.conf.Positional[Path]
    """The video file."""
    instruction: str
    """The task in words."""
    scorer: str = "nano"
    """Reward model: preset, registered scorer, model folder or hub id."""
    every_k_frames: int = 1
    """Video frames from one query to the next."""
    window_frames: int | None = None
    """Frames in a query; without it, what suits the scorer."""
    frame_stride_frames: int | None = None
    """Video frames between neighbouring frames of a query; without it, what suits the scorer."""
    frame_size: tuple[int, int] | None = None
    """Width and height in pixels that frames are resized to; without it, as they are."""


# With a second option, hidden, the only one is a subcommand of its own.
_Checked: TypeAlias = (
    Annotated[CheckVideo, tyro.conf.subcommand("video", prefix_name=False)]
    | Annotated[None, tyro.conf.Suppress]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Judge whether a task is completed."""

    what: _Checked


_Command: TypeAlias = (
    Annotated[DemoConfig, tyro.conf.subcommand("demo", prefix_name=False)]
    | Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
    | Annotated[Score, tyro.conf.subcommand("score", prefix_name=False)]
    | Annotated[Check, tyro.conf.subcommand("check", prefix_name=False)]
    | Annotated[RelabelOptions, tyro.conf.subcommand("relabel", prefix_name=False)]
    | Annotated[ReportConfig, tyro.conf.subcommand("report", prefix_name=False)]
    | Annotated[TrainOptions, tyro.conf.subcommand("train", prefix_name=False)]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench", prefix_name=False)]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    """Dense rewards for robot learning, from camera frames and vision-language reward models."""

    command: _Command
    debug: bool = False
    """Show tracebacks and debug logging."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        argv: Arguments without the program's name; default: those of the process.

    Raises:
        SystemExit: Always, with a status that this module's docstring explains.
    """
    debug = False
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if given == ["--version"]:
            from procreward import __version__

            print(f"procreward {__version__}", flush=True)
            raise SystemExit(0)
        arguments = _parse(given)
        debug = arguments.debug
        level = logging.DEBUG if debug else logging.WARNING
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        status = _run(arguments.command)
        print(end="", flush=True)
    except (ProcrewardError, OSError) as error:  # OSError: a full disk, a folder that is read-only
        if isinstance(error, BrokenPipeError) and _unread():
            _drop_output()
            raise SystemExit(141) from None
        try:
            print(end="", flush=True)
        except OSError:
            _drop_output()
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    raise SystemExit(status)


def _drop_output() -> None:
    """Give up what could not be written: Python writes once more at its exit, and would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: Sequence[str]) -> _Arguments:
    return tyro.cli(
        _Arguments,
        prog="procreward",
        description=f"{_Arguments.__doc__} `procreward --version` says which version this is.",
        args=argv,
        config=(
            tyro.conf.FlagCreatePairsOff,
            tyro.conf.CascadeSubcommandArgs,
            tyro.conf.OmitArgPrefixes,
            tyro.conf.PositionalMetavarFromFieldName,
        ),
    )


def _unread() -> bool:
    """Whether what read our output has closed it; a broken pipe may be another one."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(command: _Command) -> int:
    """Run one command and return the exit status."""
    if isinstance(command, DemoConfig):
        from procreward.demo import run_demo

        run_demo(command, print)
        return 0
    if isinstance(command, BenchConfig):
        from procreward.bench.sustained import run_bench

        run_bench(command, print)
        return 0
    if isinstance(command, RelabelOptions):
        return _relabel(command)
    if isinstance(command, ReportConfig):
        return _report(command)
    if isinstance(command, TrainOptions):
        from procreward.training.options import run_train

        return run_train(command, print)
    if isinstance(command, Score):
        return _score(command)
    if isinstance(command, Check):
        from procreward.check_video import run_check_video

        assert command.what is not None  # the hidden option
        verdicts = run_check_video(command.what, print)
        return _answered(verdict.complete is not None for verdict in verdicts)
    return _verify(command.what)


def _relabel(command: RelabelOptions) -> int:
    from procreward.relabel.options import run_relabel

    report = run_relabel(command, print)
    for name, reason in report.skipped.items():
        print(f"skipped: {name}: {reason}", file=sys.stderr)
    for name in report.silent:
        print(f"error: {name}: none of its queries was answered", file=sys.stderr)
    return report.exit_status


def _report(command: ReportConfig) -> int:
    from procreward.report.run import report

    result = report(command, print)
    for name, reason in result.broken.items():
        print(f"error: no video of {name}: {reason}", file=sys.stderr)
    return result.exit_status


def _verify(what: VerifyEnv | VerifyScorer) -> int:
    """Run the conformance suites and print every check."""
    from procreward.testing import check_scorer

    if isinstance(what, VerifyScorer):
        report = check_scorer(what.name, raise_on_failure=False)
        print(report)
        return 0 if report.ok else 1
    return _verify_env(what)


def _verify_env(what: VerifyEnv) -> int:
    from procreward.environments import make_env
    from procreward.testing import Suite, check_wrapper
    from procreward.wrapper import ProgressReward

    env = make_env(what.id)
    try:
        wrapped = ProgressReward(env, scorer=what.scorer, instruction=what.instruction)
        gymnasium, notes = Suite(f"{what.id}, by Gymnasium"), list[str]()
        gymnasium.run(
            "check_env",
            "spaces, seeding, reset and step are as Gymnasium defines them",
            lambda: _gymnasium_finds(env, notes),
        )
        reports = (
            gymnasium.report(),
            replace(
                check_wrapper(wrapped, raise_on_failure=False),
                subject=f"{what.id}, wrapped, scorer {what.scorer}",
            ),
        )
    finally:
        env.close()
    for report in reports:
        print(report)
    for note in dict.fromkeys(notes):
        print(f"note: {note}")
    return 0 if all(report.ok for report in reports) else 1


def _gymnasium_finds(env: gym.Env[Any, Any], notes: list[str]) -> str:
    """Return nothing or raise, as a point of a suite does; collect advice in ``notes``."""
    import warnings

    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Every render mode would be made anew; our own checks look at the pictures.
        check_env(env.unwrapped, skip_render_check=True)
    notes += [_plain(str(warning.message)) for warning in caught]
    return ""


def _plain(text: str) -> str:
    """Strip colour codes and Gymnasium's prefix off a warning."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).removeprefix("WARN: ")


def _score(command: Score) -> int:
    """Print the records of a video."""
    from procreward.video import score_video

    records = score_video(
        command.video,
        command.instruction,
        command.scorer,
        every_k_frames=command.every_k_frames,
        window_frames=command.window_frames,
        frame_stride_frames=command.frame_stride_frames,
        frame_size=command.frame_size,
    )
    for record in records:
        print(json.dumps(record.as_procvlm(), ensure_ascii=False))
    # The records say 0 without an answer, as ProcVLM's do, which must not be taken for a reading.
    return _answered(record.parsed_progress is not None for record in records)


def _answered(queries: Iterable[bool]) -> int:
    """Return the exit status of a command that asked about a video, and say if it was in vain."""
    answered = list(queries)
    if any(answered):
        return 0
    print(f"error: none of the {len(answered)} queries was answered", file=sys.stderr)
    return 1
