"""LoRA adapters: found, checked against their base, merged into its weights or run beside them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from procreward.engine.loading.weights import LOADING
from procreward.engine.sources import read_json_object, resolve_source
from procreward.errors import ArchitectureError, ModelError

__all__ = ["adapter_folder", "attach_adapter", "check_base_name", "leaves_base", "merge_adapter"]

_FAMILY_NAMES: tuple[tuple[str, str], ...] = (
    ("qwen3_vl_moe", r"qwen-?3-?vl.*-(a\d+b|moe)"),
    ("qwen3_vl", r"qwen-?3-?vl(?!.*-(a\d+b|moe))"),
    ("qwen2_5_vl", r"qwen-?2-5-?vl"),
    ("qwen2_vl", r"qwen-?2-?vl"),
    ("a text model", r"qwen-?(2-5|3)-\d|qwen-?2-(?!5)\d|(llama|mistral|gemma)-?\d?-\d+b"),
    ("internvl", r"internvl"),
    ("llava", r"llava"),
    ("smolvlm", r"smolvlm"),
    ("paligemma", r"paligemma"),
)
"""What a base model's published name says about its family; dots and underscores are dashes."""


def adapter_folder(adapter: str, folder: Path, local_files_only: bool | None) -> Path:
    """Find an adapter.

    Args:
        adapter: A folder or hub id, or the name of a sub-folder of the model's.
        folder: The model folder.
        local_files_only: As for :func:`procreward.engine.sources.resolve_source`.

    Returns:
        Its folder.

    Raises:
        ModelNotFoundError: If there is no such folder or repository.
    """
    inside = folder / adapter
    if Path(adapter).name == adapter and (inside / "adapter_config.json").is_file():
        return inside
    return resolve_source(adapter, local_files_only=local_files_only, setting="adapter").folder


def check_base_name(folder: Path, config: Mapping[str, Any], family: str) -> None:
    """Refuse an adapter whose base is clearly of another family, by the base's name.

    A name that says nothing, or several things, is let pass: shapes are compared later.

    Args:
        folder: The adapter folder, for the message.
        config: Its ``adapter_config.json``.
        family: ``model_type`` of the model it is to run on.

    Raises:
        ArchitectureError: If the base is of another family.
    """
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str):
        return
    last = re.sub(r"[._]", "-", name.rstrip("/").rpartition("/")[2].lower())
    found = {kind for kind, pattern in _FAMILY_NAMES if re.search(pattern, last)}
    if len(found) == 1 and family not in found:
        raise ArchitectureError(
            f"The adapter in {folder} was trained on {name!r} ({found.pop()}), this model is of "
            f"the family {family}. Name the base model the adapter belongs to."
        )


def leaves_base(folder: Path) -> bool:
    """Tell whether an adapter that is attached leaves its base's tensors as they are.

    Some bring biases or start from changed weights; peft then writes into the base.

    Args:
        folder: The adapter folder, checked.
    """
    config = read_json_object(folder / "adapter_config.json")
    plain_start = config.get("init_lora_weights", True) in (True, False, "gaussian")
    return plain_start and config.get("bias", "none") == "none"


def merge_adapter(model: Any, folder: Path) -> Any:
    """Merge an adapter into a model's weights.

    Args:
        model: The model; its weights are changed and must be nobody else's.
        folder: The adapter folder, checked.

    Returns:
        The model, of the class it had.

    Raises:
        ArchitectureError: If the adapter was trained on another model.
        ModelError: If it cannot be merged.
    """
    return _with_adapter(
        model, folder, "merged", lambda wrapped: wrapped.merge_and_unload(safe_merge=True)
    )


def attach_adapter(model: Any, folder: Path) -> Any:
    """Put an adapter beside a model's weights.

    Args:
        model: A view (:func:`procreward.engine.loading.weights.shared_weights`) where
            :func:`leaves_base` says so: modules are replaced in its tree, its tensors stay.
        folder: The adapter folder, checked.

    Returns:
        The model, of the class it had, with the adapter's layers in it.

    Raises:
        ArchitectureError: If the adapter was trained on another model.
        ModelError: If it cannot be attached.
    """
    model = _with_adapter(model, folder, "attached", lambda wrapped: wrapped.get_base_model())
    return model.eval().requires_grad_(False)


def _with_adapter(model: Any, folder: Path, verb: str, finish: Callable[[Any], Any]) -> Any:
    from peft import PeftModel

    _check_fit(model, folder)
    try:
        with LOADING, warnings.catch_warnings():
            # peft asks transformers for an attribute under its former name.
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            # By way of the CPU: peft would read it onto the first GPU, whichever the model is on.
            return finish(PeftModel.from_pretrained(model, folder, torch_device="cpu"))
    except Exception as error:  # peft raises many types for a broken adapter
        raise ModelError(
            f"The adapter in {folder} could not be {verb}: {type(error).__name__}: {error}"
        ) from error


def _check_fit(model: Any, folder: Path) -> None:
    """Compare the adapter's shapes with the model's layers, for a clearer error than peft's."""
    modules = dict(model.named_modules())
    for key, shape in _shapes(folder).items():
        name, _, kind = key.removeprefix("base_model.model.").partition(".lora_")
        if kind not in ("A.weight", "B.weight"):
            continue
        # peft puts a `base_layer` per tensor in front of the adapter of a stack of experts.
        module = modules.get(re.sub(r"(\.base_layer)+$", "", name))
        if _is_stack(module):
            continue
        widths = _widths(module)
        if widths is None:
            raise ArchitectureError(
                f"The adapter in {folder} was trained on another model: this one has no layer "
                f"{name}. Name the base model the adapter belongs to."
            )
        axis = 1 if kind == "A.weight" else 0
        if shape[axis] != widths[axis]:
            raise ArchitectureError(
                f"The adapter in {folder} was trained on another model: its {name} is "
                f"{shape[axis]} wide, this model's is {widths[axis]}. Name the base model "
                "the adapter belongs to."
            )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(f"`{path}` could not be read: {error}") from error


def _is_stack(module: Any) -> bool:
    """Whether a module holds the weights of several experts in one tensor."""
    return module is not None and any(
        weight is not None and weight.ndim == 3 for weight in module._parameters.values()
    )


def _widths(module: Any) -> tuple[int, int] | None:
    """Return (outputs, inputs) of a linear layer; of a 4-bit one the tensor does not tell."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    weight = getattr(module, "weight", None)
    return tuple(weight.shape) if weight is not None and weight.ndim == 2 else None
