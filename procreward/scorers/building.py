"""From a scorer's configuration to an engine that runs its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args

from procreward.checks import check, check_choice, check_int, check_names, is_number
from procreward.config import JSON, field_names
from procreward.engine import Engine
from procreward.errors import ConfigError

if TYPE_CHECKING:
    from procreward.config import ScorerConfig
    from procreward.engine.loading import LoadedModel
    from procreward.engine.preprocess import PreprocessConfig
    from procreward.engine.prompt import VideoLayout
    from procreward.types import Query

__all__ = [
    "ENGINES",
    "EngineName",
    "EngineOptions",
    "build_engine",
    "frame_keys",
    "options_from",
    "stream_name",
]

_Options = TypeVar("_Options")

_GIB = 1024**3

EngineName: TypeAlias = Literal["auto", "fast", "strict", "reference", "plain", "served", "vllm"]
"""What runs the model; see :class:`EngineOptions`."""

ENGINES: tuple[str, ...] = get_args(EngineName)
"""The names of :data:`EngineName`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options that every scorer with a model has.

    Attributes:
        engine: What runs the model. ``"fast"`` keeps what it computed for every frame and starts
            from the last answer; ``"strict"`` keeps frames only and uses transformers' own
            operators; ``"reference"`` is plain transformers; ``"plain"`` runs any other
            image-text-to-text model; ``"served"`` asks an OpenAI-compatible server; ``"vllm"`` runs
            vLLM in this process. ``"auto"`` is ``"fast"`` for Qwen-VL models and ``"plain"`` for
            others.
        batch_size: Most queries answered in one batch; memory may make it fewer.
        cache_gib: Memory for what is kept between queries, in GiB.
        server: For ``engine="served"``: where it is and how to ask; see
            :class:`procreward.engine.served.ServerSettings`.
    """

    engine: EngineName = "auto"
    batch_size: int = 64
    cache_gib: float = 2.0
    server: Mapping[str, JSON] | None = None

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, ENGINES)
        check_int("batch_size", self.batch_size, least=1)
        ok = is_number(self.cache_gib) and self.cache_gib >= 0
        check(ok, "cache_gib", "at least 0", self.cache_gib)
        ok = self.server is None or isinstance(self.server, Mapping)
        check(ok, "server", "a mapping of server settings or None", self.server)
        if (self.engine == "served") != (self.server is not None):
            raise ConfigError(
                "`server` belongs to `engine: served` and to no other, got engine="
                f"{self.engine!r} and server={self.server!r}. Set both, or neither."
            )


def build_engine(
    config: ScorerConfig,
    engine: EngineOptions | EngineName,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    frame_size: tuple[int, int] | None = None,
    video_layout: VideoLayout = "4.57",
) -> tuple[Engine, dict[str, object]]:
    """Load the model of a configuration into an engine.

    Args:
        config: What the user configured.
        engine: One of :data:`ENGINES`.
        min_pixels: Smallest image area instead of the checkpoint's own, or None.
        max_pixels: Upper bound put on the checkpoint's own largest image area, or None.
        frame_size: ``(width, height)`` every frame must have, or None for the checkpoint's own.
        video_layout: How videos are written into the prompt.

    Returns:
        The engine, and a JSON-able account of the model.

    Raises:
        ConfigError: If no model is named.
        ModelError: If the model cannot be loaded.
    """
    from procreward.engine.loading import load_model

    if config.model is None:
        raise ConfigError(
            f"The scorer {config.name!r} needs a `model`: a folder, a hub id (owner/name) or "
            "'nano'."
        )
    loaded = load_model(
        config.model,
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
        adapter=config.adapter,
        revision=config.revision,
    )
    image_config = _limit(loaded.image_config, min_pixels, max_pixels, frame_size)
    loaded = replace(loaded, image_config=image_config)
    if isinstance(engine, str):
        engine = EngineOptions(engine=engine)
    built = _make(engine, loaded, video_layout)
    account: dict[str, object] = {
        "name": config.name,
        "model": loaded.source,
        "family": loaded.family,
        "revision": loaded.revision,
        "adapter": loaded.adapter,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "attention": loaded.attention,
        "engine": "fast" if engine.engine == "auto" else engine.engine,
        "frame_size": list(image_config.frame_size) if image_config.frame_size else None,
    }
    return built, account


def frame_keys(query: Query, view: str) -> tuple[tuple[str, str, int], ...] | None:
    """Name each frame of a view for an engine's cache, or return None for a query of no stream.

    Args:
        query: The query.
        view: One of its views.
    """
    if not query.stream:
        return None
    return tuple((query.stream, view, step) for step in query.frame_steps)


def stream_name(query: Query, view: str) -> str | None:
    """Name the series of questions that a query belongs to, or None for a query of no stream.

    Args:
        query: The query.
        view: Name of the view that the prompt shows.

    Returns:
        For :attr:`procreward.engine.Prompt.stream`; begins with ``query.stream``.
    """
    return f"{query.stream}/{view}" if query.stream else None


def options_from(kind: type[_Options], scorer: str, options: Mapping[str, Any]) -> _Options:
    """Build an options dataclass from a configuration's mapping.

    Args:
        kind: The dataclass.
        scorer: Name of the scorer, for the message.
        options: Names and values.

    Returns:
        The options.

    Raises:
        UnknownNameError: If a name is not an option.
    """
    check_names(f"{scorer} option", options, field_names(kind))
    return kind(**options)


def _make(options: EngineOptions, loaded: LoadedModel, video_layout: VideoLayout) -> Engine:
    from procreward.engine.fast import FastEngine
    from procreward.engine.reference import ReferenceEngine

    if options.engine == "reference":
        return ReferenceEngine(loaded, video_layout=video_layout)
    return FastEngine(
        loaded,
        exact=options.engine == "strict",
        video_layout=video_layout,
        cache_bytes=int(options.cache_gib * _GIB),
    )


def _limit(
    config: PreprocessConfig,
    min_pixels: int | None,
    max_pixels: int | None,
    frame_size: tuple[int, int] | None,
) -> PreprocessConfig:
    if min_pixels is not None:
        largest = max(config.max_pixels, min_pixels)
        config = replace(config, min_pixels=min_pixels, max_pixels=largest)
    if max_pixels is not None:
        largest = max(min(config.max_pixels, max_pixels), config.min_pixels)
        config = replace(config, max_pixels=largest)
    if frame_size is not None:
        config = replace(config, frame_size=frame_size)
    return config
