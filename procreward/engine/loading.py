"""Loads a Qwen3-VL model for inference and says which device, precision and attention it chose."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from procreward.checks import check_choice, check_int
from procreward.engine.preprocess import PreprocessConfig, load_preprocess_config
from procreward.engine.sources import check_adapter, check_model, resolve_source
from procreward.errors import ArchitectureError, ConfigError, ModelError

__all__ = ["LoadedModel", "load_model"]

logger = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
_GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready for inference.

    Attributes:
        model: ``transformers.Qwen3VLForConditionalGeneration``, in eval mode, without gradients.
        tokenizer: Its tokenizer.
        image_config: How frames become patches.
        device: Where it runs.
        dtype: Precision of its weights.
        attention: Name of transformers' attention implementation.
        reasons: Why each choice was made, by name.
        source: What the user named.
        revision: Commit of the hub repository, or None.
        adapter: What the user named as adapter, or None.
        end_ids: Tokens that end an answer.
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


def load_model(
    source: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    adapter: str | None = None,
    revision: str | None = None,
    local_files_only: bool | None = None,
    threads: int | None = None,
) -> LoadedModel:
    """Load a Qwen3-VL model and, if asked, merge a LoRA adapter into it.

    Weights are read from safetensors only and no code of the repository is run. The checkpoint's
    sampling settings are ignored: answers are greedy.

    Args:
        source: A local folder, a hub id (``owner/name``) or ``nano``.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"auto"`` (bfloat16 on CUDA where supported, else float32), ``"float32"``,
            ``"bfloat16"`` or ``"float16"``.
        attention: ``"auto"`` (PyTorch's), ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
        adapter: A folder or hub id of a LoRA adapter, or the name of a sub-folder of the model's.
        revision: Commit, tag or branch of a hub repository.
        local_files_only: Whether to use the hub's local cache only.
        threads: Torch threads of this process when the model runs on the CPU. None means 1,
            unless ``OMP_NUM_THREADS`` says otherwise: several processes that each use all cores
            slow each other down many times over.

    Returns:
        The model and how it was set up.

    Raises:
        ModelNotFoundError: If model or adapter are absent.
        ArchitectureError: If the model is not a Qwen3-VL, or the adapter is for another model.
        UnsafeWeightsError: If the weights are in a pickle format only.
        ModelError: If it cannot be loaded: no network, broken file, not enough memory.
        ConfigError: If an option has an unknown value.
    """
    resolved = resolve_source(source, revision=revision, local_files_only=local_files_only)
    check_model(resolved.folder)
    adapter_folder = None
    if adapter is not None:
        adapter_folder = _adapter_folder(adapter, resolved.folder, local_files_only)
        check_adapter(adapter_folder)
    reasons: dict[str, str] = {}
    chosen_device = _choose_device(device, reasons)
    chosen_dtype = _choose_dtype(dtype, chosen_device, reasons)
    chosen_attention = _choose_attention(attention, reasons)
    if chosen_device.type == "cpu":
        _set_threads(threads, reasons)
    tokenizer = _load_tokenizer(resolved.folder)
    model = _load_weights(resolved.folder, chosen_dtype, chosen_attention)
    _check_tokenizer(tokenizer, model.config, resolved.folder)
    if adapter_folder is not None:
        model = _merge_adapter(model, adapter_folder)
        reasons["adapter"] = f"{adapter} merged into the weights"
    model = _move(model, chosen_device).eval().requires_grad_(False)
    for name, reason in reasons.items():
        logger.info("%s: %s: %s", source, name, reason)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        image_config=load_preprocess_config(resolved.folder),
        device=chosen_device,
        dtype=chosen_dtype,
        attention=chosen_attention,
        reasons=MappingProxyType(reasons),
        source=source,
        revision=resolved.revision,
        adapter=adapter,
        end_ids=tuple(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])),
    )


def _adapter_folder(adapter: str, folder: Path, local_files_only: bool | None) -> Path:
    inside = folder / adapter
    if Path(adapter).name == adapter and (inside / "adapter_config.json").is_file():
        return inside
    return resolve_source(adapter, local_files_only=local_files_only, setting="adapter").folder


def _choose_device(device: str, reasons: dict[str, str]) -> torch.device:
    available = torch.cuda.is_available()
    if device == "auto":
        name = "cuda" if available else "cpu"
        reasons["device"] = f"{name} (auto: torch sees {'a' if available else 'no'} CUDA device)"
        return torch.device(name)
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"`device` is {device!r}, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices. Use 'cpu' or install a CUDA build of torch."
        )
    reasons["device"] = f"{device} (as asked)"
    return chosen


def _choose_dtype(dtype: str, device: torch.device, reasons: dict[str, str]) -> torch.dtype:
    check_choice("dtype", dtype, ("auto", *_DTYPES))
    if dtype != "auto":
        reasons["dtype"] = f"{dtype} (as asked)"
        return _DTYPES[dtype]
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        reasons["dtype"] = "bfloat16 (auto: the CUDA device supports it)"
        return torch.bfloat16
    where = "the CPU" if device.type == "cpu" else "a CUDA device without bfloat16"
    reasons["dtype"] = f"float32 (auto: exact and fast enough on {where})"
    return torch.float32


def _choose_attention(attention: str, reasons: dict[str, str]) -> str:
    check_choice("attention", attention, ("auto", *_ATTENTIONS))
    if attention == "auto":
        reasons["attention"] = "sdpa (auto: part of torch on every device)"
        return "sdpa"
    reasons["attention"] = f"{attention} (as asked)"
    return attention


def _set_threads(threads: int | None, reasons: dict[str, str]) -> None:
    if threads is not None:
        check_int("threads", threads, least=1)
    if threads is None and os.environ.get("OMP_NUM_THREADS"):
        reasons["threads"] = f"{torch.get_num_threads()} (OMP_NUM_THREADS)"
        return
    torch.set_num_threads(threads or 1)
    why = "as asked" if threads is not None else "auto: one per process; `threads` changes it"
    reasons["threads"] = f"{threads or 1} ({why})"


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for a broken tokenizer
        raise ModelError(
            f"The tokenizer in {folder} could not be loaded: {type(error).__name__}: {error}. "
            "Copy tokenizer.json (or vocab.json and merges.txt) beside the weights."
        ) from error


def _load_weights(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    from transformers import GenerationConfig, Qwen3VLForConditionalGeneration

    try:
        with _quiet_loading():
            model, info = Qwen3VLForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many types for a broken checkpoint
        raise ModelError(
            f"The weights in {folder} could not be loaded: {type(error).__name__}: {error}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ArchitectureError(
            f"The weights in {folder} do not fit their config.json: {len(missing)} tensors are "
            f"missing, such as {missing[0]}."
        )
    model.generation_config = GenerationConfig()
    return model


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


def _merge_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    _check_fit(model, folder)
    try:
        with warnings.catch_warnings():
            # peft asks transformers for an attribute under its former name.
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            return PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises many types for a broken adapter
        raise ModelError(
            f"The adapter in {folder} could not be merged: {type(error).__name__}: {error}"
        ) from error


def _check_fit(model: Any, folder: Path) -> None:
    """Compare the adapter's shapes with the model's layers, for a clearer error than peft's."""
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"`{path}` could not be read: {error}") from error
    modules = dict(model.named_modules())
    for key, shape in shapes.items():
        name, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if kind not in ("A.weight", "B.weight"):
            continue
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or weight.ndim != 2:
            raise ArchitectureError(
                f"The adapter in {folder} was trained on another model: this one has no layer "
                f"{name}. Name the base model the adapter belongs to."
            )
        axis = 1 if kind == "A.weight" else 0
        if shape[axis] != weight.shape[axis]:
            raise ArchitectureError(
                f"The adapter in {folder} was trained on another model: its {name} is "
                f"{shape[axis]} wide, this model's is {weight.shape[axis]}. Name the base model "
                "the adapter belongs to."
            )


def _move(model: Any, device: torch.device) -> Any:
    if device.type == "cpu":
        return model
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    try:
        return model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise ModelError(_memory_message(device, needed, free, total)) from error


def _memory_message(device: torch.device, needed: int, free: int, total: int) -> str:
    return (
        f"Not enough memory on {device}: the weights need {needed / _GIB:.1f} GiB, "
        f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB are free. Close other programs, use "
        "device='cpu' or a smaller model."
    )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Load without transformers' progress bars."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
