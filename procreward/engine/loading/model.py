"""Loads a Qwen-VL model for inference and says which device, precision and attention it chose."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from procreward.engine.loading.adapters import (
    adapter_folder,
    attach_adapter,
    check_base_name,
    leaves_base,
    merge_adapter,
)
from procreward.engine.loading.devices import Quantization, Setup, choose_setup, move
from procreward.engine.loading.weights import load_weights, shared_weights
from procreward.engine.sources import (
    FAMILIES,
    Family,
    check_adapter,
    check_model,
    family_of,
    resolve_source,
)
from procreward.engine.vision.preprocess import PreprocessConfig, load_preprocess_config
from procreward.errors import ArchitectureError, ModelError

__all__ = ["LoadedModel", "adapter_place", "load_model", "load_tokenizer", "load_with_adapter"]

logger = logging.getLogger(__name__)
_DEFAULT_SYSTEM: Mapping[Family, str] = {"qwen2_5_vl": "You are a helpful assistant."}
_CLASSES = {family: name for name, family in FAMILIES.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready for inference.

    Attributes:
        model: The model, of transformers' class for its family, in eval mode, without gradients.
            Its tensors may be shared with other models: never write to them.
        tokenizer: Its tokenizer.
        image_config: How frames become patches.
        device: Where it runs.
        dtype: Precision of its weights; of its computing, where they are quantised.
        attention: Name of transformers' attention implementation.
        reasons: Why each choice was made, by name.
        source: What the user named.
        revision: Commit of the hub repository, or None.
        adapter: What the user named as adapter, or None.
        end_ids: Tokens that end an answer.
        family: What kind of model it is.
        default_system: System turn that its chat template puts where there is none, or None.
        quantization: How its weights are held.
        merged: Whether the weights are the whole model; False when an adapter runs beside them.
    """

    model: Any
    tokenizer: Any
    image_config: PreprocessConfig
    device: torch.device
    dtype: torch.dtype
    attention: str
    reasons: Mapping[str, str]
    source: str
    revision: str | None
    adapter: str | None
    end_ids: tuple[int, ...]
    family: Family = "qwen3_vl"
    default_system: str | None = None
    quantization: Quantization = "none"
    merged: bool = True


def load_model(
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
) -> LoadedModel:
    """Load a Qwen3-VL, Qwen3-VL-MoE or Qwen2.5-VL model and, if asked, a LoRA adapter.

    Weights are read from safetensors only and no code of the repository is run. The checkpoint's
    sampling settings are ignored: answers are greedy. Weights that are not merged with an adapter
    are read once per process and shared by all models made of them.

    Args:
        source: A local folder, a hub id (``owner/name``) or ``nano``.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"auto"`` (bfloat16 on CUDA where supported, else float32), ``"float32"``,
            ``"bfloat16"`` or ``"float16"``.
        attention: ``"auto"`` (PyTorch's), ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
        quantization: ``"none"``, ``"nf4"`` (4-bit normal floats with double quantisation; needs
            CUDA and bitsandbytes) or ``"auto"`` (nf4 where both are there, else none).
        adapter: A folder or hub id of a LoRA adapter, or the name of a sub-folder of the model's.
        merge_adapter: Whether the adapter is merged into the weights, which is fastest, or runs
            beside them, so that several adapters share one base in memory. Never merged into
            quantised weights: it was trained beside them.
        revision: Commit, tag or branch of a hub repository.
        local_files_only: Whether to use the hub's local cache only.
        threads: Torch threads of this process when the model runs on the CPU. None means 1,
            unless ``OMP_NUM_THREADS`` says otherwise: several processes that each use all cores
            slow each other down many times over.

    Returns:
        The model and how it was set up.

    Raises:
        ModelNotFoundError: If model or adapter are absent.
        ArchitectureError: If the model is of another family, or the adapter is for another model.
        UnsafeWeightsError: If the weights are in a pickle format only.
        ModelError: If it cannot be loaded: no network, broken file, not enough memory.
        ConfigError: If an option has an unknown value, or 4-bit weights cannot run here.
    """
    resolved = resolve_source(source, revision=revision, local_files_only=local_files_only)
    folder = resolved.folder
    family = family_of(check_model(folder))
    assert family is not None  # check_model has refused others
    adapter_at = None
    if adapter is not None:
        adapter_at = adapter_folder(adapter, folder, local_files_only)
        check_base_name(adapter_at, check_adapter(adapter_at), family)
    setup = choose_setup(
        device=device,
        dtype=dtype,
        attention=attention,
        quantization=quantization,
        threads=threads,
    )
    tokenizer = load_tokenizer(folder)
    image_config = load_preprocess_config(folder)
    merge = merge_adapter and setup.quantization == "none"
    model = load_with_adapter(folder, _CLASSES[family], setup, adapter_at, merge=merge)
    _check_tokenizer(tokenizer, model.config, folder)
    _check_image_config(image_config, model.config.vision_config, folder)
    reasons = dict(setup.reasons)
    if adapter is not None:
        reasons["adapter"] = f"{adapter} {adapter_place(merge=merge, asked=merge_adapter)}"
    for name, reason in reasons.items():
        logger.info("%s: %s: %s", source, name, reason)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        image_config=image_config,
        device=setup.device,
        dtype=setup.dtype,
        attention=setup.attention,
        reasons=MappingProxyType(reasons),
        source=source,
        revision=resolved.revision,
        adapter=adapter,
        end_ids=tuple(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])),
        family=family,
        default_system=_DEFAULT_SYSTEM.get(family),
        quantization=setup.quantization,
        merged=merge or adapter is None,
    )


