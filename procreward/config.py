"""The settings, as frozen dataclasses that check themselves.

* :class:`RewardConfig` - every setting of the wrappers, the one list of names and defaults.
* :class:`ScorerConfig` - which scorer is built, from which weights, how.
* :class:`Preset` - a scorer with the window, frame size and threshold that suit it.
* :func:`load_preset`, :func:`preset_names` - the presets shipped as ``procreward.configs``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from numbers import Integral, Real
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from procreward.checks import (
    check,
    check_choice,
    check_frame_size,
    check_int,
    check_names,
    check_unit,
    is_number,
)
from procreward.errors import ConfigError, UnknownNameError
from procreward.shaping import ShapingMode

if TYPE_CHECKING:
    from procreward.types import Scorer

__all__ = [
    "DEFAULT",
    "JSON",
    "CompleteMode",
    "InstructionSpec",
    "Preset",
    "RewardConfig",
    "ScorerConfig",
    "ScorerSpec",
    "ShapingMode",
    "ViewsSpec",
    "as_json",
    "field_names",
    "given_settings",
    "load_preset",
    "preset_names",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""What ``json.dumps`` takes."""

ScorerSpec: TypeAlias = "str | Mapping[str, Any] | ScorerConfig | Scorer"
"""A preset name, scorer name, model folder or hub id; a mapping; a config; or a live scorer."""

InstructionSpec: TypeAlias = "str | Callable[[Any, Any, dict[str, Any]], str]"
"""A sentence, ``"obs:KEY"``, ``"info:KEY"``, ``"attr:NAME"``, or ``callable(env, obs, info)``."""

ViewsSpec: TypeAlias = "str | Sequence[str]"
"""Where frames come from; see :func:`procreward.sources.resolve_sources`."""

DEFAULT_COMPLETE_THRESHOLD = 0.95

QUANTIZATIONS = ("none", "nf4", "auto")
"""What :attr:`ScorerConfig.quantization` may be."""

CompleteMode: TypeAlias = Literal["info", "terminate", "truncate"]
"""What completion does to an episode."""


