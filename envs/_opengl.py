"""Where OpenGL may be used: on one thread, not in a fork, and not after the interpreter's end."""

from __future__ import annotations

import atexit
import functools
import os
import threading
import weakref
from typing import Final, Protocol

from procreward.errors import FrameError, MissingDependencyError

__all__ = ["DrawingThread", "close_at_exit", "no_context", "same_process"]

_HELP: Final = (
    "Install a software renderer: on Debian or Ubuntu `apt-get install libegl1 libegl-mesa0 "
    "libgl1-mesa-dri` for MUJOCO_GL=egl, or `apt-get install libosmesa6` for MUJOCO_GL=osmesa."
)


class _Closable(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()


class DrawingThread:
    """Holds drawing to the thread that drew first.

    Example:
        >>> place = DrawingThread()
        >>> place.enter()
        >>> place.enter()
    """

    def __init__(self) -> None:
        self._thread: int | None = None

    def enter(self) -> None:
        """Say that drawing begins.

        Raises:
            FrameError: If it began on another thread (OpenGL would answer with a black picture),
                or in a process that this one was forked from (it would wait for ever).
        """
        if not same_process():
            raise FrameError(
                "This process was forked from one that had drawn frames, and OpenGL would hang in "
                'it. Start workers with `context="spawn"` (AsyncVectorEnv) or before the first '
                "frame."
            )
        if self._thread is None:
            self._thread = threading.get_ident()
        if self._thread != threading.get_ident():
            raise FrameError(
                "A frame was asked for on another thread than the environment's first frame; "
                "OpenGL would return a black picture. Draw on one thread and hand the frames over."
            )


def same_process() -> bool:
    """Whether this is the process that drew first; True where none has drawn yet."""
    return _first_process() == os.getpid()


@functools.cache
def _first_process() -> int:
    # Mesa's worker threads do not survive a fork, whichever simulator drew before it.
    return os.getpid()


def no_context(platform: str, error: Exception) -> MissingDependencyError:
    """Return the error for an OpenGL context that could not be made.

    Args:
        platform: What ``MUJOCO_GL`` says.
        error: What went wrong.
    """
    return MissingDependencyError(
        f"No OpenGL context could be made with MUJOCO_GL={platform!r} "
        f"({type(error).__name__}: {error}). {_HELP}"
    )


def close_at_exit(owner: _Closable) -> None:
    """Close what holds an OpenGL context before MuJoCo takes the display down.

    Freed after that, a context prints tracebacks. Call this after the context was made, when
    MuJoCo's own exit handler is registered: handlers run last in, first out.

    Args:
        owner: Anything with a ``close()`` that can be called twice.
    """
    _open.add(owner)
    # Each simulator registers a handler with its first context: ours moves behind the latest.
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for owner in list(_open):
        owner.close()
