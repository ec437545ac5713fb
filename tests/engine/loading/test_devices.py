from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from procreward.engine.loading.devices import Setup, choose_setup, memory_message, move
from procreward.errors import ConfigError, ModelError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that reports one CUDA device with bfloat16; nothing is run on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


def put_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bitsandbytes")
    module.__spec__ = ModuleSpec("bitsandbytes", loader=None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)


def test_without_a_gpu_the_cpu_runs_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    setup = choose_setup(threads=1)
    assert (setup.device.type, setup.dtype, setup.attention) == ("cpu", torch.float32, "sdpa")
    assert setup.quantization == "none"
    assert "quantization" not in setup.reasons
    assert setup.weight_options() == {"dtype": torch.float32, "attn_implementation": "sdpa"}


@pytest.mark.usefixtures("cuda")
def test_with_a_gpu_bfloat16_runs_there() -> None:
    setup = choose_setup()
    assert (setup.device.type, setup.dtype) == ("cuda", torch.bfloat16)
    assert "threads" not in setup.reasons


@pytest.mark.usefixtures("cuda")
def test_a_gpu_that_only_emulates_bfloat16_computes_in_single_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    # As torch has it: a tensor can be made there, and that is all it takes.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    setup = choose_setup()
    assert setup.dtype == torch.float32
    assert "a CUDA device without bfloat16" in setup.reasons["dtype"]


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_gpu_is_the_same_one_on_every_thread(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert choose_setup(device=device).device == torch.device("cuda:1")


def test_four_bits_need_a_gpu() -> None:
    setup = choose_setup(device="cpu", quantization="auto", threads=1)
    assert setup.quantization == "none"
    assert setup.reasons["quantization"] == (
        "none (auto: 4-bit weights run on CUDA devices only, and this is cpu)"
    )
    with pytest.raises(ConfigError, match=r"got 'nf4', but 4-bit weights run on CUDA .*\[quant\]"):
        choose_setup(device="cpu", quantization="nf4", threads=1)


@pytest.mark.usefixtures("cuda")
def test_four_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_setup(quantization="auto").reasons["quantization"] == (
        "none (auto: bitsandbytes is not installed)"
    )
    with pytest.raises(ConfigError, match="bitsandbytes is not installed"):
        choose_setup(quantization="nf4")


@pytest.mark.usefixtures("cuda")
def test_a_broken_bitsandbytes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bitsandbytes.py").write_text("raise RuntimeError('no libcudart')")
    monkeypatch.syspath_prepend(tmp_path)
    setup = choose_setup(quantization="auto")
    assert setup.reasons["quantization"] == (
        "none (auto: bitsandbytes cannot be imported (RuntimeError: no libcudart))"
    )


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("asked", ["auto", "nf4"])
def test_four_bits_where_both_are_there(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    put_bitsandbytes(monkeypatch)
    setup = choose_setup(quantization=asked)
    assert setup.quantization == "nf4"
    assert setup.reasons["quantization"].startswith("nf4, computed in bfloat16")
    options = setup.weight_options()
    assert options["device_map"] == {"": torch.device("cuda:0")}
    config = options["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type) == (True, "nf4")
    assert config.bnb_4bit_use_double_quant is True
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_unknown_quantization_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`quantization` must be one of 'none', 'nf4', 'auto'"):
        choose_setup(device="cpu", quantization="int8", threads=1)


def test_the_memory_message_says_needed_and_free() -> None:
    message = memory_message(torch.device("cuda"), 4 * 1024**3, 1024**3, 8 * 1024**3)
    assert "need 4.0 GiB, 1.0 of 8.0 GiB are free" in message


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(torch.nn.Linear):
        def to(self, *args: object, **options: object) -> Full:  # type: ignore[override]  # narrower on purpose
            raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1024**3))
    with pytest.raises(ModelError, match=r"0\.0 of 1\.0 GiB are free"):
        move(Full(2, 2), torch.device("cuda"))


def test_setups_are_values() -> None:
    one = choose_setup(device="cpu", threads=1)
    assert isinstance(one, Setup)
    assert one == choose_setup(device="cpu", threads=1)