def as_json(value: Any) -> Any:
    """Turn mappings into dicts and tuples into lists, so that JSON gives back what went in.

    Args:
        value: Anything; what is no mapping, list, tuple or number comes back as it is.
    """
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerConfig:
    """What builds a scorer: a registered name, the weights, and how they are run.

    Attributes:
        name: Registered scorer, such as ``"procvlm"`` or ``"constant"``.
        model: ``"nano"`` (embedded), a local folder, or a hub id; None for scorers without weights.
        adapter: Folder or hub id of a PEFT adapter, or None.
        revision: Hub commit or tag that is pinned, or None.
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        attention: ``"auto"``, ``"eager"``, ``"sdpa"`` or ``"flash_attention_2"``.
        quantization: ``"none"``, ``"nf4"`` (4-bit; needs CUDA and bitsandbytes) or ``"auto"``
            (nf4 where both are there).
        merge_adapter: Whether the adapter is merged into the weights at load, or runs beside them
            so that several adapters share one base in memory.
        options: Scorer-specific settings; anything JSON can hold.

    Raises:
        ConfigError: If a value has the wrong type or ``options`` cannot be written as JSON.
    """

    name: str
    model: str | None = None
    adapter: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    quantization: str = "none"
    merge_adapter: bool = True
    options: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "dtype", "device", "attention"):
            value = getattr(self, name)
            check(isinstance(value, str) and value != "", name, "a non-empty string", value)
        for name in ("model", "adapter", "revision"):
            value = getattr(self, name)
            ok = value is None or (isinstance(value, str) and value != "")
            check(ok, name, "a non-empty string or None", value)
        check_choice("quantization", self.quantization, QUANTIZATIONS)
        check(isinstance(self.merge_adapter, bool), "merge_adapter", "a bool", self.merge_adapter)
        check(isinstance(self.options, Mapping), "options", "a mapping", self.options)
        try:
            json.dumps(as_json(self.options), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"`options` must hold only what JSON can, got {dict(self.options)!r}: {error}."
            ) from error
        object.__setattr__(self, "options", as_json(self.options))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as plain JSON values."""
        out: dict[str, Any] = {"name": self.name}
        for item in dataclasses.fields(self)[1:]:
            value = as_json(getattr(self, item.name))
            default = {} if item.name == "options" else item.default
            if value != default:
                out[item.name] = value
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScorerConfig:
        """Build from a mapping of field names.

        Raises:
            UnknownNameError: On a key that is no field.
            ConfigError: If ``name`` is missing or a value is wrong.
        """
        check_names("scorer setting", values, field_names(cls))
        check("name" in values, "name", "given in a scorer mapping", dict(values))
        return cls(**values)

    def key(self) -> str:
        """Return a canonical text: equal configs, and only those, have equal keys."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A scorer together with the frames and the threshold it is meant to be used with.

    Attributes:
        name: Name of the preset (file stem).
        scorer: What is built.
        summary: One line for listings.
        window_frames: Frames in a query, the newest being the moment that is judged.
        frame_stride_steps: Environment steps between neighbouring frames of a window.
        frame_size: ``(width, height)`` in pixels that cameras are rendered at, or None for the
            environment's own size.
        pad: Whether windows at an episode's start are filled up by repeating the first frame;
            if not they are short.
        complete_threshold: Progress or completion probability in (0, 1] that counts as done.

    Raises:
        ConfigError: If a value is out of range.
    """

    name: str
    scorer: ScorerConfig
    summary: str = ""
    window_frames: int = 8
    frame_stride_steps: int = 1
    frame_size: tuple[int, int] | None = None
    pad: bool = True
    complete_threshold: float = DEFAULT_COMPLETE_THRESHOLD

    def __post_init__(self) -> None:
        check_int("window_frames", self.window_frames, least=1)
        check_int("frame_stride_steps", self.frame_stride_steps, least=1)
        if self.frame_size is not None:
            size = check_frame_size("frame_size", self.frame_size)
            object.__setattr__(self, "frame_size", size)
        check(isinstance(self.pad, bool), "pad", "true or false", self.pad)
        check_unit("complete_threshold", self.complete_threshold, allow_zero=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """All settings of the wrappers, in one flat list.

    A None in ``window_frames``, ``frame_stride_steps``, ``frame_size``, ``pad`` or
    ``complete_threshold`` means "as the scorer's preset says".

    Attributes:
        scorer: Which reward model gives progress.
        judge: A second model that decides completion, or None to decide by progress.
        instruction: The task in words or where to find it; None looks in ``info["instruction"]``,
            the attribute ``instruction`` and ``obs["annotation.human.task_description"]``.
        views: Where frames come from; None takes the environment's default views, or ``render()``.
            A model that names its views in its options is shown those instead.
        frame_size: ``(width, height)`` in pixels for rendered cameras.
        every_k_steps: Environment steps between two queries, at least 1.
        window_frames: Frames in a query.
        frame_stride_steps: Environment steps between neighbouring frames of a window.
        pad: Whether windows at an episode's start are filled with the first frame.
        skip_unchanged: Mean absolute difference in grey levels [0, 255] under which the newest
            frames count as those of the last answered query, whose reading is then kept and no
            query is sent; None sends every query. The query at an episode's end is always sent.
        shaping: ``"pbrs"`` (policy-invariant), ``"delta"``, ``"raw"`` or ``"sparse"``.
        gamma: The learner's own discount, in (0, 1].
        scale: Factor on the potential, above 0.
        ratchet: Whether the potential is the best value so far.
        smooth_alpha: Weight in (0, 1] of a new reading in an exponential average, or None.
        offset: Whether the episode's first reading is subtracted from the potential.
        success_bonus: Reward of at least 0 that is paid once an episode, at the step on which the
            task begins to count as complete.
        on_complete: What completion does: ``"info"`` only reports it, ``"terminate"`` and
            ``"truncate"`` end the episode.
        complete_threshold: Value in (0, 1] at which a reading votes for completion.
        confirm_queries: Votes needed among the last ``confirm_window`` readings.
        confirm_window: Readings that are looked back on.
        release_threshold: Value in [0, 1] under which a completed episode counts as undone again,
            or None.
        min_progress: Least progress in [0, 1] at which a vote for completion counts, a guard
            against a judge that is fooled; None for no guard.
        stall_queries: Readings without progress after which the episode counts as stalled, or None.
        stall_delta: Rise of progress in (0, 1] that counts as movement.
        regression_delta: Fall from the best progress, in (0, 1], that counts as a regression, or
            None.
        env_reward_weight: Factor on the environment's own reward.
        max_consecutive_failures: Failed queries in a row after which an error is raised.

    Raises:
        ConfigError: If a value is out of range.
    """

    scorer: ScorerSpec = "nano"
    judge: ScorerSpec | None = None
    instruction: InstructionSpec | None = None
    views: ViewsSpec | None = None
    frame_size: tuple[int, int] | None = None
    every_k_steps: int = 8
    window_frames: int | None = None
    frame_stride_steps: int | None = None
    pad: bool | None = None
    skip_unchanged: float | None = None
    shaping: ShapingMode = "pbrs"
    gamma: float = 0.99
    scale: float = 1.0
    ratchet: bool = False
    smooth_alpha: float | None = None
    offset: bool = False
    success_bonus: float = 0.0
    on_complete: CompleteMode = "info"
    complete_threshold: float | None = None
    confirm_queries: int = 2
    confirm_window: int = 3
    release_threshold: float | None = None
    min_progress: float | None = None
    stall_queries: int | None = None
    stall_delta: float = 0.02
    regression_delta: float | None = None
    env_reward_weight: float = 0.0
    max_consecutive_failures: int = 10

    def __post_init__(self) -> None:
        self._check_frames()
        self._check_reward()
        self._check_completion()

    def _check_frames(self) -> None:
        fix = "Use 1 to query at every step."
        check_int("every_k_steps", self.every_k_steps, least=1, fix=fix)
        for name in ("window_frames", "frame_stride_steps"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), least=1)
        if self.frame_size is not None:
            size = check_frame_size("frame_size", self.frame_size)
            object.__setattr__(self, "frame_size", size)
        if self.views is not None and not isinstance(self.views, str):
            ok = isinstance(self.views, Sequence) and all(isinstance(v, str) for v in self.views)
            check(ok, "views", "a string, a sequence of strings or None", self.views)
            object.__setattr__(self, "views", tuple(self.views))
        if self.pad is not None:
            check(isinstance(self.pad, bool), "pad", "True, False or None", self.pad)
        if self.skip_unchanged is not None:
            ok = is_number(self.skip_unchanged) and 0.0 <= self.skip_unchanged <= 255.0
            check(ok, "skip_unchanged", "a number in [0, 255] or None", self.skip_unchanged)

    def _check_reward(self) -> None:
        check_choice("shaping", self.shaping, get_args(ShapingMode))
        fix = "It must equal the learner's own discount."
        check_unit("gamma", self.gamma, allow_zero=False, fix=fix)
        check(is_number(self.scale) and self.scale > 0, "scale", "above 0", self.scale)
        for name in ("ratchet", "offset"):
            check(isinstance(getattr(self, name), bool), name, "a bool", getattr(self, name))
        if self.smooth_alpha is not None:
            check_unit("smooth_alpha", self.smooth_alpha, allow_zero=False)
        ok = is_number(self.success_bonus) and self.success_bonus >= 0
        check(ok, "success_bonus", "a finite number of at least 0", self.success_bonus)
        ok = is_number(self.env_reward_weight)
        check(ok, "env_reward_weight", "a finite number", self.env_reward_weight)

    def _check_completion(self) -> None:
        check_choice("on_complete", self.on_complete, get_args(CompleteMode))
        if self.complete_threshold is not None:
            check_unit("complete_threshold", self.complete_threshold, allow_zero=False)
        check_int("confirm_queries", self.confirm_queries, least=1)
        fix = "It counts the readings that are looked back on for `confirm_queries` votes."
        least = self.confirm_queries
        check_int("confirm_window", self.confirm_window, least=least, fix=fix)
        for name in ("release_threshold", "min_progress"):
            if getattr(self, name) is not None:
                check_unit(name, getattr(self, name), allow_zero=True)
        if self.stall_queries is not None:
            check_int("stall_queries", self.stall_queries, least=1)
        check_unit("stall_delta", self.stall_delta, allow_zero=False)
        if self.regression_delta is not None:
            check_unit("regression_delta", self.regression_delta, allow_zero=False)
        check_int("max_consecutive_failures", self.max_consecutive_failures, least=1)

    @classmethod
    def for_frames(
        cls,
        scorer: ScorerSpec,
        *,
        every_k_frames: int,
        frame_stride_frames: int | None,
        **settings: Any,
    ) -> RewardConfig:
        """Build the settings of a stream of frames without an environment: a frame is a step.

        Args:
            scorer: Which model is asked.
            every_k_frames: Frames from one query to the next, at least 1.
            frame_stride_frames: Frames between neighbouring frames of a window, at least 1, or
                None for the preset's.
            settings: Further ones, by their names here.

        Raises:
            ConfigError: If a setting is out of range; the message speaks of frames.
        """
        check_int("every_k_frames", every_k_frames, least=1)
        if frame_stride_frames is not None:
            check_int("frame_stride_frames", frame_stride_frames, least=1)
        return cls(
            scorer=scorer,
            every_k_steps=every_k_frames,
            frame_stride_steps=frame_stride_frames,
            **settings,
        )

    @property
    def sets_a_task(self) -> bool:
        """Whether these rewards make some policies better than others.

        Shaping ``"pbrs"`` guides towards another reward and adds up to nothing by itself, so there
        has to be one: a success bonus or the environment's own. (Ng, Harada and Russell 1999)
        """
        own = self.shaping in ("delta", "raw")
        return own or self.success_bonus > 0 or self.env_reward_weight != 0

    def replace(self, **changes: Any) -> RewardConfig:
        """Return a copy with some settings changed.

        Raises:
            UnknownNameError: On a name that is no setting.
        """
        check_names("setting", changes, field_names(type(self)))
        return dataclasses.replace(self, **changes)


class _Default:
    """Stands in a signature for "not given", and shows the default it leads to."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


