"""The exceptions that procreward raises, and the ones each can also be caught as.

::

    ProcrewardError
    ├── ConfigError            (ValueError)        a setting that cannot be right
    │   └── UnknownNameError   (LookupError)       no such scorer, preset, camera or key
    ├── DatasetError           (ValueError)        a dataset that cannot be read or written
    ├── FrameError             (ValueError)        a frame of the wrong dtype, shape or content
    ├── InstructionError       (ValueError)        an empty or missing instruction
    ├── UnsupportedEnvError    (TypeError)         an environment that cannot be wrapped as asked
    ├── LockedError            (RuntimeError)      another run works in the same folder
    ├── WorkerError            (RuntimeError)      a process of environments or models died
    ├── MissingDependencyError (ImportError)       an optional package or system library is absent
    ├── ModelError             (RuntimeError)      a model that cannot be loaded or run
    │   ├── ModelNotFoundError (FileNotFoundError) no such folder, file or hub repository
    │   ├── UnsafeWeightsError                     weights in a format that can execute code
    │   ├── ArchitectureError                      weights of another architecture or base model
    │   └── ServerError                            a model server that answered nothing of a call
    ├── ScorerError            (RuntimeError)      a scorer that broke its contract
    │   └── ScorerFailedError                      too many failed queries in a row
    └── ConformanceError       (AssertionError)    a suite of procreward.testing failed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArchitectureError",
    "ConfigError",
    "ConformanceError",
    "DatasetError",
    "FrameError",
    "InstructionError",
    "LockedError",
    "MissingDependencyError",
    "ModelError",
    "ModelNotFoundError",
    "ProcrewardError",
    "ScorerError",
    "ScorerFailedError",
    "ServerError",
    "UnknownNameError",
    "UnsafeWeightsError",
    "UnsupportedEnvError",
    "WorkerError",
]


class ProcrewardError(Exception):
    """Base of every exception that procreward raises on purpose."""


class ConfigError(ProcrewardError, ValueError):
    """A setting has a value that cannot be right."""


def _endings(name: str, known: Iterable[str]) -> list[str]:
    """The names that are this one after a slash, dot or colon."""
    return [full for full in known if name and full.endswith(("/" + name, "." + name, ":" + name))]


class UnknownNameError(ConfigError, LookupError):
    """A name was given for which nothing is known.

    Example:
        >>> raise UnknownNameError("scorer", "procvml", ["constant", "procvlm"])
        Traceback (most recent call last):
            ...
        procreward.errors.UnknownNameError: Unknown scorer 'procvml'. Did you mean 'procvlm'? \
Known: constant, procvlm.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        # A name without its namespace is no close match by its letters.
        close = difflib.get_close_matches(name, known, n=1) or _endings(name, known)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listing = ", ".join(known) if known else "none"
        super().__init__(f"Unknown {kind} {name!r}.{hint} Known: {listing}.")
        self.kind, self.name, self.known = kind, name, known

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        # Errors of worker processes are pickled, which would build this one from its message.
        return type(self), (self.kind, self.name, self.known)


class DatasetError(ProcrewardError, ValueError):
    """A dataset, or one of its episodes, that cannot be read or written."""


class FrameError(ProcrewardError, ValueError):
    """A frame is not an upright ``(height, width, 3) uint8`` RGB picture with content."""


class InstructionError(ProcrewardError, ValueError):
    """No instruction, or an empty one, where the model needs to be told the task."""


class UnsupportedEnvError(ProcrewardError, TypeError):
    """The environment cannot be wrapped the way that was asked."""


class LockedError(ProcrewardError, RuntimeError):
    """Another run works in the same folder."""


class WorkerError(ProcrewardError, RuntimeError):
    """A process that ran a sub-environment or a model died; what it belonged to is closed then."""


class MissingDependencyError(ProcrewardError, ImportError):
    """An optional package or a system library is not installed; the message says how to."""


class ModelError(ProcrewardError, RuntimeError):
    """A model could not be loaded or run."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model is at the folder, or under the hub id, that was named."""


class UnsafeWeightsError(ModelError):
    """The only weights found are in a format that can run code when opened (pickle)."""


class ArchitectureError(ModelError):
    """The weights belong to another architecture, or the adapter to another base."""


class ServerError(ModelError):
    """A model server answered none of the requests of a call.

    Attributes:
        reason: What happened to the first one in a word, such as ``"timeout"``.
    """

    def __init__(self, message: str, reason: str = "no_answer") -> None:
        super().__init__(message)
        self.reason = reason


class ScorerError(ProcrewardError, RuntimeError):
    """A scorer broke its contract (wrong count, wrong type, out-of-range value)."""


class ScorerFailedError(ScorerError):
    """More queries failed in a row than ``max_consecutive_failures`` allows."""


class ConformanceError(ProcrewardError, AssertionError):
    """A scorer or a wrapped environment failed its suite of :mod:`procreward.testing`."""
