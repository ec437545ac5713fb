"""RoboCasa's environments in a tiny kitchen; ``make test-robocasa`` runs these."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from tests.robocasa import tiny_kitchen

HERE = Path(__file__).parent
HORIZON = 100

Kitchens = Callable[[str], gym.Env[Any, Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = importlib.util.find_spec("robocasa") is None
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("robocasa")
            if absent:
                item.add_marker(pytest.mark.skip(reason="RoboCasa: see `make test-robocasa`"))


@pytest.fixture(scope="session")
def tiny_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny kitchen's assets folder, with RoboCasa set up to run in it."""
    folder = tiny_kitchen.write_assets(tmp_path_factory.mktemp("tiny") / "assets")
    tiny_kitchen.set_up(folder)
    return folder


@pytest.fixture(scope="session")
def kitchens(tiny_assets: Path) -> Iterator[Kitchens]:
    """Task to its environment, made once: that takes some ten seconds."""
    made: dict[str, gym.Env[Any, Any]] = {}

    def kitchen(task: str) -> gym.Env[Any, Any]:
        if task not in made:
            made[task] = gym.make(
                "procreward.envs:procreward/RoboCasa-v0", task=task, horizon=HORIZON
            )
        return made[task]

    yield kitchen
    for env in made.values():
        env.close()
