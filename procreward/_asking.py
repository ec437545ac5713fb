"""A thread that asks the models while the simulator goes on.

* :class:`AskingThread` - one thread, first in, first out.

**The interpreter lock.** Only one thread of a process runs Python at a time, and one that wants to
waits for up to ``sys.getswitchinterval()`` (5 ms by default) while another does. A simulator that
gives the lock up in every call would wait that long again and again whenever a model's own Python
code (tokenising, preparing pictures) runs. So the interval is lowered to
:data:`SWITCH_INTERVAL_S` while a model is being asked, and put back when the last one is done. It
is a setting of the whole process; one that is lower already is left alone. The thread itself does
next to nothing: it takes questions, hands them on and waits, without polling. Frames are drawn,
buffered and turned into rewards on the caller's thread.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from procreward.runner import Answer, DueQuery, QueryRunner

__all__ = ["AskingThread"]

logger = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 2e-4
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Task:
    """Queries to be put together, or streams to be released, and the promise of an answer."""

    dues: Sequence[DueQuery]
    streams: tuple[str, ...]
    future: Future[list[Answer]]


_Tasks = SimpleQueue["_Task | None"]


class AskingThread:
    """Asks the models on a thread of its own, first in, first out.

    The thread is started by the first task. When it becomes free it takes everything that waits,
    in one ``score`` call. It holds no reference to this object, and ends when this is forgotten.
    """

    def __init__(self, runner: QueryRunner) -> None:
        """Start nothing yet.

        Args:
            runner: Who asks the models; from the first task on used by the thread alone.
        """
        self._runner = runner
        self._tasks: _Tasks = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def ask(self, dues: Sequence[DueQuery]) -> Future[list[Answer]]:
        """Put queries, after all that was put before.

        Args:
            dues: What was due together.

        Returns:
            Their answers in order, or what :meth:`procreward.runner.QueryRunner.run` raised.
            Cancelled where :meth:`close` came first.
        """
        return self._put(dues, ())

    def release(self, streams: Sequence[str]) -> Future[list[Answer]]:
        """Tell the models that streams have ended, after all that was put before.

        Args:
            streams: Names of the streams.

        Returns:
            No answers, or what the models raised.
        """
        return self._put((), tuple(streams))

    def _put(self, dues: Sequence[DueQuery], streams: tuple[str, ...]) -> Future[list[Answer]]:
        task = _Task(dues, streams, Future())
        if self._closed.is_set():
            task.future.cancel()
            return task.future
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work,
                args=(self._runner, self._tasks, self._closed),
                name="procreward-asking",
                daemon=True,
            )
            self._thread.start()
            weakref.finalize(self, self._tasks.put, None).atexit = False
        self._tasks.put(task)
        return task.future

    def close(self) -> None:
        """End the thread: queries that were not asked yet never are, streams are released.

        A model that is being asked is waited for, but for no more than :data:`CLOSE_TIMEOUT_S`
        seconds; then the thread is left to end by itself. May be called again.
        """
        self._closed.set()
        if self._thread is None or self._thread is threading.current_thread():
            return
        self._tasks.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            logger.warning(
                "a model has not answered within %g s of close(); it is left behind and ends with "
                "the process.",
                CLOSE_TIMEOUT_S,
            )


def _work(runner: QueryRunner, tasks: _Tasks, closed: threading.Event) -> None:
    """Do what comes in until None does."""
    ended = False
    while not ended:
        batch = [tasks.get()]
        try:
            while True:
                batch.append(tasks.get_nowait())
        except Empty:
            pass
        ended = None in batch
        _do([task for task in batch if task is not None], runner, closed)


def _do(tasks: Sequence[_Task], runner: QueryRunner, closed: threading.Event) -> None:
    questions = [task for task in tasks if task.dues and not closed.is_set()]
    # A stream is released after its last query, so all queries may go before all releases.
    if questions:
        with _short_switch_interval():
            _ask(questions, runner)
    for task in tasks:
        if not task.dues:
            _release(task, runner)
        elif not task.future.done():
            task.future.cancel()


def _ask(tasks: Sequence[_Task], runner: QueryRunner) -> None:
    answered = runner.run_many([task.dues for task in tasks])
    done = 0
    try:
        for answers in answered:
            tasks[done].future.set_result(answers)
            done += 1
    except BaseException as error:
        # Whatever it is, somebody waits for it.
        for task in tasks[done:]:
            task.future.set_exception(error)


def _release(task: _Task, runner: QueryRunner) -> None:
    try:
        runner.release(task.streams)
    except BaseException as error:
        task.future.set_exception(error)
    else:
        task.future.set_result([])


_asking = 0
_interval_before = 0.0
_interval_lock = threading.Lock()


@contextmanager
def _short_switch_interval() -> Iterator[None]:
    """Let threads take turns more often inside the block; the last block puts the interval back."""
    global _asking, _interval_before
    with _interval_lock:
        _asking += 1
        if _asking == 1:
            _interval_before = sys.getswitchinterval()
            if _interval_before > SWITCH_INTERVAL_S:
                sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        with _interval_lock:
            _asking -= 1
            if _asking == 0 and _interval_before > SWITCH_INTERVAL_S:
                # It is kept in whole microseconds, rounded down.
                sys.setswitchinterval(_interval_before + 5e-7)
