"""The settings of a training run, from a YAML file.

* :class:`TrainConfig`, :class:`EvalConfig` - all settings; they check themselves.
* :func:`load_train_config`, :func:`train_config_names` - files, shipped ones by name.
* :func:`config_mapping` - a config as what YAML and JSON hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from procreward.checks import check, check_choice, check_int, check_names
from procreward.config import RewardConfig, ScorerConfig, as_json, field_names
from procreward.errors import ConfigError, UnknownNameError
from procreward.training.learner import ALGORITHMS, check_keywords

__all__ = [
    "LATENCIES",
    "EvalConfig",
    "TrainConfig",
    "config_mapping",
    "load_train_config",
    "train_config_names",
]

LATENCIES: Final = ("blocking", "deferred")
"""What ``latency`` may be."""

_OURS = "procreward/"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """The evaluation episodes of a run.

    Attributes:
        every_steps: Environment steps from one evaluation to the next, all sub-environments
            together; 0 for none but the last.
        episodes: Episodes of an evaluation.
        seed: Seed of the first one's reset; the others count up, in every evaluation alike.
        video: Episodes of the last evaluation that are filmed with the model's reading and drawn
            as progress curves; 0 for none.

    Raises:
        ConfigError: If a value is out of range.
    """

    every_steps: int = 10_000
    episodes: int = 20
    seed: int = 10_000
    video: int = 1

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 0), ("episodes", 1), ("seed", 0), ("video", 0)):
            check_int(f"eval.{name}", getattr(self, name), least=least)
        fix = "The filmed episodes are the first ones of an evaluation."
        check(self.video <= self.episodes, "eval.video", "at most `episodes`", self.video, fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A training run: environment, reward, learner, and what is written when.

    Attributes:
        env: What ``gym.make`` takes; ``MODULE:ID`` imports the module first. Ids that begin with
            ``procreward/`` need no module.
        env_kwargs: Arguments of ``gym.make``, such as ``max_episode_steps``.
        algorithm: ``"ppo"`` or ``"sac"``.
        total_steps: Environment steps, all sub-environments together. PPO ends with the rollout
            in which it gets there.
        num_envs: Sub-environments.
        workers: Whether every sub-environment has a process of its own; the reward model is in
            this one.
        seed: Seed of the learner and of the first sub-environment.
        latency: ``"blocking"`` (a step waits for the reward model) or ``"deferred"`` (it is asked
            while the simulators go on; the rewards are there before anything is learned).
        max_lag_steps: With ``"deferred"``, steps that a sub-environment may be ahead of an answer;
            None for twice ``every_k_steps``.
        reward: The reward. Its ``gamma`` is the learner's discount too. With
            ``env_reward_weight: 0``, the default, the learner never sees the simulator's reward.
        learner: Keyword arguments of the algorithm of Stable-Baselines3, ``policy`` included.
        normalise_obs: Whether observations are scaled by their running mean and variance; pictures
            in dictionary observations are left as they are. Rewards never are: shaping would be
            lost.
        checkpoint_every_steps: Environment steps from one checkpoint to the next; 0 for none but
            the last.
        eval: The evaluation episodes.
        out: Folder of the run.

    Raises:
        ConfigError: If a value has the wrong type or is out of range.
        UnknownNameError: If a keyword in ``learner`` is none of the algorithm's.
        MissingDependencyError: If Stable-Baselines3 is not installed.
    """

    env: str
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = "ppo"
    total_steps: int = 20_000
    num_envs: int = 4
    workers: bool = False
    seed: int = 0
    latency: str = "blocking"
    max_lag_steps: int | None = None
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: Mapping[str, Any] = field(default_factory=dict)
    normalise_obs: bool = True
    checkpoint_every_steps: int = 10_000
    eval: EvalConfig = field(default_factory=EvalConfig)
    out: Path = Path("runs/train")

    def __post_init__(self) -> None:
        self._check_env()
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        for name, least in (("total_steps", 1), ("num_envs", 1), ("seed", 0)):
            check_int(name, getattr(self, name), least=least)
        check_int("checkpoint_every_steps", self.checkpoint_every_steps, least=0)
        for name in ("workers", "normalise_obs"):
            value = getattr(self, name)
            check(isinstance(value, bool), name, "true or false", value)
        self._check_latency()
        for name, kind in (("reward", RewardConfig), ("eval", EvalConfig)):
            value = getattr(self, name)
            check(isinstance(value, kind), name, f"a {kind.__name__}", value)
        object.__setattr__(self, "learner", check_keywords(self.algorithm, self.learner))
        n_steps = self.learner.get("n_steps", 1)
        fix = "The buffer that holds transitions back sums up no rewards of several steps."
        ok = self.latency == "blocking" or self.algorithm == "ppo" or n_steps == 1
        check(ok, "learner.n_steps", "1 with latency: deferred", n_steps, fix)
        ok = isinstance(self.out, str | Path) and str(self.out) != ""
        check(ok, "out", "the path of a folder", self.out)
        object.__setattr__(self, "out", Path(self.out))

    def _check_env(self) -> None:
        check(isinstance(self.env, str) and self.env != "", "env", "an id of Gymnasium", self.env)
        # The module that registers it, which a worker process has to import.
        if self.env.startswith(_OURS):
            object.__setattr__(self, "env", f"procreward.envs:{self.env}")
        ok = isinstance(self.env_kwargs, Mapping) and all(
            isinstance(key, str) for key in self.env_kwargs
        )
        check(ok, "env_kwargs", "a mapping of arguments of gym.make", self.env_kwargs)
        object.__setattr__(self, "env_kwargs", as_json(self.env_kwargs))

    def _check_latency(self) -> None:
        check_choice("latency", self.latency, LATENCIES)
        if self.max_lag_steps is not None:
            check_int("max_lag_steps", self.max_lag_steps, least=1)
            fix = "With latency: blocking no step is ahead of an answer."
            ok = self.latency == "deferred"
            check(ok, "max_lag_steps", "left out", self.max_lag_steps, fix)


