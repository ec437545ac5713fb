from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from procreward.engine import Clip, Prompt
from procreward.engine.loading import LoadedModel, load_model
from procreward.engine.reference import ReferenceEngine
from procreward.engine.sources import resolve_source
from procreward.errors import (
    ArchitectureError,
    ConfigError,
    ModelError,
    ModelNotFoundError,
    UnsafeWeightsError,
)
from tests.tiny import save_tiny, save_tiny_adapter, save_tiny_moe, save_tiny_qwen25

PROMPT = Prompt(parts=("is the drawer open?",))
LABELS = ("complete", "not complete")


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_choices_are_made_and_said(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger="procreward"):
        loaded = load_model(str(tiny_folder))
    assert (loaded.device.type, loaded.dtype, loaded.attention) == ("cpu", torch.float32, "sdpa")
    assert set(loaded.reasons) == {"device", "dtype", "attention", "threads"}
    assert loaded.reasons["threads"].startswith("1 (auto")
    assert torch.get_num_threads() == 1
    assert all(reason in caplog.text for reason in loaded.reasons.values())
    assert (loaded.source, loaded.revision, loaded.adapter) == (str(tiny_folder), None, None)
    assert loaded.image_config.min_pixels == 1024
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    with pytest.raises(TypeError):
        loaded.reasons["device"] = "other"  # type: ignore[index]  # not None


@pytest.mark.parametrize(
    ("save", "family", "kind", "system"),
    [
        (save_tiny, "qwen3_vl", "Qwen3VLForConditionalGeneration", None),
        (save_tiny_moe, "qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", None),
        (
            save_tiny_qwen25,
            "qwen2_5_vl",
            "Qwen2_5_VLForConditionalGeneration",
            "You are a helpful assistant.",
        ),
    ],
)
def test_every_family_loads(
    tmp_path: Path, save: Callable[[Path], Path], family: str, kind: str, system: str | None
) -> None:
    loaded = load_model(str(save(tmp_path / "m")), threads=1)
    assert (loaded.family, type(loaded.model).__name__) == (family, kind)
    assert (loaded.default_system, loaded.quantization, loaded.merged) == (system, "none", True)
    assert loaded.model.model.language_model.embed_tokens.weight is loaded.model.lm_head.weight
    assert loaded.image_config.patch == loaded.model.model.visual.config.patch_size


def test_image_settings_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_qwen25(tmp_path / "m")
    edit(folder / "preprocessor_config.json", patch_size=16)
    with pytest.raises(ArchitectureError, match=r"\(14, 2, 2\) as config.json does, got \(16,"):
        load_model(str(folder))


