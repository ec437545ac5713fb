"""Nothing heavy is imported before it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODELS = ["torch", "transformers", "peft", "safetensors"]
SIMULATORS = ["mujoco", "robosuite", "metaworld", "procreward.envs"]
PICTURES = ["imageio", "imageio_ffmpeg", "matplotlib", "PIL"]
EVERYTHING = [*MODELS, *SIMULATORS, *PICTURES]

WRAP = """
import gymnasium as gym
from procreward import ProgressReward
env = gym.make("procreward.envs:procreward/Toy-v0")
env = ProgressReward(env, scorer="{scorer}")
env.spec.to_json()
"""


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import procreward", [*EVERYTHING, "gymnasium", "numpy", "yaml"]),
        ("from procreward import *", EVERYTHING),
        ("import procreward.cli", [*MODELS, *SIMULATORS, "matplotlib"]),
        ("import procreward.testing", EVERYTHING),
        ("import procreward.scorers.scripted, procreward.scorers.constant", EVERYTHING),
        (
            "import procreward.scorers.procvlm, procreward.scorers.progresslm, "
            "procreward.scorers.topreward, procreward.scorers.completion_judge, "
            "procreward.engine.remote.served",
            [*EVERYTHING, "openai", "vllm"],
        ),
        ("import procreward.envs", [*MODELS, *SIMULATORS[:3], *PICTURES]),
        (WRAP.format(scorer="constant") + "env.reset()", [*MODELS, *SIMULATORS[:3], *PICTURES]),
        # Wrapping loads no model; only the first reset would.
        (WRAP.format(scorer="procvlm-2b"), [*MODELS, *SIMULATORS[:3], *PICTURES]),
    ],
)
def test_what_is_not_imported(code: str, absent: list[str]) -> None:
    check = f"\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + check], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_checkout_is_complete_without_being_installed() -> None:
    # -S leaves out site-packages, and with it every installed or editable copy.
    code = (
        "from importlib.util import find_spec\n"
        "import procreward\n"
        "print(all(find_spec(f'procreward.{n}') for n in ('envs', 'configs', 'types')))"
    )
    checkout = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=checkout
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
