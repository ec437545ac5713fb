"""``relabel``: from a dataset to its rewards.

* :func:`relabel` - all of it.
* :class:`RelabelReport` - what came of it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from procreward.errors import DatasetError
from procreward.relabel.cache import portable
from procreward.relabel.config import RelabelConfig
from procreward.relabel.deriving import derive
from procreward.relabel.episodes import Episode, EpisodeLabels, Source
from procreward.relabel.estimate import estimate
from procreward.relabel.plan import RELABEL_JSON, STAGING, RelabelPlan, check_out, prepare
from procreward.relabel.publishing import FolderLock, check_free_space, publish, remove
from procreward.relabel.readings import EpisodeReadings
from procreward.relabel.scoring import AHEAD_BYTES, GroupJob, GroupResult, OpenGroup
from procreward.relabel.sidecar import (
    SIDECAR,
    SidecarWriter,
    check_sidecar,
    episode_record,
    first_indices,
    query_records,
)
from procreward.report.records import EpisodeRecord, write_records

__all__ = ["Driver", "RelabelReport", "relabel", "run_jobs"]

ALIGNMENT = (
    "reward[t] belongs to (s_t, a_t, s_t+1). Where the state after the last action has no picture, "
    "its potential is that of the picture before it."
)
"""What is said in ``relabel.json`` about which state and action a reward belongs to."""

DATASET = "dataset"
EPISODES = "episodes.jsonl"
RECORDS = "records.jsonl"
SOURCE = "source.txt"
"""Where the dataset was on this machine, for ``procreward report``; nothing else says so."""

_NO_JOB: tuple[int, GroupJob | None] = (0, None)

Driver: TypeAlias = Callable[
    [Iterable[tuple[int, GroupJob]], Source, Callable[[int], object]],
    Iterator[tuple[int, GroupResult]],
]
"""Works off jobs, in any order: jobs with their numbers, the open dataset, and what is called with
a number of frames whenever they are done with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelReport:
    """What came of a run.

    Attributes:
        out: The folder.
        episodes: Episodes that have labels.
        frames: Their pictures.
        queries: Pictures of them that the models were asked about.
        asked: Queries that were put to the models by this very run.
        asking_s: Seconds that this took, pictures and publishing included.
        waited_s: Seconds of it for which models stood still for pictures, those of all processes
            together.
        unanswered: Why how many of the queries gave no usable answer.
        skipped: Name of every episode that was left out, and why.
        silent: Names of episodes about which no query was answered.
        files: What was written.
    """

    out: Path
    episodes: int = 0
    frames: int = 0
    queries: int = 0
    asked: int = 0
    asking_s: float = 0.0
    waited_s: float = 0.0
    unanswered: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def exit_status(self) -> int:
        """0, or 1 if episodes are without labels."""
        return 1 if self.skipped or self.silent else 0


def run_jobs(
    jobs: Iterable[tuple[int, GroupJob]], source: Source, on_frames: Callable[[int], object]
) -> Iterator[tuple[int, GroupResult]]:
    """Work off jobs one after the other in this process; the default :data:`Driver`.

    While a group is asked about, the pictures of the next one are decoded already.
    """
    coming = iter(jobs)
    group: OpenGroup | None = None
    following: OpenGroup | None = None
    try:
        number, job = next(coming, _NO_JOB)
        while job is not None:
            # Two groups are open at a time.
            half = AHEAD_BYTES // 2
            group = following or OpenGroup(job, source, ahead_bytes=half)
            next_number, job = next(coming, _NO_JOB)
            following = (
                None if job is None else OpenGroup(job, source, ahead_bytes=half, after=group)
            )
            result = group.score(on_frames)
            group.close()
            yield number, result
            number = next_number
    finally:
        for one in (following, group):
            if one is not None:
                one.close()


def relabel(
    config: RelabelConfig, say: Callable[[str], object], *, driver: Driver = run_jobs
) -> RelabelReport:
    """Ask a reward model about recorded episodes and write what their steps are worth.

    What has been asked is kept in ``OUT/cache``; a run that was interrupted, by whatever, goes on
    behind the last group of episodes that was published, and the files of the finished run are the
    same, byte for byte.

    Args:
        config: The settings.
        say: Takes every line or block of text meant for the user.
        driver: Works off the groups, here or elsewhere.

    Returns:
        What was done; with ``dry_run`` nothing.

    Raises:
        LockedError: If another run works in the folder; it is named.
        ProcrewardError: As :func:`~procreward.relabel.plan.prepare` and
            :func:`~procreward.relabel.scoring.score_group` say.
    """
    plan = prepare(config)  # what is wrong is said before the folder is made
    if config.dry_run:
        needed = plan.bytes_needed()
        say(_described(plan, needed))
        check_free_space(config.out, needed)
        return RelabelReport(out=config.out)
    with FolderLock(config.out):
        check_out(plan)  # another run may have ended in it meanwhile
        check_free_space(config.out, plan.bytes_needed())
        staging = config.out / STAGING
        remove(staging)
        staging.mkdir()
        try:
            asked = _score(plan, staging, driver)
            report = replace(_publish(plan, staging), **asdict(asked))
        finally:
            remove(staging)
    say(_summary(report))
    return report


