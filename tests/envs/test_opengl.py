"""OpenGL rules that hold across simulators; each case is a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from procreward.envs._opengl import DrawingThread
from procreward.errors import FrameError

pytestmark = pytest.mark.sim

BOTH = """
import gymnasium as gym
lift = gym.make("procreward.envs:procreward/Lift-v0", render_mode="rgb_array")
drawer = gym.make("procreward.envs:procreward/DrawerClose-v0", render_mode="rgb_array")
for env in (lift, drawer):
    env.reset(seed=0)
    assert env.render().std() > 20
"""
FORK = """
import os
from procreward.envs._opengl import DrawingThread
from procreward.errors import FrameError
DrawingThread().enter()
child = os.fork()
if not child:
    try:
        DrawingThread().enter()
    except FrameError as error:
        os._exit(0 if "spawn" in str(error) else 2)
    os._exit(1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("code", [BOTH, FORK], ids=["unclosed simulators exit quietly", "fork"])
def test_in_a_process_of_its_own(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_drawing_stays_on_its_thread() -> None:
    place = DrawingThread()
    caught: list[str] = []

    def elsewhere() -> None:
        try:
            place.enter()
        except FrameError as error:
            caught.append(str(error))

    place.enter()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "another thread" in caught[0]