def load_with_adapter(
    folder: Path, kind: str, setup: Setup, adapter: Path | None, *, merge: bool
) -> Any:
    """Read a model, or share one that is in memory, and merge or attach an adapter.

    Args:
        folder: The model folder, checked.
        kind: Name of the class in transformers.
        setup: How it is to run.
        adapter: The adapter folder, checked, or None.
        merge: Whether to merge; not for quantised weights.

    Returns:
        The model on its device, in eval mode, without gradients.

    Raises:
        ArchitectureError: If tensors are missing, or the adapter is for another model.
        ModelError: If one of them cannot be read, or there is not enough memory.
    """
    if adapter is None:
        return shared_weights(folder, kind, setup)
    if not merge and leaves_base(adapter):
        return attach_adapter(shared_weights(folder, kind, setup), adapter)
    own = load_weights(folder, kind, setup)
    model = merge_adapter(own, adapter) if merge else attach_adapter(own, adapter)
    if setup.quantization == "none":
        model = move(model, setup.device)
    return model.eval().requires_grad_(False)


def adapter_place(*, merge: bool, asked: bool) -> str:
    """Say where an adapter is.

    Args:
        merge: Whether it was merged.
        asked: Whether merging was asked for.
    """
    if merge:
        return "merged into the weights"
    why = "it was trained beside 4-bit weights" if asked else "as asked"
    return f"runs beside the weights ({why})"


def load_tokenizer(folder: Path) -> Any:
    """Read a model's tokenizer.

    Args:
        folder: The model folder.

    Raises:
        ModelError: If there is none or it is broken.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for a broken tokenizer
        raise ModelError(
            f"The tokenizer in {folder} could not be loaded: {type(error).__name__}: {error}. "
            "Copy tokenizer.json (or vocab.json and merges.txt) beside the weights."
        ) from error


def _check_tokenizer(tokenizer: Any, config: Any, folder: Path) -> None:
    vocabulary = tokenizer.get_vocab()
    for token, expected in (
        ("<|image_pad|>", config.image_token_id),
        ("<|video_pad|>", config.video_token_id),
    ):
        if vocabulary.get(token) != expected:
            raise ArchitectureError(
                f"The tokenizer in {folder} must give {token} the id {expected} of config.json, "
                f"got {vocabulary.get(token)}. Use the tokenizer that belongs to the model."
            )
    absent = [token for token in ("<|im_end|>", "<|endoftext|>") if token not in vocabulary]
    if absent or max(vocabulary.values()) >= config.text_config.vocab_size:
        raise ArchitectureError(
            f"The tokenizer in {folder} must have Qwen's control tokens and ids below the model's "
            f"vocabulary of {config.text_config.vocab_size}, but lacks {absent or 'none'} and "
            f"reaches {max(vocabulary.values())}."
        )


def _check_image_config(image: PreprocessConfig, vision: Any, folder: Path) -> None:
    ours = (image.patch, image.merge, image.temporal)
    theirs = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if ours != theirs:
        raise ArchitectureError(
            f"The preprocessor_config.json in {folder} must have patch_size, merge_size and "
            f"temporal_patch_size {theirs} as config.json does, got {ours}. Use the file that "
            "belongs to the model."
        )
