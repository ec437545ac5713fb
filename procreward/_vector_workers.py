"""The worker processes of a vector environment, Gymnasium's or Stable-Baselines3's.

* :class:`Workers` - who has died, and how to end the others without waiting for an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, cast

from procreward.errors import WorkerError

__all__ = ["Workers"]

WORKER_EXIT_S = 5.0


class Workers:
    """The processes of an ``AsyncVectorEnv`` or a ``SubprocVecEnv``; of other environments none."""

    def __init__(self, env: Any) -> None:
        """Look at the processes.

        Args:
            env: The environment that has started them, without wrappers. Where they were forked by
                a ``SubprocVecEnv``, its pipes are exchanged for such as notice a death.
        """
        self._env = env
        self._processes: Sequence[Any] = getattr(env, "processes", ())
        self._interrupted = False
        if hasattr(env, "remotes") and isinstance(self._processes[0], ForkProcess):
            env.remotes = tuple(map(_Pipe, env.remotes, self._processes))
        # Those of Gymnasium; it puts None in place of one.
        self._pipes: Sequence[Any] = getattr(env, "parent_pipes", getattr(env, "remotes", ()))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Say what has happened if a worker dies inside the block, and end the others.

        Raises:
            WorkerError: If one has died.
        """
        try:
            yield
        except (EOFError, ConnectionError) as error:
            self._await_exit()
            codes = self._exit_codes()
            if not codes:
                raise
            self._end()
            raise WorkerError(
                f"Workers of {type(self._env).__name__} have died, by index and exit code: "
                f"{codes}. With code 1 their traceback is above; a negative code is a signal (-9: "
                "killed, often for lack of memory). The environment is closed; make it anew, with "
                "fewer or smaller sub-environments."
            ) from error
        except BaseException as error:
            # Ctrl-C may leave answers unread, after which no worker would be understood.
            self._interrupted |= not isinstance(error, Exception)
            raise

    def end_if_lost(self) -> None:
        """End the workers if one has died or Ctrl-C came between question and answer.

        The environment's own ``close()`` would fail, or wait for an answer that never comes.
        """
        lost = self._exit_codes() or (self._interrupted and self._processes)
        if lost and not self._env.closed:
            self._end()

    def _await_exit(self) -> None:
        # One whose pipe has just closed is still on its way out.
        sentinels = {process.sentinel: process for process in self._processes}
        for sentinel in wait(sentinels, timeout=WORKER_EXIT_S if sentinels else 0):
            sentinels[cast(int, sentinel)].join()

    def _exit_codes(self) -> dict[int, int]:
        """Exit codes of the workers that have died."""
        return {
            index: process.exitcode
            for index, (pipe, process) in enumerate(zip(self._pipes, self._processes, strict=False))
            # No pipe: its sub-environment raised, has told so, and it went in peace.
            if pipe is not None and process.exitcode is not None
        }

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()
        for pipe in self._pipes:
            if pipe is not None:
                pipe.close()
        self._env.closed = True


class _Pipe:
    """The pipe to a worker that was forked; does not wait for one that is dead.

    A ``SubprocVecEnv`` makes all pipes before it forks, so that other workers hold the dead one's
    end, and reading from it would never come to an end.
    """

    def __init__(self, pipe: Connection, process: Any) -> None:
        self._pipe, self._process = pipe, process

    def recv(self) -> Any:
        if self._pipe not in wait([self._pipe, self._process.sentinel]):
            raise EOFError
        return self._pipe.recv()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)