DEFAULT: Any = SimpleNamespace(
    **{item.name: _Default(item.default) for item in dataclasses.fields(RewardConfig)}
)
"""A marker per setting, for keyword signatures: ``gamma: float = DEFAULT.gamma``.

With it a function can tell a keyword that was given from one that was not, and the defaults are
written down once, in :class:`RewardConfig`.
"""


def given_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Pick out of a function's arguments the settings that its caller gave.

    Args:
        arguments: Names to values, as ``locals()`` has them at the top of the function.
    """
    return {
        name: arguments[name]
        for name in vars(DEFAULT)
        if name in arguments and not isinstance(arguments[name], _Default)
    }


def field_names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of a dataclass's fields, in order."""
    return tuple(item.name for item in dataclasses.fields(cls))


def _presets_root() -> Traversable:
    return files("procreward.configs")


def preset_names() -> tuple[str, ...]:
    """Return the names of the shipped presets, sorted."""
    names = (item.name for item in _presets_root().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_preset(name_or_path: str | Path) -> Preset:
    """Read a shipped preset by name, or any preset file by path.

    Args:
        name_or_path: A name of :func:`preset_names`, or the path of a ``.yaml`` / ``.yml`` file.

    Raises:
        UnknownNameError: If no such preset is shipped, or the file has an unknown key.
        ConfigError: If the file is missing, is not a YAML mapping, or holds a wrong value.

    Example:
        >>> load_preset("constant").window_frames
        1
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        return _read_preset(Path(text))
    return _shipped_preset(text)


@cache
def _shipped_preset(name: str) -> Preset:
    if name not in preset_names():
        raise UnknownNameError("preset", name, preset_names())
    return _read_preset(_presets_root() / f"{name}.yaml")


def _read_preset(path: Traversable) -> Preset:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The preset file {str(path)!r} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The preset file {str(path)!r} is not valid YAML: {error}") from error
    ok = isinstance(values, dict) and isinstance(values.get("scorer"), dict)
    check(ok, f"preset {path.name}", "a mapping with a `scorer` mapping in it", values)
    values = {"name": path.name.rpartition(".")[0], **values}
    check_names("preset setting", values, field_names(Preset))
    return Preset(**{**values, "scorer": ScorerConfig.from_dict(values["scorer"])})
