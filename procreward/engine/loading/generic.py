"""Loads any image-text-to-text model that transformers knows, with its own processor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from procreward.engine.loading.adapters import adapter_folder, check_base_name
from procreward.engine.loading.devices import Quantization, choose_setup
from procreward.engine.loading.model import adapter_place, load_with_adapter
from procreward.engine.sources import (
    check_adapter,
    check_generic_model,
    family_of,
    read_json_object,
    resolve_source,
)
from procreward.errors import ArchitectureError, ModelError

__all__ = ["LoadedGeneric", "load_generic"]

logger = logging.getLogger(__name__)
_CLASS = "AutoModelForImageTextToText"
_OURS = "Leave `engine` at 'auto': this model runs without a processor."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedGeneric:
    """A model of any architecture, ready for inference.

    Attributes:
        model: The model, of transformers' class for its architecture, in eval mode, without
            gradients. Its tensors may be shared with other models: never write to them.
        processor: Its processor, which holds its tokenizer and chat template.
        device: Where it runs.
        dtype: Precision of its weights; of its computing, where they are quantised.
        attention: Name of transformers' attention implementation.
        reasons: Why each choice was made, by name.
        source: What the user named.
        revision: Commit of the hub repository, or None.
        adapter: What the user named as adapter, or None.
        end_ids: Tokens that end an answer, at least one; the first is the tokenizer's own, where
            it has one. Padding counts as an end.
        quantization: How its weights are held.
        merged: Whether the weights are the whole model; False when an adapter runs beside them.
    """

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    attention: str
    reasons: Mapping[str, str]
    source: str
    revision: str | None
    adapter: str | None
    end_ids: tuple[int, ...]
    quantization: Quantization = "none"
    merged: bool = True

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer


def load_generic(
    source: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    quantization: str = "none",
    adapter: str | None = None,
    merge_adapter: bool = True,
    revision: str | None = None,
    local_files_only: bool | None = None,
    threads: int | None = None,
) -> LoadedGeneric:
    """Load an image-text-to-text model and, if asked, a LoRA adapter.

    Weights are read from safetensors only and no code of the repository is run. The checkpoint's
    sampling settings are ignored: answers are greedy.

    Args:
        source: A local folder or a hub id (``owner/name``).
        device: As for :func:`procreward.engine.loading.model.load_model`, like all that follow.
        dtype: Precision.
        attention: Attention implementation.
        quantization: How weights are held.
        adapter: A LoRA adapter, or None.
        merge_adapter: Whether it is merged into the weights or runs beside them.
        revision: Commit, tag or branch of a hub repository.
        local_files_only: Whether to use the hub's local cache only.
        threads: Torch threads of this process when the model runs on the CPU.

    Returns:
        The model and how it was set up.

    Raises:
        ModelNotFoundError: If model or adapter are absent.
        ArchitectureError: If transformers knows no image-text-to-text model of this type, or the
            adapter is for another model.
        UnsafeWeightsError: If the weights are in a pickle format only.
        ModelError: If model or processor cannot be loaded.
        ConfigError: If an option has an unknown value, or 4-bit weights cannot run here.
    """
    resolved = resolve_source(source, revision=revision, local_files_only=local_files_only)
    folder = resolved.folder
    config = check_generic_model(folder)
    _check_type(config, folder)
    adapter_at = None
    if adapter is not None:
        adapter_at = adapter_folder(adapter, folder, local_files_only)
        check_base_name(adapter_at, check_adapter(adapter_at), str(config["model_type"]))
    setup = choose_setup(
        device=device,
        dtype=dtype,
        attention=attention,
        quantization=quantization,
        threads=threads,
    )
    processor = _load_processor(folder)
    merge = merge_adapter and setup.quantization == "none"
    model = load_with_adapter(folder, _CLASS, setup, adapter_at, merge=merge)
    reasons = dict(setup.reasons)
    if adapter is not None:
        reasons["adapter"] = f"{adapter} {adapter_place(merge=merge, asked=merge_adapter)}"
    for name, reason in reasons.items():
        logger.info("%s: %s: %s", source, name, reason)
    return LoadedGeneric(
        model=model,
        processor=processor,
        device=setup.device,
        dtype=setup.dtype,
        attention=setup.attention,
        reasons=MappingProxyType(reasons),
        source=source,
        revision=resolved.revision,
        adapter=adapter,
        end_ids=_end_ids(processor.tokenizer, config, folder),
        quantization=setup.quantization,
        merged=merge or adapter is None,
    )


def _check_type(config: Mapping[str, Any], folder: Path) -> None:
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN,
    )

    model_type = config.get("model_type")
    if model_type not in KNOWN:
        raise ArchitectureError(
            f"The model in {folder} must be an image-text-to-text model of transformers, got "
            f"model_type {model_type!r}, of which transformers {transformers.__version__} knows "
            "none. Use a conversion made for transformers (often named -hf), or a newer "
            "transformers."
        )


def _load_processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # each processor raises its own types
        fix = _OURS if family_of(check_generic_model(folder)) else _processor_fix(error)
        raise ModelError(
            f"The processor of the model in {folder} could not be built: {type(error).__name__}: "
            f"{_shortened(error)}. {fix}"
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise ModelError(
            f"The model in {folder} has no image processor. Copy preprocessor_config.json and "
            "processor_config.json beside the weights."
        )
    tokenizer = processor.tokenizer
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if template is None:
        raise ModelError(
            f"The model in {folder} has no chat template, so its prompts cannot be written. Use "
            "an instruction-tuned checkpoint, or copy chat_template.jinja beside the weights."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."


def _processor_fix(error: Exception) -> str:
    text = str(error)
    if isinstance(error, ImportError) or "orchvision" in text or "_extra_content" in text:
        return (
            "It may need torchvision: install the build that belongs to the torch here, from the "
            "same package index."
        )
    if "trust_remote_code" in text:
        return (
            "It needs code of the repository, which is never run. Use a conversion made for "
            "transformers (often named -hf)."
        )
    return "Copy the processor's files beside the weights, or use a newer transformers."


def _end_ids(tokenizer: Any, config: Mapping[str, Any], folder: Path) -> tuple[int, ...]:
    """Collect what ends an answer: what the tokenizer, the checkpoint and its settings say."""
    found: list[object] = [tokenizer.eos_token_id]
    path = folder / "generation_config.json"
    text = config.get("text_config") or {}
    settings = (read_json_object(path) if path.is_file() else {}, config, text)
    for values in settings:
        ids = values.get("eos_token_id")
        found += ids if isinstance(ids, list) else [ids]
    found.append(tokenizer.pad_token_id)  # transformers writes it behind what has ended
    ends = tuple(dict.fromkeys(one for one in found if isinstance(one, int)))
    if not ends:
        raise ModelError(
            f"The model in {folder} names no end token. Set eos_token in tokenizer_config.json."
        )
    return ends
