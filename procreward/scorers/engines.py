"""From a scorer's configuration to an engine that runs its model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from procreward.errors import ConfigError
from procreward.scorers.building import EngineOptions
from procreward.scorers.fitting import FittingEngine, FrameLimits

if TYPE_CHECKING:
    from procreward.config import ScorerConfig
    from procreward.engine import Engine
    from procreward.engine.loading import LoadedModel
    from procreward.engine.loading.generic import LoadedGeneric
    from procreward.engine.reading.prompt import VideoLayout

__all__ = ["build_engine"]

_GIB = 1024**3


def build_engine(
    config: ScorerConfig,
    options: EngineOptions,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    frame_size: tuple[int, int] | None = None,
    video_layout: VideoLayout = "4.57",
) -> tuple[Engine, dict[str, object]]:
    """Load the model of a configuration into an engine.

    Args:
        config: What the user configured.
        options: Which engine, and how it is run.
        min_pixels: Least area that frames are enlarged to, or None for the checkpoint's own.
        max_pixels: Upper bound put on the checkpoint's own largest image area, or None.
        frame_size: ``(width, height)`` every frame must have, or None for the checkpoint's own.
        video_layout: How videos are written into the prompt.

    Returns:
        The engine, and a JSON-able account of the model.

    Raises:
        ConfigError: If no model is named, or the engine cannot run it.
        ModelError: If the model cannot be loaded.
    """
    limits = FrameLimits(min_pixels=min_pixels, max_pixels=max_pixels, frame_size=frame_size)
    if options.engine == "served":
        return _served(config, options, limits)
    if config.model is None:
        raise ConfigError(
            f"The scorer {config.name!r} needs a `model`: a folder, a hub id (owner/name) or "
            "'nano'."
        )
    if options.engine == "vllm":
        return _vllm(config, options, limits)
    if options.engine == "plain" or (options.engine == "auto" and not _is_ours(config)):
        return _plain(config, options, limits)
    return _qwen(config, options, limits, video_layout)


def _is_ours(config: ScorerConfig) -> bool:
    """Whether the model is of a family that our own engine runs."""
    from procreward.engine.sources import check_generic_model, family_of, resolve_source

    assert config.model is not None
    folder = resolve_source(config.model, revision=config.revision).folder
    return family_of(check_generic_model(folder)) is not None


def _qwen(
    config: ScorerConfig, options: EngineOptions, limits: FrameLimits, video_layout: VideoLayout
) -> tuple[Engine, dict[str, object]]:
    from procreward.engine.fast import FastEngine
    from procreward.engine.loading import load_model
    from procreward.engine.reference import ReferenceEngine

    loaded = load_model(**_loading(config))
    loaded = replace(loaded, image_config=limits.apply(loaded.image_config))
    name = "fast" if options.engine == "auto" else options.engine
    engine: Engine
    if name == "reference":
        engine = ReferenceEngine(loaded, video_layout=video_layout)
    else:
        engine = FastEngine(
            loaded,
            exact=name == "strict",
            video_layout=video_layout,
            cache_bytes=int(options.cache_gib * _GIB),
        )
    size = loaded.image_config.frame_size
    return engine, {
        **_account(config, loaded, name),
        "family": loaded.family,
        "frame_size": None if size is None else list(size),
    }


def _plain(
    config: ScorerConfig, options: EngineOptions, limits: FrameLimits
) -> tuple[Engine, dict[str, object]]:
    from procreward.engine.generic import GenericEngine
    from procreward.engine.loading.generic import load_generic

    loaded = load_generic(**_loading(config))
    engine = GenericEngine(loaded, batch_size=options.batch_size)
    size = limits.frame_size
    return FittingEngine(engine, limits), {
        **_account(config, loaded, "plain"),
        "frame_size": None if size is None else list(size),
    }


def _served(
    config: ScorerConfig, options: EngineOptions, limits: FrameLimits
) -> tuple[Engine, dict[str, object]]:
    from procreward.engine.remote.served import ServedEngine
    from procreward.engine.remote.server_settings import ServerSettings

    if config.adapter is not None:
        raise ConfigError(
            f"A served model has its adapter at the server, got adapter={config.adapter!r}. Name "
            "the adapted model in `server: {model: ...}`."
        )
    settings = ServerSettings.from_options(options.server, model=config.model)
    # It reduces frames by itself, each once.
    engine: Engine = ServedEngine(settings, max_pixels=limits.max_pixels)
    if limits.min_pixels is not None:
        engine = FittingEngine(engine, FrameLimits(min_pixels=limits.min_pixels))
    return engine, {
        "name": config.name,
        "model": settings.model,
        "server": settings.base_url,
        "engine": "served",
    }


def _vllm(
    config: ScorerConfig, options: EngineOptions, limits: FrameLimits
) -> tuple[Engine, dict[str, object]]:
    from procreward.checks import check_names
    from procreward.config import field_names
    from procreward.engine.remote.vllm import VLLMEngine, VLLMSettings
    from procreward.engine.sources import resolve_source
    from procreward.engine.vision.preprocess import load_preprocess_config

    assert config.model is not None
    if config.adapter is not None:
        raise ConfigError(
            f"`engine: vllm` runs whole models only, got adapter={config.adapter!r}. Save the "
            "merged model to a folder and name that."
        )
    values: dict[str, Any] = {"dtype": config.dtype, **(options.vllm or {})}
    check_names("vllm setting", values, field_names(VLLMSettings))
    resolved = resolve_source(config.model, revision=config.revision)
    image_config = limits.apply(load_preprocess_config(resolved.folder))
    engine = VLLMEngine(resolved.folder, image_config, settings=VLLMSettings(**values))
    return engine, {
        "name": config.name,
        "model": config.model,
        "revision": resolved.revision,
        "dtype": config.dtype,
        "engine": "vllm",
    }


def _loading(config: ScorerConfig) -> dict[str, Any]:
    """The arguments that both loaders take."""
    return {
        "source": config.model,
        "device": config.device,
        "dtype": config.dtype,
        "attention": config.attention,
        "quantization": config.quantization,
        "adapter": config.adapter,
        "merge_adapter": config.merge_adapter,
        "revision": config.revision,
    }


def _account(
    config: ScorerConfig, loaded: LoadedModel | LoadedGeneric, engine: str
) -> dict[str, object]:
    return {
        "name": config.name,
        "model": loaded.source,
        "revision": loaded.revision,
        "adapter": loaded.adapter,
        "merged": loaded.merged,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "quantization": loaded.quantization,
        "device": str(loaded.device),
        "attention": loaded.attention,
        "engine": engine,
    }
