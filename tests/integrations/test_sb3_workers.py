"""Sub-environments in processes of their own, which can die."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv

from procreward.errors import WorkerError
from procreward.integrations.sb3 import make_progress_vec_env
from tests.helpers import CounterEnv

ACTIONS = np.zeros(3, int)


class EndsIn(CounterEnv):
    """Ends its process at the second step of sub-environment 1."""

    def step(self, action: Any) -> Any:
        if action == 1 and self.count == 1:
            os._exit(3)
        return super().step(action)


def forked(make: Any = EndsIn, start_method: str | None = "fork", **settings: Any) -> Any:
    venv = make_progress_vec_env(
        make,
        3,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": start_method},
        scorer="constant",
        **settings,
    )
    venv.reset()
    return venv


def alive(venv: Any) -> list[bool]:
    return [process.is_alive() for process in venv.unwrapped.processes]


@pytest.mark.parametrize("start_method", ["fork", None])
def test_a_dead_worker_is_named(start_method: str | None) -> None:
    venv = forked(CounterEnv, start_method)
    dead = venv.unwrapped.processes[1]
    os.kill(dead.pid, signal.SIGKILL)
    dead.join()
    with pytest.raises(WorkerError, match=r"by index and exit code: \{1: -9\}"):
        venv.step(ACTIONS)
    assert alive(venv) == [False, False, False]
    venv.close()


def test_a_forked_worker_that_dies_in_a_step_is_not_waited_for() -> None:
    # The first worker was forked while the second one's end of the pipe was open.
    venv = forked()
    venv.step(ACTIONS)
    with pytest.raises(WorkerError, match=r"by index and exit code: \{1: 3\}"):
        venv.step(np.array([0, 1, 0]))
    assert alive(venv) == [False, False, False]
    venv.close()


def test_a_worker_that_cannot_make_its_sub_environment() -> None:
    def fail() -> CounterEnv:
        os._exit(1)

    with pytest.raises(WorkerError, match="A worker of SubprocVecEnv has died while it made"):
        forked(fail)


def test_closing_above_a_dead_worker_ends_the_others() -> None:
    venv = forked()
    dead = venv.unwrapped.processes[0]
    os.kill(dead.pid, signal.SIGKILL)
    dead.join()
    venv.close()
    assert alive(venv) == [False, False, False]


def test_closing_after_ctrl_c_in_the_middle_of_a_step() -> None:
    venv = forked()
    inner = venv.unwrapped
    inner.step_async(ACTIONS)
    read = inner.remotes[0].recv

    def interrupted() -> Any:
        read()
        raise KeyboardInterrupt

    inner.remotes[0].recv = interrupted
    # The first answer is read by now and the others are not: no close() may wait for all three.
    with pytest.raises(KeyboardInterrupt):
        venv.step_wait()
    venv.close()
    assert alive(venv) == [False, False, False]
