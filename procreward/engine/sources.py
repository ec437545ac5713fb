"""From what the user named (folder, hub id, ``nano``) to a checked folder on this machine.

Everything that can be told from file names and JSON is told here, before a tensor is read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from procreward.errors import ArchitectureError, ModelError, ModelNotFoundError, UnsafeWeightsError

__all__ = [
    "FAMILIES",
    "Family",
    "ResolvedSource",
    "check_adapter",
    "check_generic_model",
    "check_model",
    "family_of",
    "read_json_object",
    "resolve_source",
]

Family: TypeAlias = Literal["qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"]
"""A family of models that the engines of this package run themselves; its ``model_type``."""

FAMILIES: Mapping[str, Family] = {
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
}
"""Families by the name of their class in transformers."""

logger = logging.getLogger(__name__)
_EMBEDDED = {"nano": Path(__file__).parents[1] / "models" / "nano" / "weights"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_ALLOWED = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSource:
    """A model on this machine.

    Attributes:
        folder: Where its files are.
        source: What the user named.
        revision: Commit of the hub repository, or None for a local folder.
    """

    folder: Path
    source: str
    revision: str | None


def resolve_source(
    source: str,
    *,
    revision: str | None = None,
    local_files_only: bool | None = None,
    setting: str = "model",
) -> ResolvedSource:
    """Find a model's folder, downloading it if the user named a hub id.

    Args:
        source: A local folder, a hub id (``owner/name``) or ``nano``.
        revision: Commit, tag or branch of a hub repository; pin a commit for reproducible results.
        local_files_only: Whether to use the hub's local cache only; None leaves it to the
            environment (``HF_HUB_OFFLINE``).
        setting: What the messages call the source, ``"model"`` or ``"adapter"``.

    Returns:
        The folder and the commit.

    Raises:
        ModelNotFoundError: If there is no such folder or repository.
        ModelError: If the hub cannot be reached or refuses.
    """
    if source in _EMBEDDED:
        folder = _EMBEDDED[source]
        if not (folder / "config.json").is_file():
            raise ModelNotFoundError(
                f"The embedded model {source!r} is not part of this installation (no config.json "
                f"in {folder}). Reinstall procreward, or name a model folder or hub id."
            )
        return ResolvedSource(folder=folder, source=source, revision=None)
    path = Path(source).expanduser()
    if path.is_dir():
        return ResolvedSource(folder=path.resolve(), source=source, revision=None)
    if path.is_file():
        raise ModelNotFoundError(
            f"`{setting}` must be a folder, got the file {source!r}. Name its folder."
        )
    if not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise ModelNotFoundError(
            f"`{setting}` must be a local folder, a hub id (owner/name) or 'nano', got {source!r}; "
            f"there is no such folder{_nearest(path)}."
        )
    return _download(source, revision, bool(local_files_only))


def check_model(folder: Path) -> dict[str, Any]:
    """Check that a folder holds a model of one of :data:`FAMILIES` in safetensors.

    Args:
        folder: The model folder.

    Returns:
        The content of its ``config.json``.

    Raises:
        ModelNotFoundError: If the configuration or the weights are absent.
        ArchitectureError: If the model is of another architecture.
        UnsafeWeightsError: If the weights are in a pickle format only.
    """
    config = _read_config(folder, "config.json", "model")
    if family_of(config) is None:
        raise ArchitectureError(
            f"The model in {folder} must be one of {', '.join(FAMILIES)}, got {_named(config)}. "
            "Use a Qwen3-VL or Qwen2.5-VL checkpoint; `engine: plain` runs any other model that "
            "transformers knows as image-text-to-text."
        )
    _check_weights(folder, "model", "model")
    return config


def check_generic_model(folder: Path) -> dict[str, Any]:
    """Check that a folder holds a model of any architecture in safetensors.

    Args:
        folder: The model folder.

    Returns:
        The content of its ``config.json``.

    Raises:
        ModelNotFoundError: If the configuration or the weights are absent.
        UnsafeWeightsError: If the weights are in a pickle format only.
    """
    config = _read_config(folder, "config.json", "model")
    _check_weights(folder, "model", "model")
    return config


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the family of a model, or None when it is of none that we run ourselves.

    Args:
        config: The content of its ``config.json``.
    """
    for name in config.get("architectures") or ():
        if name in FAMILIES:
            return FAMILIES[name]
    return None


