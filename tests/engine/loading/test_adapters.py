from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

from procreward.engine.loading import load_model
from procreward.engine.loading.adapters import attach_adapter, check_base_name, merge_adapter
from procreward.errors import ArchitectureError, ModelError
from tests.tiny import quiet_peft, save_tiny, save_tiny_adapter, save_tiny_moe, save_tiny_qwen25

SAVERS = {"qwen3_vl": save_tiny, "qwen3_vl_moe": save_tiny_moe, "qwen2_5_vl": save_tiny_qwen25}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Qwen/Qwen3-VL-4B-Instruct", "qwen3_vl"),
        ("unsloth/qwen3_vl_8b", "qwen3_vl"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl"),
        ("unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit", "qwen2_5_vl"),
        ("/models/qwen2_5_vl/", "qwen2_5_vl"),
    ],
)
def test_the_name_of_the_base_tells_its_family(name: str, family: str) -> None:
    config = {"base_model_name_or_path": name}
    check_base_name(Path("judge"), config, family)
    for other in set(SAVERS) - {family}:
        with pytest.raises(ArchitectureError, match=rf"trained on '{name}' \({family}\)"):
            check_base_name(Path("judge"), config, other)


@pytest.mark.parametrize(
    "name", ["OpenGVLab/InternVL3-2B-hf", "Qwen/Qwen2-VL-2B", "Qwen/Qwen2.5-7B", "meta/Llama-3-8B"]
)
def test_bases_that_are_none_of_ours(name: str) -> None:
    for family in SAVERS:
        with pytest.raises(ArchitectureError, match="Name the base model the adapter belongs to"):
            check_base_name(Path("judge"), {"base_model_name_or_path": name}, family)


@pytest.mark.parametrize(
    "name", [None, "", "runs/checkpoint-100", "/Qwen2.5-VL-3B/step-7", "Qwen2.5-VL-to-Qwen3-VL"]
)
def test_a_name_that_says_nothing_passes(name: str | None) -> None:
    check_base_name(Path("judge"), {"base_model_name_or_path": name}, "qwen3_vl")


def test_a_foreign_name_is_refused_before_weights_are_read(
    tiny_folder: Path, tmp_path: Path
) -> None:
    adapter = save_tiny_adapter(tmp_path / "a", tiny_folder)
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text()) | {"base_model_name_or_path": "Qwen/Qwen2.5-VL-3B"}
    path.write_text(json.dumps(content))
    with pytest.raises(ArchitectureError, match=r"\(qwen2_5_vl\), this model is .* qwen3_vl\."):
        load_model(str(tiny_folder), adapter=str(adapter))


@pytest.mark.parametrize("family", sorted(SAVERS))
def test_every_family_takes_adapters_merged_or_beside(family: str, tmp_path: Path) -> None:
    folder = SAVERS[family](tmp_path / "model")
    adapter = str(save_tiny_adapter(tmp_path / "adapter", folder))
    ids = torch.arange(30)[None] * 11 % 390
    with torch.inference_mode():
        base, merged, beside = (
            load_model(str(folder), threads=1, **options).model(input_ids=ids).logits
            for options in ({}, {"adapter": adapter}, {"adapter": adapter, "merge_adapter": False})
        )
    assert (merged - base).abs().max() > 1e-2
    assert (merged - beside).abs().max() < 1e-5 * merged.abs().max()


@pytest.mark.parametrize("family", sorted(SAVERS))
@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_of_another_family_or_size_is_refused(
    family: str, merge: bool, tmp_path: Path, tiny_adapter: Path
) -> None:
    folder = SAVERS[family](tmp_path / "wider", hidden=96)
    with pytest.raises(ArchitectureError, match="is 64 wide, this model's is 96"):
        load_model(str(folder), adapter=str(tiny_adapter), merge_adapter=merge)


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_is_not_read_onto_whichever_gpu_is_first(
    merge: bool, tiny_folder: Path, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This torch has no CUDA, so reading anything there fails.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loaded = load_model(
        str(tiny_folder), device="cpu", adapter=str(tiny_adapter), merge_adapter=merge, threads=1
    )
    assert (loaded.device, loaded.merged) == (torch.device("cpu"), merge)


def test_an_adapter_of_dense_layers_does_not_fit_experts(tmp_path: Path, tiny_folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    dense = load_model(str(tiny_folder), threads=1).model
    settings = LoraConfig(r=2, target_modules=r".*language_model.*\.up_proj")
    with quiet_peft():
        get_peft_model(dense, settings).save_pretrained(tmp_path / "adapter")
    folder = save_tiny_moe(tmp_path / "moe")
    with pytest.raises(ArchitectureError, match=r"no layer .*layers\.0\.mlp\.up_proj"):
        load_model(str(folder), adapter=str(tmp_path / "adapter"))


def test_an_adapter_over_experts_runs_beside_and_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = save_tiny_moe(tmp_path / "moe")
    model = load_model(str(folder), threads=1).model
    settings = LoraConfig(
        r=2,
        target_modules=[],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        init_lora_weights=False,
    )
    with quiet_peft(), torch.random.fork_rng():
        torch.manual_seed(1)
        get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    del model
    ids = torch.arange(30)[None] * 11 % 390
    adapter = str(tmp_path / "adapter")
    alone = load_model(str(folder), threads=1).model
    before = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    with torch.inference_mode():
        base, merged, beside = (
            load_model(str(folder), threads=1, **options).model(input_ids=ids).logits
            for options in ({}, {"adapter": adapter}, {"adapter": adapter, "merge_adapter": False})
        )
    assert (merged - base).abs().max() > 1e-2
    assert (merged - beside).abs().max() < 1e-5 * merged.abs().max()
    assert alone.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in alone.state_dict().items())


@pytest.mark.parametrize("options", [{"bias": "lora_only"}, {"init_lora_weights": "pissa"}])
def test_an_adapter_that_writes_into_its_base_gets_one_of_its_own(
    options: dict[str, str], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    folder = save_tiny_qwen25(tmp_path / "model")
    settings = LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj", **options)
    with quiet_peft(), torch.no_grad():
        trained = get_peft_model(load_model(str(folder), threads=1).model, settings)
        for name, weight in trained.named_parameters():
            if "lora_" in name or "q_proj.base_layer.bias" in name:
                weight += 0.1
        trained.save_pretrained(tmp_path / "adapter")
    del trained
    gc.collect()
    base = load_model(str(folder), threads=1).model
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapter = str(tmp_path / "adapter")
    ids = torch.arange(30)[None] * 11 % 390
    with torch.inference_mode():
        merged, beside = (
            load_model(str(folder), adapter=adapter, merge_adapter=merge).model(input_ids=ids)
            for merge in (True, False)
        )
        assert (base(input_ids=ids).logits - beside.logits).abs().max() > 1e-2
    assert (merged.logits - beside.logits).abs().max() < 1e-5 * merged.logits.abs().max()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_what_peft_cannot_read_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    adapter = save_tiny_adapter(tmp_path / "a", tiny_folder)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": -1}))
    model = load_model(str(tiny_folder), threads=1).model
    with pytest.raises(ModelError, match="could not be attached"):
        attach_adapter(model, adapter)
    with pytest.raises(ModelError, match="could not be merged"):
        merge_adapter(model, adapter)
