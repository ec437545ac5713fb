"""Where and how a model runs: device, precision, attention, quantisation, and why."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch

from procreward.checks import check_choice, check_int
from procreward.config import QUANTIZATIONS
from procreward.errors import ConfigError, ModelError

__all__ = ["Quantization", "Setup", "choose_setup", "computing", "memory_message", "move"]

Quantization: TypeAlias = Literal["none", "nf4"]
"""How weights are held: as they are, or as 4-bit normal floats."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
_GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What was chosen for a model.

    Attributes:
        device: Where it runs.
        dtype: Precision of its weights; of its computing, where they are quantised.
        attention: Name of transformers' attention implementation.
        quantization: How its weights are held.
        reasons: Why, by name.
    """

    device: torch.device
    dtype: torch.dtype
    attention: str
    quantization: Quantization
    reasons: Mapping[str, str]

    def weight_options(self) -> dict[str, Any]:
        """Return what transformers' ``from_pretrained`` is told."""
        options: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.attention}
        if self.quantization == "nf4":
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
            )
            # Weights become 4-bit on their way to the device, never on the CPU.
            options["device_map"] = {"": self.device}
        return options


def choose_setup(
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str = "auto",
    quantization: str = "none",
    threads: int | None = None,
) -> Setup:
    """Choose where and how a model runs; on the CPU, set the process's torch threads.

    Args:
        device: ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"auto"`` (bfloat16 on CUDA where supported, else float32), ``"float32"``,
            ``"bfloat16"`` or ``"float16"``.
        attention: ``"auto"`` (PyTorch's), ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``.
        quantization: ``"none"``, ``"nf4"`` (needs CUDA and bitsandbytes) or ``"auto"`` (nf4 where
            both are there).
        threads: Torch threads when the model runs on the CPU; see
            :func:`procreward.engine.loading.model.load_model`.

    Returns:
        The choices and their reasons.

    Raises:
        ConfigError: If a value is unknown, or nf4 cannot run here.
        ModelError: If there is no such device.
    """
    reasons: dict[str, str] = {}
    chosen_device = _choose_device(device, reasons)
    chosen_dtype = _choose_dtype(dtype, chosen_device, reasons)
    chosen_attention = _choose_attention(attention, reasons)
    chosen_quantization = _choose_quantization(quantization, chosen_device, chosen_dtype, reasons)
    if chosen_device.type == "cpu":
        _set_threads(threads, reasons)
    return Setup(
        device=chosen_device,
        dtype=chosen_dtype,
        attention=chosen_attention,
        quantization=chosen_quantization,
        reasons=MappingProxyType(reasons),
    )


def _choose_device(device: str, reasons: dict[str, str]) -> torch.device:
    available = torch.cuda.is_available()
    if device == "auto":
        name = "cuda" if available else "cpu"
        reasons["device"] = f"{name} (auto: torch sees {'a' if available else 'no'} CUDA device)"
        return _numbered(torch.device(name))
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
    return _numbered(chosen)


def _numbered(device: torch.device) -> torch.device:
    """Say which CUDA device it is: a mere "cuda" is another one on another thread."""
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device


def _choose_dtype(dtype: str, device: torch.device, reasons: dict[str, str]) -> torch.dtype:
    check_choice("dtype", dtype, ("auto", *_DTYPES))
    if dtype != "auto":
        reasons["dtype"] = f"{dtype} (as asked)"
        return _DTYPES[dtype]
    if device.type == "cuda" and _has_bfloat16(device):
        reasons["dtype"] = "bfloat16 (auto: the CUDA device supports it)"
        return torch.bfloat16
    where = "the CPU" if device.type == "cpu" else "a CUDA device without bfloat16"
    reasons["dtype"] = f"float32 (auto: exact and fast enough on {where})"
    return torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself; torch says yes to older ones that do not."""
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 0)


def _choose_attention(attention: str, reasons: dict[str, str]) -> str:
    check_choice("attention", attention, ("auto", *_ATTENTIONS))
    if attention == "auto":
        reasons["attention"] = "sdpa (auto: part of torch on every device)"
        return "sdpa"
    reasons["attention"] = f"{attention} (as asked)"
    return attention


def _choose_quantization(
    quantization: str, device: torch.device, dtype: torch.dtype, reasons: dict[str, str]
) -> Quantization:
    check_choice("quantization", quantization, QUANTIZATIONS)
    if quantization == "none":
        return "none"
    obstacle = _nf4_obstacle(device)
    if obstacle is None:
        why = "as asked" if quantization == "nf4" else "auto: CUDA and bitsandbytes are there"
        reasons["quantization"] = f"nf4, computed in {str(dtype).removeprefix('torch.')} ({why})"
        return "nf4"
    if quantization == "nf4":
        raise ConfigError(
            f"`quantization` must be 'none' or 'auto' here, got 'nf4', but {obstacle}. Run on a "
            "CUDA device with `pip install 'procreward[quant]'`."
        )
    reasons["quantization"] = f"none (auto: {obstacle})"
    return "none"


def _nf4_obstacle(device: torch.device) -> str | None:
    """Say what keeps 4-bit weights from running, if anything."""
    if device.type != "cuda":
        return f"4-bit weights run on CUDA devices only, and this is {device.type}"
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # a CUDA library that does not fit raises many types
        return f"bitsandbytes cannot be imported ({type(error).__name__}: {error})"
    return None


def _set_threads(threads: int | None, reasons: dict[str, str]) -> None:
    if threads is not None:
        check_int("threads", threads, least=1)
    if threads is None and os.environ.get("OMP_NUM_THREADS"):
        reasons["threads"] = f"{torch.get_num_threads()} (OMP_NUM_THREADS)"
        return
    torch.set_num_threads(threads or 1)
    why = "as asked" if threads is not None else "auto: one per process; `threads` changes it"
    reasons["threads"] = f"{threads or 1} ({why})"


@contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Compute as the model was set up, whatever the caller's thread has switched on.

    An environment may be stepped in the middle of a training loop: without gradients, and under
    autocast in another precision than the reward's.

    Args:
        device: Where the model runs.
    """
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        yield


def move(model: Any, device: torch.device) -> Any:
    """Move a model to its device.

    Args:
        model: A torch module in the CPU's memory.
        device: Where to.

    Returns:
        The model.

    Raises:
        ModelError: If it does not fit.
    """
    if device.type == "cpu":
        return model
    needed = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    try:
        return model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise ModelError(memory_message(device, needed, free, total)) from error


def memory_message(device: torch.device, needed: int, free: int, total: int) -> str:
    """Say that weights do not fit.

    Args:
        device: The device.
        needed: Bytes of the weights.
        free: Bytes that are free.
        total: Bytes there are.
    """
    return (
        f"Not enough memory on {device}: the weights need {needed / _GIB:.1f} GiB, "
        f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB are free. Close other programs, use "
        "device='cpu' or a smaller model."
    )
