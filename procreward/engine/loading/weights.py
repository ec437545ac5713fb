"""Weights in memory: read from safetensors, and shared by all who run the same model.

A base is read once per process and setup. Who asks for it gets a *view*: a module tree of its own
whose parameters and buffers are the base's. So two adapters beside one base cost one base, and what
an adapter puts into its tree, or transformers writes onto a module, touches no other view. The base
lives as long as one of its views.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch

from procreward.engine.loading.devices import Setup, move
from procreward.errors import ArchitectureError, ModelError

__all__ = ["LOADING", "load_weights", "shared_weights", "view_of"]

logger = logging.getLogger(__name__)

LOADING = threading.RLock()
"""Held while weights are read or changed: transformers and peft keep process-wide state then."""

_Key: TypeAlias = tuple[object, ...]


class _Base:
    """A model that views are made of; exists because a view must keep it alive."""

    def __init__(self, model: Any) -> None:
        self.model = model


_bases: WeakValueDictionary[_Key, _Base] = WeakValueDictionary()


def load_weights(folder: Path, kind: str, setup: Setup) -> Any:
    """Read a model of its own, which the caller may change.

    Args:
        folder: The model folder, checked.
        kind: Name of the class in transformers.
        setup: How it is to run. 4-bit weights come out on its device, others on the CPU.

    Returns:
        The model, in eval mode, without gradients and without the checkpoint's sampling settings.

    Raises:
        ArchitectureError: If tensors are missing.
        ModelError: If it cannot be read.
    """
    import transformers

    try:
        with LOADING, _quiet_loading():
            model, info = getattr(transformers, kind).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **setup.weight_options(),
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
    model.generation_config = transformers.GenerationConfig()
    return model.eval().requires_grad_(False)


def shared_weights(folder: Path, kind: str, setup: Setup) -> Any:
    """Return a view of a model that is read once per process.

    Args:
        folder: The model folder, checked. A folder whose files have changed is read anew.
        kind: Name of the class in transformers.
        setup: How it is to run.

    Returns:
        A view, on the setup's device.

    Raises:
        ArchitectureError: If tensors are missing.
        ModelError: If it cannot be read or does not fit the device.
    """
    key = (kind, _fingerprint(folder), *_identity(setup))
    with LOADING:
        base = _bases.get(key)
        if base is None:
            model = load_weights(folder, kind, setup)
            if setup.quantization == "none":
                model = move(model, setup.device)
            base = _bases[key] = _Base(model)
        else:
            logger.info("%s: already in memory, shared", folder)
        view = view_of(base.model)
    # Not an attribute as torch sees them: the base must not be a part of its view.
    view.__dict__["_procreward_base"] = base
    return view


def view_of(model: Any) -> Any:
    """Copy a module tree but none of its tensors.

    Args:
        model: A ``torch.nn.Module``.

    Returns:
        A tree of new modules with the same parameters and buffers; a module that stands in several
        places of the tree still does. Hooks are shared, other attributes are the same objects.
    """
    return _view(model, {})


def _view(module: torch.nn.Module, seen: dict[int, torch.nn.Module]) -> torch.nn.Module:
    known = seen.get(id(module))
    if known is not None:
        return known
    copy = module.__class__.__new__(module.__class__)
    seen[id(module)] = copy
    state = copy.__dict__
    state.update(module.__dict__)
    for name, value in module.__dict__.items():
        if name.startswith("_") and isinstance(value, dict | set):
            state[name] = value.copy()  # parameters, buffers, hooks
    children = {
        name: None if child is None else _view(child, seen)
        for name, child in module._modules.items()
    }
    state["_modules"] = children
    return copy


def _fingerprint(folder: Path) -> _Key:
    """Tell a model folder from another, and from itself before its files were replaced."""
    names = (*folder.glob("*.safetensors"), *folder.glob("*.json"))
    return tuple(
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(names)
    )


def _identity(setup: Setup) -> _Key:
    return (str(setup.device), setup.dtype, setup.attention, setup.quantization)


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
