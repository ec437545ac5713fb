from __future__ import annotations

import gc
import logging
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from procreward.engine.loading import load_model
from procreward.engine.loading.devices import choose_setup
from procreward.engine.loading.weights import shared_weights, view_of
from tests.tiny import save_tiny, save_tiny_adapter

ADAPTED = "model.language_model.layers.0.self_attn.q_proj"
UNADAPTED = "model.language_model.layers.0.mlp.up_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "base")


@pytest.fixture
def adapters(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    first = save_tiny_adapter(tmp_path / "first", folder, seed=1)
    return first, save_tiny_adapter(tmp_path / "second", folder, seed=2, rank=2)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.arange(40)[None] * 7 % 390
        result: torch.Tensor = model(input_ids=ids).logits
    return result


def pointers(model: Any) -> set[int]:
    tensors = (*model.parameters(), *model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def load(folder: Path, **options: Any) -> Any:
    return load_model(str(folder), device="cpu", threads=1, **options)


class TestViews:
    def test_a_view_has_modules_of_its_own_and_no_tensors(self) -> None:
        inner = torch.nn.Linear(3, 3)
        model = torch.nn.Sequential(inner, torch.nn.BatchNorm1d(3), inner)
        view = view_of(model)
        assert view[0] is view[2]
        assert view[0] is not inner
        assert all(a is b for a, b in zip(view.parameters(), model.parameters(), strict=True))
        assert all(a is b for a, b in zip(view.buffers(), model.buffers(), strict=True))
        view[0] = torch.nn.Identity()
        view[1].weight = None
        view.eval()
        assert model[0] is inner
        assert model[1].weight is not None
        assert model.training

    def test_a_view_computes_the_same(self, folder: Path) -> None:
        model = load(folder).model
        assert torch.equal(logits(view_of(model)), logits(model))

    def test_what_a_forward_pass_writes_on_a_module_stays_there(self, folder: Path) -> None:
        one, other = load(folder).model, load(folder).model
        one.model.rope_deltas = torch.ones(1)
        assert other.model.rope_deltas is None


class TestSharing:
    def test_adapters_and_base_share_one_base(
        self, folder: Path, adapters: tuple[Path, Path]
    ) -> None:
        base = load(folder)
        alone = pointers(base.model)
        before = logits(base.model)
        beside = [load(folder, adapter=str(path), merge_adapter=False) for path in adapters]
        merged = [load(folder, adapter=str(path)) for path in adapters]
        for ours, whole in zip(beside, merged, strict=True):
            assert type(ours.model) is type(base.model)
            assert (ours.merged, whole.merged, base.merged) == (False, True, True)
            assert ours.reasons["adapter"].endswith("runs beside the weights (as asked)")
            up, at_base = ours.model.get_submodule(UNADAPTED), base.model.get_submodule(UNADAPTED)
            assert up.weight.data_ptr() == at_base.weight.data_ptr()
            q, at_base = ours.model.get_submodule(ADAPTED), base.model.get_submodule(ADAPTED)
            assert q.base_layer.weight.data_ptr() == at_base.weight.data_ptr()
            assert torch.allclose(logits(ours.model), logits(whole.model), rtol=0, atol=1e-5)
            assert (logits(ours.model) - before).abs().max() > 1e-2
            # Beyond the base it has two small matrices per layer and projection, and no more.
            assert alone <= pointers(ours.model)
            assert len(pointers(ours.model)) == len(alone) + 2 * 4 * 2
            assert not pointers(whole.model) & alone
            assert not any(weight.requires_grad for weight in ours.model.parameters())
            assert not any(module.training for module in ours.model.modules())
        assert torch.equal(logits(base.model), before)
        assert not torch.equal(logits(beside[0].model), logits(beside[1].model))

    def test_other_setups_and_changed_files_are_read_anew(self, folder: Path) -> None:
        base = load(folder)
        assert pointers(load(folder).model) == pointers(base.model)
        assert not pointers(load(folder, attention="eager").model) & pointers(base.model)
        assert not pointers(load(folder, dtype="bfloat16").model) & pointers(base.model)
        before = logits(base.model)
        save_tiny(folder, seed=5)
        assert not torch.equal(logits(load(folder).model), before)
        assert torch.equal(logits(base.model), before)

    def test_nothing_stays_when_all_are_dropped(
        self, folder: Path, adapters: tuple[Path, Path]
    ) -> None:
        base = load(folder)
        beside = load(folder, adapter=str(adapters[0]), merge_adapter=False)
        weight = weakref.ref(base.model.get_submodule(UNADAPTED).weight)
        del base
        gc.collect()
        assert weight() is not None
        assert weight() is beside.model.get_submodule(UNADAPTED).weight
        del beside
        gc.collect()
        assert weight() is None

    def test_threads_that_load_at_once_share(
        self, folder: Path, adapters: tuple[Path, Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        models: list[Any] = []

        def run(adapter: str | None) -> None:
            models.append(load(folder, adapter=adapter, merge_adapter=False).model)

        wanted = [None, str(adapters[0]), str(adapters[1]), None]
        threads = [threading.Thread(target=run, args=(adapter,)) for adapter in wanted]
        with caplog.at_level(logging.INFO, logger="procreward.engine.loading.weights"):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len({model.get_submodule(UNADAPTED).weight.data_ptr() for model in models}) == 1
        assert caplog.text.count("already in memory, shared") == 3

    def test_the_base_is_no_part_of_its_views(self, folder: Path) -> None:
        setup = choose_setup(device="cpu", threads=1)
        view = shared_weights(folder, "Qwen3VLForConditionalGeneration", setup)
        assert not any("procreward" in name for name in view.state_dict())
        assert len({id(module) for module in view.modules()}) == len(list(view.modules()))
