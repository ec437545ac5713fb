from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from procreward.training.environments import find_normalise
from procreward.training.plan import TrainPlan, prepare
from tests.training.conftest import LEARNERS, config
from tests.training.envs import OWN_HORIZON


def planned(out: Path, algorithm: str = "ppo", *, dry: bool = False, **changes: Any) -> TrainPlan:
    setup = prepare(config(out, algorithm, **changes), dry=dry)
    setup.close()
    return setup.plan


def test_an_environment_that_cuts_itself_off_has_a_horizon(tmp_path: Path) -> None:
    plan = planned(tmp_path, env=OWN_HORIZON)
    assert (plan.horizon, plan.queries, plan.notes) == (8, 64, ())


@pytest.mark.parametrize(
    ("learning_starts", "notes"),
    [
        (126, ()),
        (128, ("nothing is learned: `learner.learning_starts` is not reached.",)),
    ],
)
def test_a_run_that_ends_before_it_learns_says_so(
    tmp_path: Path, learning_starts: int, notes: tuple[str, ...]
) -> None:
    learner = {**LEARNERS["sac"], "learning_starts": learning_starts}
    assert planned(tmp_path, "sac", learner=learner).notes == notes


def test_a_dry_run_leaves_what_another_run_is_writing(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / ".step-000000016.999.partial"
    half.mkdir(parents=True)
    planned(tmp_path, dry=True)
    assert half.exists()
    planned(tmp_path)
    assert not half.exists()


@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_pictures_reach_convolutions_as_they_are(tmp_path: Path, algorithm: str) -> None:
    changes = {"env": "procreward/Toy-v0", "env_kwargs": {"observe_pixels": True}}
    setup = prepare(config(tmp_path, algorithm, **changes))
    try:
        model: Any = setup.model
        policy = model.policy if algorithm == "ppo" else model.actor
        assert type(policy.features_extractor.extractors["pixels"]).__name__ == "NatureCNN"
        # SAC's replay buffer takes what comes from below the normalisation.
        model.learn(4)
        obs: Any = setup.venv.reset()
        assert (obs["pixels"].dtype, obs["pixels"].shape) == (np.uint8, (2, 3, 64, 64))
        assert find_normalise(setup.venv).norm_obs_keys == ["state"]  # type: ignore[union-attr]  # it has one
    finally:
        setup.close()