def _described(plan: RelabelPlan, needed: int) -> str:
    queries = plan.queries_left()
    done = len(plan.groups) - len(plan.unfinished)
    shown = dict.fromkeys(one.view for one in plan.showing.shown)
    lines = [
        f"{plan.source.root}: {plan.source.format}, {len(plan.episodes)} of "
        f"{len(plan.source.episodes)} episodes, {plan.frames} frames",
        f"views: {', '.join(shown)} (of {', '.join(plan.source.views)})",
        f"scorer: {plan.stream.scorer.preset.name}"
        + ("" if plan.stream.judge is None else f", judge: {plan.stream.judge.preset.name}"),
        f"groups: {len(plan.groups)}, {done} of them done",
        f"queries to ask: about {queries}, time: {_time(plan, queries)}",
        f"disk: about {needed / 1e6:.1f} MB in {plan.config.out}",
    ]
    return "\n".join(lines)


def _time(plan: RelabelPlan, queries: int) -> str:
    """Say how long asking will take."""
    if not queries:
        return "none"
    if not plan.config.estimate:
        return "not estimated"
    found = estimate(plan)
    if found is None:
        return "unknown, since no query was answered"
    timed, seconds = found
    total = queries * seconds
    amount = f"{total:.0f} s" if total < 600 else f"{total / 3600:.1f} h"
    return f"about {amount} (from {timed} queries; larger calls take less per query)"


@dataclass(slots=True, kw_only=True)
class _Asked:
    """What asking came to; fields of :class:`RelabelReport`."""

    asked: int = 0
    asking_s: float = 0.0
    waited_s: float = 0.0


def _score(plan: RelabelPlan, staging: Path, driver: Driver) -> _Asked:
    """Ask about the groups that are not published yet."""
    from tqdm import tqdm

    asked = _Asked()
    if not plan.unfinished:
        return asked
    started = time.perf_counter()
    jobs = ((number, plan.job(number)) for number in plan.unfinished)
    with tqdm(total=plan.frames_left, unit="frame", desc="asking", mininterval=0.5) as bar:
        for done, (number, result) in enumerate(driver(jobs, plan.source, bar.update), start=1):
            _write_account(plan, portable(result.account), staging)
            plan.cache.save(number, result.episodes, staging)
            asked.asked += result.asked
            asked.waited_s += result.waited_s
            bar.set_postfix_str(f"group {done}/{len(plan.unfinished)}, {asked.asked} queries")
    asked.asking_s = time.perf_counter() - started
    return asked


def _write_account(plan: RelabelPlan, account: Mapping[str, Any], staging: Path) -> None:
    """Say once what answers, as it describes itself now that it is loaded."""
    path = plan.cache.account_path
    if not path.is_file() and account:
        staged = staging / path.name
        _write_json({"asked": plan.account, **account}, staged)
        publish(staged, path)


def _write_json(value: object, path: Path) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _publish(plan: RelabelPlan, staging: Path) -> RelabelReport:
    """Derive the labels, write all files, check them and move them into place."""
    provenance = _provenance(plan)
    report = _write_files(plan, staging, provenance)
    (staging / SOURCE).write_bytes(os.fsencode(plan.source.root.absolute()) + b"\n")
    names = [SIDECAR, EPISODES, RECORDS, SOURCE]
    if plan.writer is not None:
        if not report.episodes:
            name, reason = next(iter(report.skipped.items()))
            raise DatasetError(
                "`rewrite` must have an episode that can be read, got none of "
                f"{len(report.skipped)}; {name!r}: {reason} Without it, {RELABEL_JSON} lists all."
            )
        staged = staging / DATASET
        staged.mkdir()
        plan.writer.write(plan.source, _labels(plan), staged, provenance)
        plan.writer.validate(plan.source, staged)
        names.append(DATASET)
    account = {**provenance, "skipped": report.skipped, "totals": _totals(report)}
    _write_json(account, staging / RELABEL_JSON)
    out = plan.config.out
    # Without it nothing in the folder counts as finished, and with it everything does.
    remove(out / RELABEL_JSON)
    for name in names:
        publish(staging / name, out / name)
    if plan.writer is None:
        remove(out / DATASET)  # of a run with other settings
    names.append(RELABEL_JSON)
    publish(staging / RELABEL_JSON, out / RELABEL_JSON)
    return replace(report, files=tuple(out / name for name in names))


