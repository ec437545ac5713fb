from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest

from procreward.demo import DemoConfig, choose_policies, make_policy, prepare, run_demo
from procreward.errors import (
    ConfigError,
    InstructionError,
    MissingDependencyError,
    UnknownNameError,
    UnsupportedEnvError,
)
from procreward.report.records import read_records
from procreward.rollout import RandomPolicy

TOY = "procreward/Toy-v0"
ALL = ("expert", "fail", "random")


def toy(out: Path, **changes: object) -> DemoConfig:
    values = {"env": TOY, "scorer": "scripted", "max_steps": 12, "episodes": 2, "out": out}
    return DemoConfig(**{**values, **changes})  # type: ignore[arg-type]  # on purpose


def test_everything_promised_is_written(tmp_path: Path) -> None:
    said: list[str] = []
    files = run_demo(toy(tmp_path / "out", policy=("random",), seed=3), said.append)
    names = ["random-0.mp4", "random-1.mp4", "episodes.jsonl", "progress.png"]
    assert [path.name for path in files] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert all(path.stat().st_size > 1000 for path in files)
    assert all(str(path) in said[-1] for path in files)


def test_records_and_table_tell_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    run_demo(toy(tmp_path, policy=("random",), seed=3), said.append)
    records = read_records(tmp_path / "episodes.jsonl")
    assert [(record.policy, record.episode, record.seed) for record in records] == [
        ("random", 0, 3),
        ("random", 1, 4),
    ]
    # The script rises by 2 points a step; at gamma 1 the return is what was gained.
    assert [record.episode_return for record in records] == pytest.approx([0.24, 0.24])
    assert [(record.steps, record.queries) for record in records] == [(12, 3), (12, 3)]
    table = said[-2].splitlines()
    assert table[2].split() == ["random", "0", "12", "+0.240", "24", "%", "no", "no", "3", "0"]


def test_the_same_settings_give_the_same_episodes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_demo(toy(tmp_path / name, policy=("random",)), lambda _: None)
    one, two = (tmp_path / name / "episodes.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_an_earlier_demo_in_the_folder_is_replaced(tmp_path: Path) -> None:
    run_demo(toy(tmp_path, policy=("random",)), lambda _: None)
    for name in ("expert-0.mp4", "mine-0.mp4", "expert.mp4", "report.html"):
        (tmp_path / name).touch()
    run_demo(toy(tmp_path, policy=("random",), episodes=1), lambda _: None)
    written = ["episodes.jsonl", "progress.png", "random-0.mp4"]
    others = ["expert.mp4", "mine-0.mp4", "report.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*written, *others])


def test_scripted_policies_fall_back_to_random_where_there_is_no_expert(tmp_path: Path) -> None:
    said: list[str] = []
    run_demo(toy(tmp_path, policy=ALL, episodes=1), said.append)
    assert said[0] == (
        "note: procreward/Toy-v0 has no scripted experts (expert, fail): actions are random."
    )
    assert [record.policy for record in read_records(tmp_path / "episodes.jsonl")] == ["random"]


def test_policies_are_those_asked_for_once_each() -> None:
    assert choose_policies("procreward/Lift-v0", ALL) == (ALL, ())
    assert choose_policies("procreward/DrawerClose-v0", ("stall", "stall")) == (("stall",), ())
    assert choose_policies("CartPole-v1", ("random",)) == (("random",), ())
    with pytest.raises(UnknownNameError, match="Did you mean 'expert'"):
        choose_policies("procreward/Lift-v0", ("exprt",))


def test_random_means_uniform_actions_also_where_there_are_experts() -> None:
    assert isinstance(make_policy("procreward/Lift-v0", "random", 0), RandomPolicy)
    with pytest.raises(UnknownNameError, match="environment with experts"):
        make_policy(TOY, "expert", 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scorer": "nanoo"}, UnknownNameError, "Unknown scorer 'nanoo'"),
        ({"judge": "constnt"}, UnknownNameError, "Did you mean 'constant'"),
        ({"policy": ("fly",)}, UnknownNameError, "Unknown policy 'fly'"),
        ({"env": "procreward/Lyft-v0"}, UnknownNameError, "Did you mean 'procreward/Lift-v0'"),
        ({"env": "nosuchpackage:Env-v0"}, MissingDependencyError, "nosuchpackage"),
        ({"env": "CartPole-v7"}, UnsupportedEnvError, "CartPole-v7 cannot be made"),
    ],
    ids=str,
)
def test_bad_names_are_found_before_any_work(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(toy(tmp_path / "out", **changes))
    assert not list(tmp_path.glob("out/*"))


def test_a_missing_instruction_is_found_before_any_work(tmp_path: Path) -> None:
    env_id = "procreward-tests/Untold-v0"
    gym.register(env_id, "tests.helpers:CounterEnv", kwargs={"instruction": None})
    try:
        with pytest.raises(InstructionError, match="Pass the task in words as `instruction`"):
            prepare(toy(tmp_path, env=env_id))
        assert prepare(toy(tmp_path, env=env_id, instruction="count")).horizon == 12
    finally:
        del gym.registry[env_id]


def test_an_output_folder_that_cannot_be_made_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="`out` must be a folder that can be written to"):
        prepare(toy(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "`episodes` must be an integer of at least 1, got 0"),
        ({"every_k_steps": 0}, "`every_k_steps` must be an integer of at least 1, got 0"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        ({"max_steps": 0}, "`max_steps` must be an integer of at least 1, got 0"),
        ({"policy": ()}, "`policy` must name at least one policy"),
        ({"fps": 0.0}, "`fps` must be above 0"),
    ],
    ids=str,
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toy(tmp_path, **changes)


def test_the_horizon_is_the_environments_own_unless_given(tmp_path: Path) -> None:
    for max_steps, horizon in ((None, 50), (12, 12)):
        setup = prepare(toy(tmp_path, max_steps=max_steps))
        setup.env.close()
        assert setup.horizon == horizon


@pytest.mark.sim
@pytest.mark.slow
def test_the_expert_lifts_and_the_video_shows_it(tmp_path: Path) -> None:
    config = DemoConfig(
        scorer="constant", policy=("expert",), episodes=1, max_steps=70, out=tmp_path
    )
    files = run_demo(config, lambda _: None)
    [record] = read_records(tmp_path / "episodes.jsonl")
    assert record.final_success
    assert record.trace[0].true_progress < 0.2 < 0.9 < record.trace[-1].true_progress  # type: ignore[operator]  # known here
    assert files[0].stat().st_size > 50_000