def train_config_names() -> tuple[str, ...]:
    """Return the names of the shipped training configs, sorted."""
    names = (item.name for item in _shipped().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_train_config(name_or_path: str | Path, **overrides: Any) -> TrainConfig:
    """Read a shipped config by its name, or any by its path.

    Args:
        name_or_path: A name of :func:`train_config_names`, or the path of a ``.yaml`` file. A path
            such as ``configs/train/NAME.yaml`` that does not exist here, but whose name is
            shipped, is the shipped one.
        overrides: Top-level settings that replace those of the file; None counts as not given.

    Raises:
        UnknownNameError: If there is no such config, or it has an unknown key.
        ConfigError: If the file cannot be read, is no mapping, or holds a wrong value.
        MissingDependencyError: If Stable-Baselines3 is not installed.

    Example:
        >>> load_train_config("toy-ppo", seed=3).seed
        3
    """
    path = _find(str(name_or_path))
    given = {name: value for name, value in overrides.items() if value is not None}
    check_names("training setting", given, field_names(TrainConfig))
    values = {"out": f"runs/{path.name.rpartition('.')[0]}", **read_mapping(path), **given}
    return train_config(values)


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """Build a config from what a YAML file holds.

    Args:
        values: The settings by name, ``reward`` and ``eval`` as mappings (or built).

    Raises:
        UnknownNameError: On a key that is no setting.
        ConfigError: If a value is wrong or ``env`` is missing.
    """
    check_names("training setting", values, field_names(TrainConfig))
    check("env" in values, "env", "given: an id of Gymnasium", None)
    # A key with nothing behind it, as in a file whose settings below it are commented out.
    given = {name: value for name, value in values.items() if value is not None}
    return TrainConfig(
        **{
            **values,
            "reward": _reward(given.get("reward", {})),
            "eval": _evaluation(given.get("eval", {})),
            "env_kwargs": given.get("env_kwargs", {}),
            "learner": given.get("learner", {}),
        }
    )


def config_mapping(config: TrainConfig) -> dict[str, Any]:
    """Return every setting as what YAML and JSON hold.

    Raises:
        ConfigError: If the reward holds an object (a live scorer, a function) that no file can.
    """
    values = {name: getattr(config, name) for name in field_names(TrainConfig)}
    reward = {name: getattr(config.reward, name) for name in field_names(RewardConfig)}
    for name in ("scorer", "judge"):
        if isinstance(reward[name], ScorerConfig):
            reward[name] = reward[name].to_dict()
        ok = reward[name] is None or isinstance(reward[name], str | Mapping)
        fix = "Register it (procreward.register_scorer) and give its name."
        check(ok, f"reward.{name}", "a name or a mapping, which a file can hold", reward[name], fix)
    ok = reward["instruction"] is None or isinstance(reward["instruction"], str)
    check(ok, "reward.instruction", "a text, which a file can hold", reward["instruction"])
    mapping: dict[str, Any] = as_json(
        {**values, "reward": reward, "eval": dataclasses.asdict(config.eval), "out": ""}
    )
    return {**mapping, "out": str(config.out)}


def read_mapping(path: Traversable) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: If it cannot be read or holds something else.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The training config {str(path)!r} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"The training config {str(path)!r} is not valid YAML: {error}"
        ) from error
    check(isinstance(values, dict), f"training config {path.name}", "a mapping of settings", values)
    return dict(values)


def _shipped() -> Traversable:
    return files("procreward.configs") / "train"


def _find(text: str) -> Traversable:
    """The file that is meant."""
    path, shipped = Path(text), train_config_names()
    is_file = path.suffix in (".yaml", ".yml")
    if is_file and (path.is_file() or path.stem not in shipped):
        return path
    if not (is_file or text in shipped):
        raise UnknownNameError("training config", text, shipped)
    return _shipped() / f"{path.stem}.yaml"


def _reward(values: Any) -> RewardConfig:
    if isinstance(values, RewardConfig):
        return values
    check(isinstance(values, Mapping), "reward", "a mapping of reward settings", values)
    check_names("reward setting", values, field_names(RewardConfig))
    return RewardConfig(**values)


def _evaluation(values: Any) -> EvalConfig:
    if isinstance(values, EvalConfig):
        return values
    check(isinstance(values, Mapping), "eval", "a mapping of evaluation settings", values)
    check_names("evaluation setting", values, field_names(EvalConfig))
    return EvalConfig(**values)