def test_threads_can_be_set(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(str(tiny_folder), threads=2).reasons["threads"] == "2 (as asked)"
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert load_model(str(tiny_folder)).reasons["threads"] == "2 (OMP_NUM_THREADS)"
    with pytest.raises(ConfigError, match="threads"):
        load_model(str(tiny_folder), threads=0)


def test_half_precision_weights_run_in_single_precision_on_the_cpu(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "half", dtype=torch.float16)
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    loaded = load_model(str(folder), device="cpu")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    name = "model.language_model.norm.weight"
    assert torch.equal(loaded.model.state_dict()[name], stored[name].float())
    asked = load_model(str(folder), device="cpu", dtype="bfloat16")
    assert asked.dtype == torch.bfloat16
    assert asked.reasons["dtype"] == "bfloat16 (as asked)"


def test_sampling_settings_of_the_checkpoint_are_ignored(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copy(tiny_folder, tmp_path / "hot")
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0})
    )
    loaded = load_model(str(folder))
    assert loaded.model.generation_config.do_sample is not True
    assert loaded.model.generation_config.repetition_penalty is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "`device` must be"),
        ({"device": "meta"}, "`device` must be"),
        ({"dtype": "int8"}, "`dtype` must be one of"),
        ({"attention": "flash"}, "`attention` must be one of"),
    ],
)
def test_unknown_options_are_refused(
    tiny_folder: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(str(tiny_folder), **options)  # type: ignore[arg-type]  # on purpose


def test_a_missing_gpu_is_said(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"sees \d+ CUDA devices. Use 'cpu'"):
        load_model(str(tiny_folder), device="cuda:99")


class TestFolders:
    def test_a_missing_folder_names_what_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "procvlm-2b").mkdir()
        with pytest.raises(ModelNotFoundError, match=r"no such folder \(.* holds procvlm-2b\)"):
            load_model(str(tmp_path / "procvlm-2c"))
        with pytest.raises(FileNotFoundError):
            load_model("./no/such/folder")

    def test_a_file_is_not_a_folder(self, tiny_folder: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="must be a folder"):
            load_model(str(tiny_folder / "model.safetensors"))

    def test_a_folder_without_config_names_its_content(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(ModelNotFoundError, match=r"config.json is missing.*notes\.txt"):
            load_model(str(tmp_path))

    def test_a_folder_without_weights(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelNotFoundError, match=r"model.safetensors is missing"):
            load_model(str(folder))

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
    def test_pickles_are_refused(self, tiny_folder: Path, tmp_path: Path, name: str) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        (folder / "model.safetensors").rename(folder / name)
        with pytest.raises(UnsafeWeightsError, match=name):
            load_model(str(folder))

    def test_another_architecture_is_named(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        edit(folder / "config.json", architectures=["LlamaForCausalLM"])
        with pytest.raises(ArchitectureError, match=r"got LlamaForCausalLM.*`engine: plain`"):
            load_model(str(folder))
        edit(folder / "config.json", architectures=None, model_type="gpt2")
        with pytest.raises(ArchitectureError, match="got gpt2"):
            load_model(str(folder))

    def test_missing_shards_are_named(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelNotFoundError, match="model-00001-of-00002"):
            load_model(str(folder))

    def test_broken_files_are_said(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        (folder / "model.safetensors").write_bytes(b"not a tensor file")
        with pytest.raises(ModelError, match="could not be loaded"):
            load_model(str(folder))
        (folder / "config.json").write_text("{")
        with pytest.raises(ModelError, match="must be a JSON object"):
            load_model(str(folder))

    def test_missing_tensors_are_said(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.language_model.norm.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ArchitectureError, match=r"1 tensors are missing.*norm\.weight"):
            load_model(str(folder))

    def test_a_missing_or_foreign_tokenizer(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        edit(folder / "config.json", image_token_id=3)
        with pytest.raises(ArchitectureError, match=r"image_pad.* the id 3"):
            load_model(str(folder))
        (folder / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match="tokenizer"):
            load_model(str(folder))


class TestAdapters:
    def test_an_adapter_is_merged(
        self, tiny_folder: Path, tiny_adapter: Path, loaded: LoadedModel
    ) -> None:
        from peft import PeftModel

        adapted = load_model(str(tiny_folder), adapter=str(tiny_adapter))
        assert type(adapted.model) is type(loaded.model)
        assert adapted.adapter == str(tiny_adapter)
        assert "merged" in adapted.reasons["adapter"]
        base = ReferenceEngine(loaded).label_nll([PROMPT], LABELS).nll
        ours = ReferenceEngine(adapted).label_nll([PROMPT], LABELS).nll
        assert abs(ours - base).max() > 1e-2
        fresh = load_model(str(tiny_folder))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            unmerged = PeftModel.from_pretrained(fresh.model, tiny_adapter)
        state = unmerged.base_model.model.state_dict()
        name = "model.language_model.layers.0.self_attn.q_proj"
        low, high = (state[f"{name}.lora_{side}.default.weight"] for side in "AB")
        expected = state[f"{name}.base_layer.weight"] + 2.0 * high @ low
        merged = adapted.model.state_dict()[f"{name}.weight"]
        assert torch.allclose(merged, expected, rtol=0, atol=1e-6)

    def test_an_adapter_inside_the_model_folder_has_a_short_name(
        self, tiny_folder: Path, tiny_adapter: Path, tmp_path: Path
    ) -> None:
        folder = copy(tiny_folder, tmp_path / "m")
        copy(tiny_adapter, folder / "judge")
        inside = load_model(str(folder), adapter="judge")
        outside = load_model(str(folder), adapter=str(tiny_adapter))
        name = "model.language_model.layers.1.self_attn.o_proj.weight"
        assert torch.equal(inside.model.state_dict()[name], outside.model.state_dict()[name])

    def test_an_adapter_of_a_wider_base_is_refused(
        self, tmp_path: Path, tiny_adapter: Path
    ) -> None:
        wider = save_tiny(tmp_path / "wider", hidden=96)
        with pytest.raises(ArchitectureError, match="is 64 wide, this model's is 96"):
            load_model(str(wider), adapter=str(tiny_adapter))

    def test_an_adapter_of_a_deeper_base_is_refused(
        self, tmp_path: Path, tiny_folder: Path
    ) -> None:
        deeper = save_tiny(tmp_path / "deeper", text_layers=3)
        adapter = save_tiny_adapter(tmp_path / "adapter", deeper)
        with pytest.raises(ArchitectureError, match=r"no layer model\.language_model\.layers\.2"):
            load_model(str(tiny_folder), adapter=str(adapter))

    def test_a_pickled_adapter_is_refused(
        self, tiny_folder: Path, tiny_adapter: Path, tmp_path: Path
    ) -> None:
        folder = copy(tiny_adapter, tmp_path / "a")
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        with pytest.raises(UnsafeWeightsError, match=r"adapter_model\.bin"):
            load_model(str(tiny_folder), adapter=str(folder))

    def test_what_is_no_lora_is_refused(
        self, tiny_folder: Path, tiny_adapter: Path, tmp_path: Path
    ) -> None:
        folder = copy(tiny_adapter, tmp_path / "a")
        edit(folder / "adapter_config.json", peft_type="PROMPT_TUNING")
        with pytest.raises(ArchitectureError, match="PROMPT_TUNING"):
            load_model(str(tiny_folder), adapter=str(folder))
        with pytest.raises(ModelNotFoundError, match=r"adapter_config\.json is missing"):
            load_model(str(tiny_folder), adapter=str(tiny_folder))
        with pytest.raises(ModelNotFoundError, match=r"`adapter` must be a local folder.*'jugde'"):
            load_model(str(tiny_folder), adapter="jugde")


class FakeHub:
    """An HTTP server on this machine that refuses every request in one way and counts them."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.requests: list[str] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if "some-owner/some-model" in self.path:  # not the client's own notices
                    requests.append(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FakeHub]:
    fake = FakeHub(*request.param)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", fake.url)
    thread = Thread(target=fake.server.serve_forever)
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


class TestHub:
    """Nothing here leaves this machine."""

    @pytest.mark.parametrize(
        "hub", [(404, {"X-Error-Code": "RepoNotFound"})], indirect=True, ids=["404"]
    )
    def test_an_unknown_repository(self, hub: FakeHub) -> None:
        with pytest.raises(ModelNotFoundError, match="no hub repository 'some-owner/some-model'"):
            load_model("some-owner/some-model")
        assert len(hub.requests) == 1

    @pytest.mark.parametrize(
        "hub", [(404, {"X-Error-Code": "RevisionNotFound"})], indirect=True, ids=["404"]
    )
    def test_an_unknown_revision(self, hub: FakeHub) -> None:
        with pytest.raises(ModelNotFoundError, match="at revision 'v9'"):
            load_model("some-owner/some-model", revision="v9")
        assert len(hub.requests) == 1

    @pytest.mark.parametrize(
        "hub", [(403, {"X-Error-Code": "GatedRepo"})], indirect=True, ids=["403"]
    )
    def test_a_gated_repository(self, hub: FakeHub) -> None:
        with pytest.raises(ModelError, match="is gated"):
            load_model("some-owner/some-model")
        assert len(hub.requests) == 1

    @pytest.mark.parametrize("hub", [(500, {})], indirect=True, ids=["500"])
    def test_a_broken_hub_is_not_asked_again_and_again(self, hub: FakeHub) -> None:
        with pytest.raises(ModelError, match="Check the network or name a local folder"):
            load_model("some-owner/some-model")
        assert 1 <= len(hub.requests) <= 6

    def test_an_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(ModelError, match="could not be read, and this machine has no copy"):
            load_model("some-owner/some-model")

    def test_offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelError, match="could not be read, and this machine has no copy"):
            load_model("some-owner/some-model")

    def test_local_files_only_does_not_ask_the_network(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelError, match="no copy"):
            load_model("some-owner/some-model", local_files_only=True)

    def test_a_hub_id_whose_owner_is_a_folder_here_may_be_a_path(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "model-a").mkdir(parents=True)
        with pytest.raises(ModelError, match=r"Did you mean a local folder\? .* model-a"):
            load_model("runs/model-b")

    def test_a_cached_snapshot_is_found_by_its_commit(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        commit = "a7f5c18c6128a9c2a478a62ecc356f19f0e0bcf5"
        copy(tiny_folder, tmp_path / "models--owner--name" / "snapshots" / commit)
        loaded = load_model("owner/name", revision=commit, local_files_only=True)
        assert (loaded.source, loaded.revision) == ("owner/name", commit)

    @pytest.mark.parametrize("source", ["nanoo", "owner/name/extra", "~/nothing/here", "a b/c"])
    def test_what_is_neither_folder_nor_hub_id(self, source: str) -> None:
        with pytest.raises(ModelNotFoundError, match="must be a local folder, a hub id"):
            resolve_source(source)


def test_frames_reach_the_model_through_its_own_settings(tmp_path: Path) -> None:
    import numpy as np

    from procreward.errors import FrameError

    own = {"frame_size": [128, 128], "crop": [0, 16, 96, 96]}
    loaded = load_model(str(save_tiny(tmp_path / "m", own=own)))
    engine = ReferenceEngine(loaded)
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(FrameError, match="trained on frames of 128x128"):
        engine.generate([Prompt(parts=(Clip(frames=frames), "a"))], max_new_tokens=1)
