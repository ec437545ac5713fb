from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from procreward.errors import ConfigError, InstructionError, UnknownNameError
from procreward.instruction import InstructionSource
from tests.helpers import CounterEnv

ROBOCASA_KEY = "annotation.human.task_description"


def read(spec: Any, *, env: Any = None, obs: Any = None, info: Any = None) -> str:
    env = env or CounterEnv(instruction=None)
    return InstructionSource(spec).read(env, obs, info or {})


def test_a_sentence() -> None:
    assert read("  close the drawer ") == "close the drawer"
    assert read("info: read the note") == "info: read the note"
    assert read("goal: the door") == "goal: the door"


def test_observation_info_and_attribute() -> None:
    assert read("obs:task", obs={"task": "a"}) == "a"
    assert read("obs:task/text", obs={"task": {"text": np.str_("b")}}) == "b"
    assert read("info:task", info={"task": "c"}) == "c"
    assert read("attr:instruction", env=CounterEnv(instruction="d")) == "d"


def test_callable() -> None:
    def instruction(env: Any, obs: Any, info: dict[str, Any]) -> str:
        return f"{env.num_steps} {obs} {info['x']}"

    assert read(instruction, obs=1, info={"x": 2}) == "10 1 2"


def test_default_places_in_order() -> None:
    env, obs = CounterEnv(instruction="attribute"), {ROBOCASA_KEY: "observation"}
    assert read(None, env=env, obs=obs, info={"instruction": "info"}) == "info"
    assert read(None, env=env, obs=obs) == "attribute"
    assert read(None, obs=obs) == "observation"


def test_text_that_no_file_can_hold_is_refused() -> None:
    # What Python makes of an argument of the command line that is not UTF-8.
    said = b"lift \xff".decode(errors="surrogateescape")
    with pytest.raises(InstructionError, match="must be text that UTF-8 can hold"):
        read("info:task", info={"task": said})


def test_attribute_below_wrappers() -> None:
    env = gym.wrappers.TimeLimit(CounterEnv(instruction="deep"), 5)
    assert read(None, env=env) == "deep"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"No instruction at info\['instruction'\], the environment's attribute"),
        ("obs:task", r"No instruction at obs\['task'\]"),
        ("info:task", r"No instruction at info\['task'\].*Pass the task in words"),
        (lambda env, obs, info: "", r"what the `instruction` callable returned must be a sentence"),
        (lambda env, obs, info: None, r"callable returned must be a sentence.*got None"),
    ],
)
def test_nothing_there(spec: Any, message: str) -> None:
    with pytest.raises(InstructionError, match=message):
        read(spec, obs={})


def test_empty_values() -> None:
    with pytest.raises(InstructionError, match=r"`instruction` must be a sentence .*got ' '"):
        InstructionSource(" ")
    with pytest.raises(InstructionError, match=r"info\['instruction'\] must be a sentence"):
        read(None, info={"instruction": ""})


def test_other_types() -> None:
    with pytest.raises(ConfigError, match="`instruction` must be a string, a callable"):
        InstructionSource(3)  # type: ignore[arg-type]  # wrong on purpose, or from a mapping


def test_names_are_checked_before_the_first_episode() -> None:
    env = CounterEnv(dict_obs=True)
    InstructionSource("obs:image/x").check(env)
    InstructionSource("info:anything").check(env)
    with pytest.raises(UnknownNameError, match=r"observation key 'imag'. Did you mean 'image'\?"):
        InstructionSource("obs:imag").check(env)
    with pytest.raises(UnknownNameError, match=r"attribute 'instruktion'. Did you mean 'instruct"):
        InstructionSource("attr:instruktion").check(env)
