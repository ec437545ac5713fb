"""What runs in the processes of a Ray cluster; nothing here imports Ray.

* :class:`Surroundings` - what a worker takes over from the process that gives it work.
* :class:`Worker` - asks the models about groups of episodes, one after the other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from procreward.errors import ConfigError, DatasetError, ProcrewardError
from procreward.registry import register_scorer, registered_scorers
from procreward.relabel.episodes import Episode, Source
from procreward.relabel.formats import open_source
from procreward.relabel.scoring import AHEAD_BYTES, GroupJob, GroupResult, OpenGroup

__all__ = ["Answered", "Surroundings", "Worker", "fingerprints"]

_PASSED_ON = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "MUJOCO_GL",
    "PYOPENGL_PLATFORM",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
)
"""Variables that decide how models and simulators run; no folders and no secrets, which are each
machine's own."""

_PACKAGES = ("procreward", "torch", "transformers", "numpy")
"""Those whose versions decide what a model answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker takes over from the process that gives it work.

    Attributes:
        variables: Environment variables; None removes one.
        folder: The working folder, which relative paths start from.
        scorers: Name to ``"module:Class"`` of scorers that were registered in the process.
        versions: Package to version; None for one that is not installed.
    """

    variables: Mapping[str, str | None]
    folder: str
    scorers: Mapping[str, str]
    versions: Mapping[str, str | None]

    @classmethod
    def here(cls, *, gpus: float) -> Surroundings:
        """Describe this process.

        Args:
            gpus: GPUs of a worker; at 0 it is shown none.
        """
        # Ray sets the number of threads by the CPUs, which would round otherwise than here.
        variables: dict[str, str | None] = {name: os.environ.get(name) for name in _PASSED_ON}
        if not gpus:
            # robosuite draws on the first of CUDA's devices, and fails where there is none.
            drawing = os.environ.get("MUJOCO_EGL_DEVICE_ID", "0")
            variables |= {"CUDA_VISIBLE_DEVICES": "", "MUJOCO_EGL_DEVICE_ID": drawing}
        return cls(
            variables=variables,
            folder=str(Path.cwd()),
            scorers=registered_scorers(),
            versions=_versions(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a worker sends back.

    Attributes:
        result: What came of the group.
        logged: Logger, level and text of what was logged meanwhile.
    """

    result: GroupResult
    logged: tuple[tuple[str, int, str], ...]


def fingerprints(job: GroupJob, source: Source, episodes: Mapping[int, Episode]) -> tuple[str, ...]:
    """Return those of a job's episodes, in the job's order; empty for one that is not there.

    Args:
        job: What is asked.
        source: The dataset.
        episodes: Its episodes by their index.
    """
    found = (episodes.get(one.index) for one in job.episodes)
    return tuple("" if one is None else source.fingerprint(one) for one in found)


class Worker:
    """Asks the models about groups of episodes; an actor.

    The models are loaded at the first group and stay, as does the dataset.
    """

    def __init__(self) -> None:
        self._node = os.uname().nodename
        self._source: Source | None = None
        self._episodes: Mapping[int, Episode] = {}
        self._coming: tuple[int, OpenGroup] | None = None
        self._done = (-1, 0)

    def begin(self, surroundings: Surroundings, path: str, format: str) -> tuple[str, list[str]]:
        """Make this process like the one that gives it work, and open the dataset.

        Args:
            surroundings: Of that process.
            path: The dataset.
            format: Its format.

        Returns:
            Name of the machine, and what is different here but may do.

        Raises:
            DatasetError: If this machine cannot read the dataset.
            ConfigError: If another version of procreward is installed here.
        """
        for name, value in surroundings.variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        notes = self._compare(surroundings.versions)
        if Path(surroundings.folder).is_dir():
            os.chdir(surroundings.folder)
        for name, target in surroundings.scorers.items():
            register_scorer(name, target)
        self._source = self._open(path, format)
        self._episodes = {episode.index: episode for episode in self._source.episodes}
        return self._node, notes

    def _compare(self, wanted: Mapping[str, str | None]) -> list[str]:
        here = _versions()
        if here["procreward"] != wanted["procreward"]:
            raise ConfigError(
                f"The node {self._node!r} has procreward {here['procreward']}, and the run was "
                f"started with {wanted['procreward']}. Install the same version on all machines."
            )
        return [
            f"{name} {here[name]} instead of {value}"
            for name, value in wanted.items()
            if here[name] != value
        ]

    def _open(self, path: str, format: str) -> Source:
        if not Path(path).exists():
            raise DatasetError(
                f"The node {self._node!r} has no {path!r}. Every machine of the cluster reads the "
                "dataset by itself: put it on storage that all of them have at the same path, and "
                "give that path in full."
            )
        try:
            return open_source(path, format)
        except ProcrewardError as error:
            raise DatasetError(f"The node {self._node!r} cannot read it: {error}") from error

    def ask(
        self,
        number: int,
        job: GroupJob,
        expected: tuple[str, ...],
        coming: tuple[int, GroupJob] | None = None,
    ) -> Answered:
        """Ask about a group.

        Args:
            number: Of the group.
            job: What is asked.
            expected: Fingerprints of its episodes where the job was made.
            coming: What is likely to be asked next, whose pictures are decoded meanwhile.

        Raises:
            DatasetError: If this machine sees another dataset.
            ProcrewardError: As :func:`~procreward.relabel.scoring.score_group` says.
        """
        assert self._source is not None
        self._done = (number, 0)
        if fingerprints(job, self._source, self._episodes) != expected:
            raise DatasetError(
                f"The node {self._node!r} has another dataset at {job.source!r}: sizes or times of "
                "its files differ. Put it on storage that all machines share."
            )
        with _listening() as logged, self._opened(number, job) as group:
            if coming is not None:
                # What is wrong with it is said when it is asked about.
                with suppress(ProcrewardError, LookupError, OSError):
                    self._coming = coming[0], self._open_group(coming[1], after=group)
            result = group.score(self._count)
        return Answered(result=result, logged=tuple(logged))

    def _opened(self, number: int, job: GroupJob) -> OpenGroup:
        """Return the group that is decoded already, if it is this one."""
        found, self._coming = self._coming, None
        if found is not None and found[0] == number:
            return found[1]
        if found is not None:
            found[1].close()
        return self._open_group(job)

    def _open_group(self, job: GroupJob, after: OpenGroup | None = None) -> OpenGroup:
        assert self._source is not None
        # Two are open at a time.
        return OpenGroup(job, self._source, ahead_bytes=AHEAD_BYTES // 2, after=after)

    def _count(self, frames: int) -> None:
        number, done = self._done
        self._done = (number, done + frames)

    def frames(self) -> tuple[int, int]:
        """Return the group that is being asked about, and the frames of it that are done with.

        May be called while :meth:`ask` runs.
        """
        return self._done


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


class _Listener(logging.Handler):
    def __init__(self, logged: list[tuple[str, int, str]]) -> None:
        super().__init__(logging.WARNING)
        self._logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what a record says."""
        self._logged.append((record.name, record.levelno, record.getMessage()))


@contextmanager
def _listening() -> Iterator[list[tuple[str, int, str]]]:
    """Collect what procreward logs, which nobody would see here."""
    logged: list[tuple[str, int, str]] = []
    listener, logger = _Listener(logged), logging.getLogger("procreward")
    logger.addHandler(listener)
    try:
        yield logged
    finally:
        logger.removeHandler(listener)
