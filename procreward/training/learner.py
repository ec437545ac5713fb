"""The learners: algorithms of Stable-Baselines3, built from settings that were checked.

* :func:`build_learner` - a learner for a ``VecEnv``.
* :func:`check_keywords` - the ``learner`` mapping against the algorithm's own signature.
* :data:`ALGORITHMS` - the names.

Needs ``pip install "procreward[train]"``.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from procreward.checks import check, check_choice, check_names, is_int, is_number
from procreward.config import as_json
from procreward.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from procreward.config import RewardConfig

__all__ = ["ALGORITHMS", "build_learner", "check_keywords", "find_algorithm"]

ALGORITHMS: Final = ("ppo", "sac")
"""What ``algorithm`` may be."""

_REFUSED: Final = {
    "gamma": "the one discount is `reward: {gamma: ...}`; the learner is given that",
    "env": "the environment is `env`, and is rewarded by the model",
    "seed": "the one seed is `seed`",
    "verbose": "the progress bar and TensorBoard tell how the run goes",
    "tensorboard_log": "the curves go into the run's own folder, `out`",
    "_init_setup_model": "the learner has to be complete",
    "rollout_buffer_class": "`latency` decides which buffer is right",
    "replay_buffer_class": "`latency` decides which buffer is right",
    "action_noise": "it is an object, which a file of settings cannot hold",
}

_ACTIVATIONS: Final = ("tanh", "relu", "elu", "leaky_relu", "silu", "gelu")
_MODULES: Final = dict(
    zip(_ACTIVATIONS, ("Tanh", "ReLU", "ELU", "LeakyReLU", "SiLU", "GELU"), strict=True)
)

# Name -> rule and what keeps it. What Stable-Baselines3 would take without a word and then train
# nothing, or fail on hours later.
_LEAST: Final = {
    "n_steps": 1,
    "batch_size": 2,
    "n_epochs": 1,
    "buffer_size": 1,
    "learning_starts": 0,
    "target_update_interval": 1,
    "stats_window_size": 1,
}
_POSITIVE: Final = ("learning_rate", "clip_range", "tau", "max_grad_norm")


class LearnerSettings(Protocol):
    """What :func:`build_learner` reads; a :class:`~procreward.training.config.TrainConfig` is one.

    Attributes:
        algorithm: ``"ppo"`` or ``"sac"``.
        seed: Seed of the learner.
        learner: Keyword arguments of the algorithm, ``policy`` included.
        reward: Its ``gamma`` is the learner's.
    """

    @property
    def algorithm(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def learner(self) -> Mapping[str, Any]: ...
    @property
    def reward(self) -> RewardConfig: ...


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """Return the class of an algorithm.

    Args:
        name: One of :data:`ALGORITHMS`.

    Raises:
        ConfigError: If there is no such algorithm.
        MissingDependencyError: If Stable-Baselines3 is not installed.
    """
    check_choice("algorithm", name, ALGORITHMS)
    try:
        from stable_baselines3 import PPO, SAC
    except ImportError as error:
        raise MissingDependencyError(
            f"Training needs Stable-Baselines3, which could not be imported ({error}). "
            "Run `pip install 'procreward[train]'`."
        ) from error
    return PPO if name == "ppo" else SAC


def check_keywords(algorithm: str, learner: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse what the algorithm does not take; return the rest as plain values.

    Args:
        algorithm: One of :data:`ALGORITHMS`.
        learner: Keyword arguments, as a YAML file holds them. In ``policy_kwargs`` the
            ``activation_fn`` is a name, such as ``tanh``.

    Raises:
        ConfigError: If a value has the wrong type or is out of range, or is settled elsewhere.
        UnknownNameError: If there is no such keyword.
    """
    check(isinstance(learner, Mapping), "learner", "a mapping of keyword arguments", learner)
    cls = find_algorithm(algorithm)
    for name in learner:
        if name in _REFUSED:
            raise ConfigError(
                f"`learner` must not hold {name!r}, got {learner[name]!r}: {_REFUSED[name]}."
            )
    parameters = inspect.signature(cls).parameters
    known = [name for name in parameters if name not in _REFUSED]
    check_names(f"keyword of {cls.__name__} in `learner`", learner, known)
    values: dict[str, Any] = as_json(learner)
    for name, value in values.items():
        _check_type(name, value, parameters[name].annotation)
        _check_range(name, value)
    _activation(values.get("policy_kwargs") or {})
    return values


