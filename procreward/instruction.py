"""Where an episode's instruction comes from.

Benchmarks keep the sentence in different places, and some write a new one for every episode, so it
is read once per episode, at the reset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from procreward.config import InstructionSpec
from procreward.errors import ConfigError, InstructionError, UnknownNameError

if TYPE_CHECKING:
    import gymnasium as gym

__all__ = ["InstructionSource", "check_instruction"]

INFO_KEY = "instruction"
ATTRIBUTE = "instruction"
OBSERVATION_KEY = "annotation.human.task_description"
KINDS = ("obs", "info", "attr")

_MISSING = object()


def check_instruction(instruction: object, place: str = "`instruction`") -> str:
    """Return an instruction without blanks around it.

    Args:
        instruction: What should be a sentence.
        place: What the message calls it.

    Raises:
        InstructionError: If it is no text, empty, or cannot be written as UTF-8.
    """
    if not isinstance(instruction, str) or not instruction.strip():
        raise InstructionError(
            f"{place} must be a sentence that names the task, got {instruction!r}."
        )
    try:
        instruction.encode()
    except UnicodeEncodeError as error:
        raise InstructionError(
            f"{place} must be text that UTF-8 can hold, got {instruction!r}; decode it with the "
            "encoding that it was written in."
        ) from error
    return str(instruction).strip()


class InstructionSource:
    """Reads the instruction of an episode from what its reset returned.

    Example:
        >>> InstructionSource("info:task").read(None, {}, {"task": "close the drawer"})
        'close the drawer'
    """

    def __init__(self, spec: InstructionSpec | None) -> None:
        """Keep the description.

        Args:
            spec: The sentence itself; ``"obs:KEY"`` or ``"info:KEY"`` (``/`` between nested keys);
                ``"attr:NAME"``; ``callable(env, obs, info) -> str``; or None, which tries
                ``info["instruction"]``, the environment's attribute ``instruction`` and
                ``obs["annotation.human.task_description"]``, in that order.

        Raises:
            InstructionError: If it is an empty sentence.
            ConfigError: If it is of another type.
        """
        if isinstance(spec, str):
            check_instruction(spec)
        elif spec is not None and not callable(spec):
            raise ConfigError(
                "`instruction` must be a string, a callable(env, obs, info) or None, got "
                f"{type(spec).__name__}."
            )
        self.spec = spec

    def check(self, env: gym.Env[Any, Any]) -> None:
        """Find a mistaken name before the first episode, as far as it can be seen by then.

        Raises:
            UnknownNameError: If ``"obs:KEY"`` or ``"attr:NAME"`` names what ``env`` has not.
        """
        kind, name = _split(self.spec)
        if kind == "attr" and not env.has_wrapper_attr(name):
            raise UnknownNameError("environment attribute", name, _public_attributes(env))
        spaces = getattr(env.observation_space, "spaces", {})
        if kind == "obs" and name not in spaces and name.split("/")[0] not in spaces:
            raise UnknownNameError("observation key", name, map(str, spaces))

    def read(self, env: gym.Env[Any, Any] | None, obs: object, info: Mapping[str, Any]) -> str:
        """Return the instruction of the episode that was just reset to.

        Args:
            env: The environment.
            obs: What its ``reset`` returned.
            info: What its ``reset`` returned.

        Raises:
            InstructionError: If there is none where it should be, or it is empty.
        """
        found, place = self._find(env, obs, info)
        if found is _MISSING:
            raise InstructionError(
                f"No instruction at {place}. Pass the task in words as `instruction`, or where to "
                'find it: "obs:KEY", "info:KEY", "attr:NAME" or a callable(env, obs, info).'
            )
        return check_instruction(found, place)

    def _find(
        self, env: gym.Env[Any, Any] | None, obs: object, info: Mapping[str, Any]
    ) -> tuple[object, str]:
        if callable(self.spec):
            return self.spec(env, obs, dict(info)), "what the `instruction` callable returned"
        if self.spec is None:
            return _default(env, obs, info)
        kind, name = _split(self.spec)
        if kind == "obs":
            return _lookup(obs, name), f"obs[{name!r}]"
        if kind == "info":
            return _lookup(info, name), f"info[{name!r}]"
        if kind == "attr":
            return _attribute(env, name), f"the environment's attribute {name!r}"
        return self.spec, "`instruction`"


def _default(
    env: gym.Env[Any, Any] | None, obs: object, info: Mapping[str, Any]
) -> tuple[object, str]:
    places = (
        (_lookup(info, INFO_KEY), f"info[{INFO_KEY!r}]"),
        (_attribute(env, ATTRIBUTE), f"the environment's attribute {ATTRIBUTE!r}"),
        (_lookup(obs, OBSERVATION_KEY), f"obs[{OBSERVATION_KEY!r}]"),
    )
    for found, place in places:
        if found is not _MISSING:
            return found, place
    return _MISSING, ", ".join(place for _, place in places)


def _split(spec: object) -> tuple[str, str]:
    """Kind and name of ``"obs:KEY"`` and the like; two empty strings for anything else."""
    if isinstance(spec, str):
        kind, colon, name = spec.partition(":")
        # A sentence may have a colon in it; a key has no blank after it.
        if colon and kind in KINDS and name and not name[0].isspace():
            return kind, name
    return "", ""


def _lookup(tree: object, key: str) -> object:
    if not isinstance(tree, Mapping):
        return _MISSING
    if key in tree:
        return tree[key]
    first, slash, rest = key.partition("/")
    return _lookup(tree[first], rest) if slash and first in tree else _MISSING


def _attribute(env: gym.Env[Any, Any] | None, name: str) -> object:
    if env is None or not env.has_wrapper_attr(name):
        return _MISSING
    return env.get_wrapper_attr(name)


def _public_attributes(env: gym.Env[Any, Any]) -> list[str]:
    return [name for name in vars(env.unwrapped) if not name.startswith("_")]
