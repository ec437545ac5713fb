"""Groups of episodes asked about by a Ray cluster: ``procreward relabel --ray``.

Every worker is an actor that holds the models, and gets one group at a time; this process alone
publishes what comes back, in whatever order. A worker that dies, with its machine or for want of
memory, is replaced, and its group is asked about again from the start; three deaths at one group
stop the run, since it may be the group that kills.

Ray Data (``map_batches`` over a pool of actors) would start and restart the actors as well, but
tells its caller neither that a worker died nor at which group: it tries the same block for ever, or
with bounded retries ends in an ``ActorUnavailableError`` that names no input. Groups also would
have to be made all at once, with all that is known of their episodes. And it brings pandas along,
whose newest version does not run beside the NumPy that robosuite allows.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from types import TracebackType
from typing import Any

from procreward.errors import ProcrewardError, WorkerError
from procreward.relabel.episodes import Source
from procreward.relabel.ray_cluster import (
    Cluster,
    WorkerSize,
    connect,
    need_ray,
    room,
    worker_size,
)
from procreward.relabel.ray_config import RayConfig
from procreward.relabel.ray_worker import Answered, Surroundings, Worker, fingerprints
from procreward.relabel.scoring import GroupJob, GroupResult

__all__ = ["RayDriver"]

logger = logging.getLogger(__name__)

MOST_DEATHS = 3
"""Deaths of workers at one group, or in a row while they start, after which the run stops."""

PLACE_TIMEOUT_S = 600.0
"""How long a run waits for a first worker where others use the cluster."""

PLACE_WARNING_S = 30.0
"""When that is said first."""

_LOOK_S = 0.5
_REPORT = "report"
_REASON_LENGTH = 300
_AFTER_NAMES = "The actor is dead because "

Job = tuple[int, GroupJob]


class RayDriver:
    """A :data:`~procreward.relabel.run.Driver` that gives groups to the workers of a Ray cluster.

    The cluster is joined or started at the first group, so that a run with nothing to ask needs
    none, and left on closing::

        with RayDriver(RayConfig(address="auto")) as driver:
            relabel(config, print, driver=driver)

    Args:
        config: Which cluster, and how many workers.
    """

    def __init__(self, config: RayConfig | None = None) -> None:
        self._config = config or RayConfig()
        self._cluster: Cluster | None = None
        self._crew: _Crew | None = None

    def __enter__(self) -> RayDriver:
        """Return the driver itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the workers and leave the cluster; may be called again."""
        if self._crew is not None:
            self._crew.dismiss()
            self._crew = None
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def __call__(
        self, jobs: Iterable[Job], source: Source, on_frames: Callable[[int], object]
    ) -> Iterator[tuple[int, GroupResult]]:
        """Work off jobs; see :data:`~procreward.relabel.run.Driver`.

        Args:
            jobs: Groups with their numbers.
            source: The dataset as this process sees it.
            on_frames: Called with numbers of frames that are done with; a negative one takes those
                of a worker that died back.

        Yields:
            Number and result of each group, as they arrive.

        Raises:
            MissingDependencyError: If Ray is not installed, here or on a machine of the cluster.
            ConfigError: If the cluster cannot be joined or has no room, or the scorer is a live
                object.
            DatasetError: If a machine does not see the dataset, or an episode cannot be read.
            WorkerError: If workers die again and again at the same group.
            ProcrewardError: As :func:`~procreward.relabel.scoring.score_group` says.
        """
        rest = iter(jobs)
        first = next(rest, None)
        if first is None:
            return
        reward = first[1].config
        need_ray()
        worker_size(self._config, reward, ())  # what is wrong with the models is said at once
        if self._cluster is None:
            self._cluster = connect(self._config)
        size = worker_size(self._config, reward, self._cluster.nodes)
        workers = room(self._config, size, self._cluster.nodes)
        some = [first, *islice(rest, workers - 1)]
        self._crew = _Crew(self._cluster.ray, size, source, on_frames, chain(some, rest))
        try:
            yield from self._crew.work(len(some))
        finally:
            self._crew.dismiss()
            self._crew = None


@dataclass(slots=True, eq=False)
class _Hand:
    """A worker, and what it does."""

    actor: Any
    waits_for: Any
    node: str = ""
    job: Job | None = None
    coming: int | None = None
    counted: int = 0
    report: Any = None

    @property
    def ready(self) -> bool:
        """Whether it has begun, on a machine that is known by then."""
        return bool(self.node)


class _Crew:
    """The workers of a run."""

    def __init__(
        self,
        ray: Any,
        size: WorkerSize,
        source: Source,
        on_frames: Callable[[int], object],
        jobs: Iterator[Job],
    ) -> None:
        self._ray, self._size, self._source, self._on_frames = ray, size, source, on_frames
        self._jobs, self._over = jobs, False
        self._again: deque[Job] = deque()
        self._promised: dict[int | None, Job] = {}
        self._episodes = {episode.index: episode for episode in source.episodes}
        self._surroundings = Surroundings.here(gpus=size.gpus)
        self._hands: list[_Hand] = []
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._noted: set[str] = set()
        self._account: Any = {}
        self._looked = self._placed = time.monotonic()

    def work(self, workers: int) -> Iterator[tuple[int, GroupResult]]:
        """Work off all jobs; yields the results as they arrive."""
        for _ in range(workers):
            self._hire()
        while self._hand_out():
            waiting = {hand.waits_for: hand for hand in self._hands if hand.job or not hand.ready}
            done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_LOOK_S)
            for ref in done:
                answered = self._settle(waiting[ref])
                if answered is not None:
                    self._hand_out()  # it goes on while this group is published
                    yield answered
            self._look()
            self._check_placed()

    def dismiss(self) -> None:
        """End all workers."""
        while self._hands:
            self._kill(self._hands.pop())

    def _kill(self, hand: _Hand) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(hand.actor, no_restart=True)

    def _hire(self) -> None:
        options = {
            "num_cpus": self._size.cpus,
            "num_gpus": self._size.gpus,
            # A worker that is started anew has to begin anew.
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {_REPORT: 1},
        }
        actor = self._ray.remote(**options)(Worker).remote()
        source = self._source
        begun = actor.begin.remote(self._surroundings, str(source.root), source.format)
        self._hands.append(_Hand(actor, begun))

    def _hand_out(self) -> bool:
        """Give every worker that is free a group; False when all groups are done."""
        for hand in self._hands:
            if hand.ready and hand.job is None:
                job = self._next(hand)
                if job is None:
                    self._over = True
                    break
                self._give(hand, job)
        busy = any(hand.job for hand in self._hands)
        return busy or bool(self._again) or not self._over

    def _next(self, hand: _Hand) -> Job | None:
        """Choose a group for a worker: one it has decoded, one nobody has, or another's."""
        if self._again:
            return self._again.popleft()
        if hand.coming in self._promised:
            return self._promised.pop(hand.coming)
        job = next(self._jobs, None)
        if job is None and self._promised:
            job = self._promised.popitem()[1]
        return job

    def _give(self, hand: _Hand, job: Job) -> None:
        coming = next(self._jobs, None)
        hand.job, hand.counted, hand.coming = job, 0, None
        if coming is not None:
            hand.coming = coming[0]
            self._promised[coming[0]] = coming
        prints = fingerprints(job[1], self._source, self._episodes)
        hand.waits_for = hand.actor.ask.remote(*job, prints, coming)

    def _settle(self, hand: _Hand) -> tuple[int, GroupResult] | None:
        """Take what a worker has to say; None if that is no result."""
        errors = self._ray.exceptions
        try:
            said = self._ray.get(hand.waits_for)
        except errors.RayTaskError as error:
            raise _original(error) from (None if _is_ours(error) else error)
        except errors.RayError as error:
            self._lost(hand, error)
            return None
        if hand.job is None:
            self._welcome(hand, *said)
            return None
        number, job = hand.job
        self._count(hand, sum(self._episodes[one.index].frames for one in job.episodes))
        hand.job = None
        return number, self._unpacked(said)

    def _welcome(self, hand: _Hand, node: str, notes: list[str]) -> None:
        hand.node, self._failed_starts = node, 0
        if notes:
            self._note(
                f"The node {node!r} has {', '.join(notes)}; its answers may differ in the last "
                "digits."
            )

    def _unpacked(self, said: Answered) -> GroupResult:
        for name, level, text in said.logged:
            logging.getLogger(name).log(level, "%s", text)
        account = said.result.account
        self._account = self._account or account
        if account and account != self._account:
            self._note(
                "The models describe themselves differently on different machines "
                f"({self._account} and {account}); their answers may differ in the last digits."
            )
        return said.result

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            logger.warning("%s", text)

    def _lost(self, hand: _Hand, error: Exception) -> None:
        """Replace a worker that died, and have its group asked about again."""
        self._hands.remove(hand)
        self._kill(hand)
        reason = _reason(error)
        if hand.job is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_DEATHS:
                raise WorkerError(
                    f"{MOST_DEATHS} workers in a row died while they started; is procreward "
                    f"installed on every machine? Ray says of the last one: {reason}"
                )
            logger.warning("A worker died while it started, another one is started: %s", reason)
        else:
            self._on_frames(-hand.counted)
            self._blame(hand, hand.job, reason)
            self._again.append(hand.job)
        self._hire()

    def _blame(self, hand: _Hand, job: Job, reason: str) -> None:
        number, group = job
        names = [self._episodes[one.index].name for one in group.episodes]
        which = f"{names[0]!r} to {names[-1]!r}" if len(names) > 1 else f"{names[0]!r}"
        self._deaths[number] += 1
        if self._deaths[number] >= MOST_DEATHS:
            raise WorkerError(
                f"{MOST_DEATHS} workers died at the same episodes, {which} (group {number}). Run "
                "them alone with `episodes` and `group_episodes` 1 to find the one, or give a "
                "worker more memory (fewer `ray_workers`, smaller `batch_queries`). What other "
                f"workers had finished is kept. Ray says of the last one: {reason}"
            )
        logger.warning(
            "A worker on %s died at the episodes %s (group %d, death %d of %d); they are asked "
            "about again. Ray says: %s",
            hand.node,
            which,
            number,
            self._deaths[number],
            MOST_DEATHS,
            reason,
        )

    def _count(self, hand: _Hand, frames: int) -> None:
        if frames != hand.counted:
            self._on_frames(frames - hand.counted)
            hand.counted = frames

    def _look(self) -> None:
        """Ask the workers from time to time how far they are."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        told = {hand.report: hand for hand in self._hands if hand.report is not None}
        done, _ = self._ray.wait(list(told), num_returns=len(told), timeout=0) if told else ([], [])
        for ref in done:
            hand = told[ref]
            hand.report = None
            with suppress(self._ray.exceptions.RayError):  # noticed where its group is waited for
                number, frames = self._ray.get(ref)
                if hand.job is not None and hand.job[0] == number:
                    self._count(hand, frames)
        for hand in self._hands:
            if hand.job is not None and hand.report is None:
                hand.report = hand.actor.frames.options(concurrency_group=_REPORT).remote()

    def _check_placed(self) -> None:
        """Say so if the cluster gives no worker a place, and in the end give up."""
        now = time.monotonic()
        if any(hand.ready for hand in self._hands):
            self._placed = now
            return
        waited = now - self._placed
        if waited > PLACE_WARNING_S:
            self._note(
                f"No worker has begun for {PLACE_WARNING_S:.0f} s. Of the cluster's CPUs and GPUs "
                f"are free: {self._free()}; a worker takes {self._size}."
            )
        if waited > PLACE_TIMEOUT_S:
            raise WorkerError(
                f"No worker has begun for {PLACE_TIMEOUT_S:.0f} s. Of the cluster's CPUs and GPUs "
                f"are free: {self._free()}; a worker takes {self._size}. Free some, and run it "
                "again; what was published is kept."
            )

    def _free(self) -> str:
        free = self._ray.available_resources()
        return str(WorkerSize(cpus=free.get("CPU", 0.0), gpus=free.get("GPU", 0.0)))


def _reason(error: Exception) -> str:
    """Return what Ray says of a death, without the names of its objects that come first."""
    text = " ".join(str(error).split())
    return (text.partition(_AFTER_NAMES)[2] or text)[:_REASON_LENGTH]


def _is_ours(error: Any) -> bool:
    return isinstance(error.cause, ProcrewardError)


def _original(error: Any) -> BaseException:
    """Return what a worker raised."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else WorkerError(str(error))