def build_learner(config: LearnerSettings, venv: VecEnv, **settled: Any) -> BaseAlgorithm:
    """Build a learner; its discount is ``config.reward.gamma``.

    Without ``policy`` it is ``MlpPolicy`` (``MultiInputPolicy`` for dictionary observations), and
    without ``device`` the learner runs on the CPU, where small networks are fastest; the reward
    model chooses its device itself.

    Args:
        config: The settings.
        venv: What it learns in, normalisation included.
        settled: Keyword arguments that ``learner`` may not hold and the caller answers for, such as
            ``replay_buffer_class``.

    Raises:
        ConfigError: If the algorithm refuses the settings or the spaces of ``venv``.
        UnknownNameError: If a keyword is none of the algorithm's.
    """
    from gymnasium.spaces import Dict

    cls: type[Any] = find_algorithm(config.algorithm)
    values = check_keywords(config.algorithm, config.learner)
    default = "MultiInputPolicy" if isinstance(venv.observation_space, Dict) else "MlpPolicy"
    policy = values.pop("policy", default)
    keywords: dict[str, Any] = {"device": "cpu", **values}
    if "policy_kwargs" in keywords:
        keywords["policy_kwargs"] = _activation(keywords["policy_kwargs"] or {})
    if isinstance(keywords.get("train_freq"), list):
        keywords["train_freq"] = tuple(keywords["train_freq"])
        ok = venv.num_envs == 1 or keywords["train_freq"][1] != "episode"
        fix = "Set `num_envs: 1`, or count steps."
        check(ok, "learner.train_freq", "in steps with several environments", "episodes", fix)
    try:
        model: BaseAlgorithm = cls(
            policy,
            venv,
            gamma=config.reward.gamma,
            seed=config.seed,
            **{**keywords, **settled},
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"`learner` must be what {cls.__name__} can learn with in spaces "
            f"{venv.observation_space} and {venv.action_space}, got {dict(config.learner)}: {error}"
        ) from error
    return model


def _activation(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Put the class in place of the name of the activation."""
    check(isinstance(policy_kwargs, Mapping), "policy_kwargs", "a mapping", policy_kwargs)
    values = dict(policy_kwargs)
    if "activation_fn" in values:
        check_choice("activation_fn", values["activation_fn"], _ACTIVATIONS)
        from torch import nn

        values["activation_fn"] = getattr(nn, _MODULES[values["activation_fn"]])
    return values


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that no branch of the annotation takes, among those that can be checked."""
    branches = typing.get_args(hint) if _is_union(hint) else (hint,)
    if isinstance(value, str) and str not in branches and _as_number(value) is not None:
        number = _as_number(value)
        raise ConfigError(
            f"`learner.{name}` must be a number, got the text {value!r}; YAML reads 3e-4 as text, "
            f"so write {number!r}."
        )
    checked = {int: "an integer", float: "a number", bool: "true or false", str: "a name"}
    # A schedule is a function, which no file holds; classes and noise are refused by their names.
    simple = [branch for branch in branches if branch in checked]
    others = [branch for branch in branches if typing.get_origin(branch) in (tuple, dict)]
    if type(None) in branches and value is None:
        return
    ok = any(_fits(value, branch) for branch in simple)
    ok = ok or any(isinstance(value, list | dict) for _ in others)
    rule = " or ".join([checked[branch] for branch in simple] + ["a list or mapping"] * len(others))
    check(ok, f"learner.{name}", rule or "left out", value)


def _is_union(hint: Any) -> bool:
    import types

    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool or kind is str:
        return isinstance(value, kind)
    return is_number(value) if kind is float else is_int(value, least=-(2**31))


def _as_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_range(name: str, value: Any) -> None:
    label = f"learner.{name}"
    if name in _LEAST:
        least = _LEAST[name]
        check(is_int(value, least=least), label, f"an integer of at least {least}", value)
    if name in _POSITIVE:
        check(is_number(value) and value > 0, label, "above 0", value)
    if name == "train_freq":
        _check_frequency(label, value)
    if name == "gradient_steps":
        ok = is_int(value, least=1) or value == -1
        check(ok, label, "an integer of at least 1, or -1 for as many as steps", value)
    if name in ("gae_lambda", "tau"):
        check(is_number(value) and 0 <= value <= 1, label, "in [0, 1]", value)


def _check_frequency(label: str, value: Any) -> None:
    """Refuse what comes to no step at all, or is no number of steps or episodes."""
    pair = value if isinstance(value, list) else [value, "step"]
    ok = len(pair) == 2 and is_int(pair[0], least=1) and pair[1] in ("step", "episode")
    check(ok, label, "an integer of at least 1, or a list such as [1, episode]", value)