def _provenance(plan: RelabelPlan) -> dict[str, Any]:
    source, path = plan.source, plan.cache.account_path
    answered = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        "procreward": version("procreward"),
        "source": {
            # Of bytes that are no UTF-8, which not every format can hold.
            "name": source.root.name.encode(errors="backslashreplace").decode(),
            "format": source.format,
            "views": list(source.views),
            "episodes": len(source.episodes),
        },
        "settings": plan.settings,
        "scorer": answered.get("scorer"),
        "judge": answered.get("judge"),
        "cache": f"{plan.cache.key}/{plan.cache.folder.name}",
        "alignment": ALIGNMENT,
        "causal": plan.config.fill == "hold",
    }


def _read(plan: RelabelPlan) -> Iterator[tuple[Episode, EpisodeReadings]]:
    for number, group in enumerate(plan.groups):
        found = plan.cache.load(number)
        assert found is not None  # all have been published
        yield from zip(group, found, strict=True)


def _derive(plan: RelabelPlan, episode: Episode, found: EpisodeReadings) -> EpisodeLabels:
    readings = {one.frame: one for one in found.readings}
    return derive(plan.stream, episode, readings, fill=plan.config.fill)


def _labels(plan: RelabelPlan) -> Iterator[EpisodeLabels]:
    """The labels of all episodes that are not skipped."""
    for episode, found in _read(plan):
        if not found.error:
            yield _derive(plan, episode, found)


def _write_files(plan: RelabelPlan, staging: Path, provenance: Mapping[str, Any]) -> RelabelReport:
    """Write what every format gets, and count."""
    scorer = plan.stream.scorer.config.model or plan.stream.scorer.preset.name
    metadata = {
        "reward_model_path": str(portable(scorer)),
        "procreward": json.dumps(provenance, sort_keys=True, ensure_ascii=False),
    }
    tally, first = _Tally(), first_indices(plan.source)
    name = plan.stream.scorer.preset.name
    view = plan.showing.views[0]
    with ExitStack() as stack:
        sidecar = stack.enter_context(SidecarWriter(staging / SIDECAR, metadata))
        opened = (staging / RECORDS).open("w", encoding="utf-8", errors="backslashreplace")
        lines = stack.enter_context(opened)

        def records() -> Iterator[EpisodeRecord]:
            for episode, found in _read(plan):
                tally.count(plan, episode, found)
                if found.error:
                    continue
                labels = _derive(plan, episode, found)
                sidecar.add(labels, first[episode.index])
                for line in query_records(plan.source, episode, found.readings, view):
                    lines.write(line + "\n")
                yield episode_record(
                    labels, found.readings, dataset=plan.source.root.name, scorer=name
                )

        write_records(records(), staging / EPISODES)
    check_sidecar(staging / SIDECAR, tally.frames)
    return tally.report(plan.config.out)


@dataclass(slots=True)
class _Tally:
    """What the published readings come to."""

    episodes: int = 0
    frames: int = 0
    queries: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)

    def count(self, plan: RelabelPlan, episode: Episode, found: EpisodeReadings) -> None:
        """Take in an episode."""
        if found.error:
            root = plan.source.root
            error = found.error.replace(str(root.absolute()), root.name)
            self.skipped[episode.name] = error.replace(str(root), root.name)
            return
        self.episodes += 1
        self.frames += episode.frames
        self.queries += len(found.readings)
        for one in found.readings:
            self.reasons.update(one.reasons)
        if all(one.score is None or not one.score.valid for one in found.readings):
            self.silent.append(episode.name)

    def report(self, out: Path) -> RelabelReport:
        """Return the counts."""
        return RelabelReport(
            out=out,
            episodes=self.episodes,
            frames=self.frames,
            queries=self.queries,
            unanswered=dict(sorted(self.reasons.items())),
            skipped=self.skipped,
            silent=tuple(self.silent),
        )


def _totals(report: RelabelReport) -> dict[str, Any]:
    return {
        "episodes": report.episodes,
        "frames": report.frames,
        "queries": report.queries,
        "unanswered": dict(report.unanswered),
        "silent": list(report.silent),
    }


def _summary(report: RelabelReport) -> str:
    lines = [
        f"{report.episodes} episodes, {report.frames} frames, {report.queries} of them asked about "
        f"({report.asked} queries now)"
    ]
    if report.asked:
        lines.append(
            f"asked in {report.asking_s:.1f} s: {report.asked / report.asking_s:.1f} queries/s"
        )
    if report.unanswered:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.unanswered.items())
        lines.append(f"without a usable answer: {reasons}")
    if report.skipped:
        lines.append(f"skipped: {len(report.skipped)} episodes")
    return "\n".join([*lines, "written:", *(f"  {path}" for path in report.files)])
