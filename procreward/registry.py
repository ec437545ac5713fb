"""Names of scorers, and the one process-wide cache of built ones.

* :func:`register_scorer`, :func:`scorer_names` - a name for a ``"module:Class"``.
* :func:`resolve` - whatever names a scorer, made into a light :class:`ScorerHandle`.
* :func:`get_scorer` - the built scorer of a handle; loads weights at the first call only.
* :func:`built_scorer` - the same if it has been built, without building it.

A handle is JSON-able and cheap to copy, so that constructors, environment specs and worker
processes carry handles, never models. Third parties add scorers in the entry-point group
``procreward.scorers``.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from procreward.checks import check_names
from procreward.config import (
    Preset,
    ScorerConfig,
    ScorerSpec,
    as_json,
    field_names,
    load_preset,
    preset_names,
)
from procreward.errors import ConfigError, ScorerError, UnknownNameError
from procreward.types import Scorer

__all__ = [
    "ScorerHandle",
    "built_scorer",
    "clear_scorers",
    "get_scorer",
    "register_scorer",
    "registered_scorers",
    "resolve",
    "scorer_names",
]

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "procreward.scorers"
LIVE_PREFIX = "live:"
MODEL_SCORER = "procvlm"
"""Scorer and preset defaults of a bare model folder or hub id."""
PRESET_OF = {
    "procvlm": "procvlm-2b",
    "progresslm": "progresslm-3b-rl",
    "topreward": "topreward-qwen3-vl-8b",
}
"""Presets of scorers whose preset has another name than they."""

_BUILT_IN = {
    "completion_judge": "procreward.scorers.completion_judge:CompletionJudge",
    "constant": "procreward.scorers.constant:Constant",
    "procvlm": "procreward.scorers.procvlm:ProcVLM",
    "progresslm": "procreward.scorers.progresslm:ProgressLM",
    "scripted": "procreward.scorers.scripted:Scripted",
    "topreward": "procreward.scorers.topreward:TOPReward",
}
_registered: dict[str, str] = {}
_built: dict[str, Scorer] = {}
_live: dict[str, Scorer] = {}
# Not their number, which begins anew when they are forgotten: an old name is nobody else's.
_live_numbers = itertools.count()
_lock = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerHandle:
    """A scorer by description: everything but the scorer itself.

    Attributes:
        key: Names the built scorer in the process-wide cache.
        spec: JSON-able; :func:`resolve` makes an equal handle of it (a ``"live:..."`` key only in
            the process that it was made in).
        preset: The window, frame size and threshold that suit the scorer.
    """

    key: str
    spec: str | dict[str, Any]
    preset: Preset

    @property
    def config(self) -> ScorerConfig:
        """What the scorer is built from."""
        return self.preset.scorer


def register_scorer(name: str, target: str) -> None:
    """Give a scorer class a name for this process.

    Args:
        name: The name, for ``scorer=name`` and ``ScorerConfig(name=name)``.
        target: ``"package.module:Class"``; imported at the first query. The class has a
            ``from_config(config: ScorerConfig)`` classmethod and implements
            :class:`procreward.types.Scorer`.

    Raises:
        ConfigError: If the name is taken by another target, or the target is malformed.
    """
    module, _, attribute = target.partition(":")
    if not name or not module or not attribute:
        raise ConfigError(
            f"`target` must be 'package.module:Class' under a non-empty name, got {target!r} "
            f"for {name!r}."
        )
    taken = _targets().get(name)
    if taken is not None and taken != target:
        raise ConfigError(
            f"`name` must be a free scorer name, got {name!r}, which is {taken!r}; choose another."
        )
    _registered[name] = target


def scorer_names() -> tuple[str, ...]:
    """Return every registered scorer name, sorted: built in, registered, and by entry point."""
    return tuple(sorted(_targets()))


def registered_scorers() -> dict[str, str]:
    """Return name and target of every scorer that :func:`register_scorer` was told of here."""
    return dict(_registered)


def _targets() -> dict[str, str]:
    return {**_plugins(), **_registered, **_BUILT_IN}


@cache
def _plugins() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}


def resolve(spec: ScorerSpec | ScorerHandle) -> ScorerHandle:
    """Make a handle of whatever names a scorer. Builds and loads nothing.

    Args:
        spec: One of

            * the name of a preset (``"nano"``) or the path of a preset file;
            * the name of a registered scorer (``"constant"``);
            * a local model folder or a hub id (``"owner/name"``), run as ProcVLM is;
            * a mapping of :class:`~procreward.config.ScorerConfig` fields with a ``name``, or with
              a ``preset`` whose fields it overrides (``options`` are merged);
            * a :class:`~procreward.config.ScorerConfig`;
            * a live :class:`~procreward.types.Scorer`, which the process then keeps.

    Raises:
        UnknownNameError: If nothing has that name.
        ConfigError: If ``spec`` is of another type or holds a wrong value.
    """
    if isinstance(spec, ScorerHandle):
        return spec
    if isinstance(spec, str):
        return _resolve_name(spec)
    if isinstance(spec, ScorerConfig):
        return _handle(_default_preset(spec))
    if isinstance(spec, Mapping):
        return _resolve_mapping(spec)
    if isinstance(spec, Scorer) and not isinstance(spec, type):
        return _keep_live(spec)
    raise ConfigError(
        "`scorer` must be a name, a mapping, a ScorerConfig or an object with `score` and "
        f"`describe`, got {type(spec).__name__}."
    )


def _resolve_name(name: str) -> ScorerHandle:
    if name.startswith(LIVE_PREFIX):
        return _live_handle(name)
    if name in preset_names() or name.endswith((".yaml", ".yml")):
        return _handle(load_preset(name), spec=name)
    if name in PRESET_OF:
        return _handle(load_preset(PRESET_OF[name]), spec=name)
    if name in _targets():
        return _handle(_default_preset(ScorerConfig(name=name)), spec=name)
    if Path(name).is_dir() or name.count("/") >= 1:
        return _handle(_default_preset(ScorerConfig(name=MODEL_SCORER, model=name)), spec=name)
    raise UnknownNameError("scorer", name, {*preset_names(), *_targets()})


def _resolve_mapping(spec: Mapping[str, Any]) -> ScorerHandle:
    values = dict(spec)
    base = values.pop("preset", None)
    if base is None:
        return _handle(_default_preset(ScorerConfig.from_dict(values)))
    handle = _resolve_name(str(base))
    check_names("scorer setting", values, [*field_names(ScorerConfig), "preset"])
    if isinstance(values.get("options"), Mapping):
        values["options"] = {**handle.config.options, **values["options"]}
    config = dataclasses.replace(handle.config, **values)
    return _handle(dataclasses.replace(handle.preset, scorer=config), spec=as_json(spec))


def _default_preset(config: ScorerConfig) -> Preset:
    """Return the preset named as the scorer with this config, or one of plain defaults."""
    name = PRESET_OF.get(config.name, config.name)
    if name in preset_names() and load_preset(name).scorer.name == config.name:
        preset = load_preset(name)
        # Messages are to name what was asked for, not the preset whose windows it borrows.
        return dataclasses.replace(preset, name=config.model or preset.name, scorer=config)
    return Preset(name=config.model or config.name, scorer=config)


def _handle(preset: Preset, spec: str | dict[str, Any] | None = None) -> ScorerHandle:
    if preset.scorer.name not in _targets():
        raise UnknownNameError("scorer", preset.scorer.name, _targets())
    return ScorerHandle(
        key=preset.scorer.key(),
        spec=preset.scorer.to_dict() if spec is None else spec,
        preset=preset,
    )


def _keep_live(scorer: Scorer) -> ScorerHandle:
    with _lock:
        for key, known in _live.items():
            if known is scorer:
                return _live_handle(key)
        key = f"{LIVE_PREFIX}{next(_live_numbers)}:{type(scorer).__name__}"
        _live[key] = scorer
        return _live_handle(key)


def _live_handle(key: str) -> ScorerHandle:
    preset = Preset(name=key, scorer=ScorerConfig(name=key))
    return ScorerHandle(key=key, spec=key, preset=preset)


def get_scorer(handle: ScorerHandle) -> Scorer:
    """Return the scorer of a handle; build it if this process has not yet.

    Raises:
        ModelError: If its weights cannot be loaded.
        ScorerError: If the class is not a scorer, or the handle is of another process's live one.
    """
    with _lock:
        if handle.key.startswith(LIVE_PREFIX):
            return _get_live(handle.key)
        if handle.key not in _built:
            logger.info("building scorer %s", handle.key)
            _built[handle.key] = _build(handle.config)
        return _built[handle.key]


def built_scorer(handle: ScorerHandle) -> Scorer | None:
    """Return the scorer of a handle if this process has it; builds nothing.

    Args:
        handle: Whose scorer.

    Returns:
        The scorer, or None while nobody has asked it anything.
    """
    with _lock:
        return (_live if handle.key.startswith(LIVE_PREFIX) else _built).get(handle.key)


def _get_live(key: str) -> Scorer:
    if key not in _live:
        raise ScorerError(
            f"The live scorer {key!r} is not in this process. A scorer object cannot follow an "
            "environment's spec into another process: name it (`register_scorer`) instead."
        )
    return _live[key]


def _build(config: ScorerConfig) -> Scorer:
    target = _targets()[config.name]
    module, _, attribute = target.partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    scorer = factory.from_config(config)
    if not isinstance(scorer, Scorer):
        raise ScorerError(
            f"{target!r} must build an object with `score` and `describe`, got "
            f"{type(scorer).__name__}."
        )
    return scorer


def clear_scorers() -> None:
    """Forget every built and live scorer of this process, which frees their memory.

    Wrappers that are in use build theirs anew at the next query; a live one is gone.
    """
    with _lock:
        _built.clear()
        _live.clear()