def _named(config: Mapping[str, Any]) -> str:
    return ", ".join(map(str, config.get("architectures") or [config.get("model_type", "nothing")]))


def check_adapter(folder: Path) -> dict[str, Any]:
    """Check that a folder holds a LoRA adapter in safetensors.

    Args:
        folder: The adapter folder.

    Returns:
        The content of its ``adapter_config.json``.

    Raises:
        ModelNotFoundError: If the configuration or the weights are absent.
        ArchitectureError: If the adapter is not a LoRA.
        UnsafeWeightsError: If the weights are in a pickle format only.
    """
    config = _read_config(folder, "adapter_config.json", "adapter")
    if config.get("peft_type") != "LORA":
        raise ArchitectureError(
            f"The adapter in {folder} must be a LORA, got {config.get('peft_type')!r}. "
            "Only LoRA adapters can be used."
        )
    _check_weights(folder, "adapter_model", "adapter")
    return config


def read_json_object(path: Path) -> dict[str, Any]:
    """Read one of a model's JSON files.

    Args:
        path: The file.

    Raises:
        ModelError: If it cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"`{path}` must be a JSON object; reading it failed: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"`{path}` must be a JSON object, got a {type(content).__name__}.")
    return content


def _read_config(folder: Path, name: str, kind: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise ModelNotFoundError(
            f"No {kind} in {folder}: {name} is missing. The folder holds {_listing(folder)}."
        )
    return read_json_object(path)


def _check_weights(folder: Path, stem: str, kind: str) -> None:
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = set(_read_config(folder, index.name, kind).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing or not shards:
            raise ModelNotFoundError(
                f"The {kind} in {folder} is incomplete: {index.name} names {missing or 'no files'}"
                " that are not there. Copy or download it again."
            )
        return
    if (folder / f"{stem}.safetensors").is_file():
        return
    pickles = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in _PICKLES or path.name.endswith(".bin.index.json")
    )
    if pickles:
        raise UnsafeWeightsError(
            f"The {kind} in {folder} has its weights as {', '.join(pickles)} only, a format that "
            "can run code when it is opened. Convert them to safetensors where you trust them."
        )
    raise ModelNotFoundError(
        f"No weights in {folder}: {stem}.safetensors is missing. The folder holds "
        f"{_listing(folder)}."
    )


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "nothing"


def _nearest(path: Path) -> str:
    """Say what the closest existing parent holds, so that a typo in a path can be seen."""
    for parent in path.parents:
        if parent.is_dir() and parent != Path():
            return f" ({parent} holds {_listing(parent)})"
    return ""


def _download(source: str, revision: str | None, local_files_only: bool) -> ResolvedSource:
    import huggingface_hub
    from huggingface_hub import errors

    hint = _path_hint(source)
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                source,
                revision=revision,
                allow_patterns=_ALLOWED,
                local_files_only=local_files_only,
                etag_timeout=_HUB_TIMEOUT_S,
            )
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"The hub repository {source!r} is gated. Accept its terms on the hub, then log in "
            "with `hf auth login`."
        ) from error
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ModelNotFoundError(
            f"There is no hub repository {source!r}{at}, or it is private.{hint}"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        # Every failure of the network, the proxy or the local cache is one of these three.
        raise ModelError(
            f"The hub repository {source!r} could not be read, and this machine has no copy of it: "
            f"{_first_line(error)}. Check the network or name a local folder.{hint}"
        ) from error
    commit = folder.name
    if revision is None:
        logger.warning("%s is not pinned; using its latest revision %s", source, commit)
    return ResolvedSource(folder=folder, source=source, revision=commit)


def _path_hint(source: str) -> str:
    parent = Path(source).parent
    if not parent.is_dir():
        return ""
    return f" Did you mean a local folder? {parent} exists here and holds {_listing(parent)}."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
