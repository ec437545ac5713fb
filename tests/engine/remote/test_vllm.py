from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from procreward.engine import Clip, Prompt
from procreward.engine.loading import LoadedModel, load_model
from procreward.engine.reading.prompt import ChatBuilder, Image, Part, Video
from procreward.engine.reference import ReferenceEngine
from procreward.engine.remote.vllm import VLLMEngine, VLLMSettings
from procreward.engine.remote.vllm_requests import label_nll_of, vllm_request, vllm_text
from procreward.engine.vision.preprocess import PreprocessConfig, preprocess_images
from procreward.errors import (
    ArchitectureError,
    ConfigError,
    InstructionError,
    MissingDependencyError,
    ModelError,
)
from procreward.models.nano import WEIGHTS
from procreward.types import Frames
from tests.tiny import save_tiny, tiny_tokenizer

CONFIG = PreprocessConfig(min_pixels=32 * 32, max_pixels=64 * 64)


def noise(count: int, seed: int = 0, size: tuple[int, int] = (32, 64)) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def keys(*steps: int, view: str = "front") -> tuple[tuple[str, str, int], ...]:
    return tuple(("episode 1", view, step) for step in steps)


def video(count: int) -> Clip:
    steps = tuple(range(4, 4 + 3 * count, 3))
    return Clip(frames=noise(count), video=True, frame_indices=steps, fps=10.0)


class TestText:
    def test_pictures_stay_where_the_prompt_has_them(self) -> None:
        prompt = Prompt(
            parts=("Look: ", Clip(frames=noise(2)), "and ", "then"), assistant_prefix="Well"
        )
        assert vllm_text(prompt) == (
            "<|im_start|>user\nLook: <|vision_start|><|image_pad|><|vision_end|><|vision_start|>"
            "<|image_pad|><|vision_end|>and then<|im_end|>\n<|im_start|>assistant\nWell"
        )

    def test_system_turns(self) -> None:
        prompt = Prompt(parts=("go",))
        assert vllm_text(prompt, "Help.").startswith(
            "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\ngo<|im_end|>"
        )
        brief = vllm_text(replace(prompt, system="Be brief."), "Help.")
        assert "Be brief." in brief
        assert "Help." not in brief

    @pytest.mark.parametrize(
        ("more", "default"),
        [
            ({}, None),
            ({"assistant_prefix": "so <progress>"}, "You are a helpful assistant."),
            ({"system": "Be brief."}, None),
            ({"open_turn": True}, None),
        ],
    )
    def test_tokens_are_those_of_our_own_layout(
        self, more: dict[str, Any], default: str | None
    ) -> None:
        tokenizer = tiny_tokenizer()
        clip = video(3)
        assert clip.frame_indices is not None
        film = Video.from_frames(clip.frame_indices, 10.0, 1, 1)
        layouts: list[tuple[Any, list[Part]]] = [
            (Clip(frames=noise(2)), [Image(1, 1), Image(1, 1)]),
            (clip, [film]),
        ]
        for shown, own in layouts:
            text = vllm_text(Prompt(parts=("lift ", shown, "the cube"), **more), default)
            # This is how vLLM writes a video into the prompt.
            times = [f"<{seconds:.1f} seconds>" for seconds in film.seconds]
            pad = "<|vision_start|><|video_pad|><|vision_end|>"
            text = text.replace(pad, "".join(time + pad for time in times))
            builder = ChatBuilder(tokenizer, video_layout="4.57", default_system=default)
            chat = builder.build(["lift ", *own, "the cube"], **more)
            assert tokenizer.encode(text, add_special_tokens=False) == chat.ids.tolist()

    def test_control_tokens_in_words(self) -> None:
        with pytest.raises(InstructionError, match="control tokens"):
            vllm_text(Prompt(parts=("lift<|im_end|>",)))


class TestRequest:
    def test_words_only(self) -> None:
        assert set(vllm_request(Prompt(parts=("go",)), CONFIG)) == {"prompt"}

    def test_frames_are_pictures_and_named_by_their_keys(self) -> None:
        front = Clip(frames=noise(3), keys=keys(0, 0, 4))
        side = Clip(frames=noise(1, seed=1), keys=keys(4, view="side"))
        request = vllm_request(Prompt(parts=(front, "and", side)), CONFIG)
        pictures = request["multi_modal_data"]["image"]
        assert all(isinstance(picture, PILImage.Image) for picture in pictures)
        sent = np.stack([np.asarray(picture) for picture in pictures])
        np.testing.assert_array_equal(sent, np.concatenate([front.frames, side.frames]))
        names = request["multi_modal_uuids"]["image"]
        assert json.loads(names[2]) == ["episode 1", "front", 4, 32, 64]
        assert names[0] == names[1]
        assert len({*names}) == 3

    def test_the_next_window_names_the_same_frames_alike(self) -> None:
        frames = noise(4)
        now, later = (
            vllm_request(
                Prompt(parts=(Clip(frames=frames[start : start + 3], keys=keys(*steps)), "go")),
                CONFIG,
            )["multi_modal_uuids"]["image"]
            for start, steps in ((0, (0, 1, 2)), (1, (1, 2, 3)))
        )
        assert now[1:] == later[:-1]

    def test_frames_of_another_size_have_other_names(self) -> None:
        small, large = (
            vllm_request(
                Prompt(parts=(Clip(frames=noise(1, size=(128, 128)), keys=keys(0)), "go")),
                replace(CONFIG, max_pixels=side * side),
            )
            for side in (32, 64)
        )
        assert small["multi_modal_data"]["image"][0].size == (32, 32)
        assert large["multi_modal_data"]["image"][0].size == (64, 64)
        assert small["multi_modal_uuids"] != large["multi_modal_uuids"]

    def test_frames_without_keys_are_left_to_vllm(self) -> None:
        nameless = Clip(frames=noise(2))
        assert "multi_modal_uuids" not in vllm_request(Prompt(parts=(nameless, "go")), CONFIG)
        both = (nameless, Clip(frames=noise(1), keys=keys(0)), "go")
        names = vllm_request(Prompt(parts=both), CONFIG)["multi_modal_uuids"]["image"]
        assert names[:2] == [None, None]
        assert names[2] is not None

    def test_a_video_keeps_its_times_and_is_not_sampled(self) -> None:
        clip = replace(video(3), keys=keys(4, 7, 10))
        request = vllm_request(Prompt(parts=(clip, "done?")), CONFIG)
        [(frames, metadata)] = request["multi_modal_data"]["video"]
        assert frames.shape == (4, 32, 64, 3)
        np.testing.assert_array_equal(frames[3], frames[2])
        assert metadata["frames_indices"] == [4, 7, 10, 10]
        assert metadata["fps"] == 10.0
        assert metadata["do_sample_frames"] is False
        [name] = request["multi_modal_uuids"]["video"]
        slower = replace(clip, fps=5.0)
        [other] = vllm_request(Prompt(parts=(slower, "done?")), CONFIG)["multi_modal_uuids"][
            "video"
        ]
        assert name != other


def entries(*values: tuple[int, float] | None) -> list[dict[int, Any] | None]:
    return [value and {value[0]: SimpleNamespace(logprob=value[1])} for value in values]


class TestLabels:
    def test_the_last_tokens_count(self) -> None:
        logprobs = entries(None, (5, -9.0), (7, -1.5), (8, -0.25))
        assert label_nll_of([3, 5, 7, 8], logprobs, [7, 8]) == 1.75

    @pytest.mark.parametrize(
        "logprobs",
        [
            None,
            entries(None, (7, -1.0)),
            entries(None, (5, -1.0), (7, -1.0), (9, -1.0)),
            entries(None, (5, -1.0), (7, -1.0), (8, float("nan"))),
            entries(None, (5, -1.0), (7, -1.0), None),
        ],
    )
    def test_a_missing_likelihood_is_no_zero(self, logprobs: Any) -> None:
        with pytest.raises(ModelError, match="engine: fast"):
            label_nll_of([3, 5, 7, 8], logprobs, [7, 8])

    def test_a_prompt_that_does_not_end_in_the_label(self) -> None:
        with pytest.raises(ModelError, match="the label's last"):
            label_nll_of([3, 8, 7], entries(None, (8, -1.0), (7, -1.0)), [7, 8])


class StandInLLM:
    """What of ``vllm.LLM`` the engine uses, with transformers behind it.

    It takes text or token ids with one placeholder for each picture and expands them itself, so
    nothing of our prompt layout or of our engines is in it.
    """

    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, **args: Any) -> None:
        self.made.append(args)
        self._loaded = load_model(args["model"], threads=1)

    def get_tokenizer(self) -> Any:
        return self._loaded.tokenizer

    def generate(self, requests: Sequence[dict[str, Any]], params: Any, use_tqdm: bool) -> Any:
        assert params.temperature == 0.0
        assert not use_tqdm
        return [self._one(request, params) for request in requests]

    def _one(self, request: dict[str, Any], params: Any) -> Any:
        tokenizer, model = self._loaded.tokenizer, self._loaded.model
        ids = request.get("prompt_token_ids")
        if ids is None:
            ids = tokenizer.encode(request["prompt"], add_special_tokens=False)
        if len(ids) > 400:
            raise ValueError("The decoder prompt is longer than the maximum model length of 400.")
        config = replace(self._loaded.image_config, crop=None)
        patches = [
            preprocess_images(np.asarray(picture)[None], config)
            for picture in request.get("multi_modal_data", {}).get("image", ())
        ]
        pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        sizes = iter([patch.grid[1] * patch.grid[2] // 4 for patch in patches])
        ids = [again for token in ids for again in [token] * (next(sizes) if token == pad else 1)]
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == pad).long()
        if patches:
            inputs["pixel_values"] = torch.cat([patch.pixel_values for patch in patches])
            inputs["image_grid_thw"] = torch.cat([patch.grid_thw for patch in patches])
        logprobs = None
        with torch.inference_mode():
            if getattr(params, "prompt_logprobs", None) is not None:
                scores = model(**inputs).logits[0].float().log_softmax(-1)
                pairs = [(ids[i], scores[i - 1, ids[i]].item()) for i in range(1, len(ids))]
                logprobs = entries(None, *pairs)
            output = model.generate(**inputs, do_sample=False, max_new_tokens=params.max_tokens)
        answer = self._answer(output[0, len(ids) :].tolist(), getattr(params, "stop", []))
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=logprobs, outputs=[answer])

    def _answer(self, tokens: list[int], stop: Sequence[str]) -> Any:
        """Stop as vLLM does: at the token that completes a stop string, or behind the end token."""
        for count in range(1, len(tokens) + 1):
            text = self._loaded.tokenizer.decode(tokens[:count], skip_special_tokens=True)
            ended = tokens[count - 1] in self._loaded.end_ids
            if ended or any(word in text for word in stop):
                return SimpleNamespace(text=text, token_ids=tokens[:count], finish_reason="stop")
        return SimpleNamespace(text=text, token_ids=tokens, finish_reason="length")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandInLLM]:
    module = ModuleType("vllm")
    module.LLM = StandInLLM  # type: ignore[attr-defined]  # known of the concrete class
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]  # known
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(StandInLLM, "made", [])
    return StandInLLM


class TestEngine:
    PROMPTS = (
        Prompt(parts=(Clip(frames=noise(2), keys=keys(0, 1)), "lift the red cube")),
        Prompt(parts=("open ", Clip(frames=noise(1, seed=3)), "the drawer")),
        Prompt(parts=("lift the cube",), assistant_prefix="The following actions"),
    )

    def engines(self, loaded: LoadedModel, folder: Path) -> tuple[VLLMEngine, ReferenceEngine]:
        return VLLMEngine(folder, loaded.image_config), ReferenceEngine(loaded)

    def test_answers_are_those_of_the_reference(
        self, stand_in: type[StandInLLM], loaded: LoadedModel, tiny_folder: Path
    ) -> None:
        engine, reference = self.engines(loaded, tiny_folder)
        expected = reference.generate(self.PROMPTS, max_new_tokens=12)
        assert engine.generate(self.PROMPTS, max_new_tokens=12) == expected
        word = next(char for char in expected[0].text[2:] if char.isascii())
        for stop in ((word,), (re.compile(re.escape(word)),)):
            got = engine.generate(self.PROMPTS[:1], max_new_tokens=12, stop=stop)
            [cut] = reference.generate(self.PROMPTS[:1], max_new_tokens=12, stop=(word,))
            assert [answer.text for answer in got] == [cut.text]
            assert got[0].finished
        assert engine.generate([], max_new_tokens=12) == []

    def test_labels_score_as_in_the_reference(
        self, stand_in: type[StandInLLM], loaded: LoadedModel, tiny_folder: Path
    ) -> None:
        engine, reference = self.engines(loaded, tiny_folder)
        labels = ["not complete", "complete"]
        for end_tokens in ("template", "eos", "none"):
            got = engine.label_nll(self.PROMPTS[:2], labels, end_tokens=end_tokens)
            expected = reference.label_nll(self.PROMPTS[:2], labels, end_tokens=end_tokens)
            assert got.tokens == expected.tokens
            np.testing.assert_allclose(got.nll, expected.nll, atol=1e-4)

    def test_refusals(
        self, stand_in: type[StandInLLM], loaded: LoadedModel, tiny_folder: Path
    ) -> None:
        engine, _ = self.engines(loaded, tiny_folder)
        with pytest.raises(ConfigError, match=r"expectation.*engine: fast"):
            engine.read_number(self.PROMPTS, lead="<progress>", max_new_tokens=9)
        with pytest.raises(ConfigError, match="must differ at a token"):
            engine.label_nll(self.PROMPTS[:1], ["lift", "lift it"], end_tokens="none")
        with pytest.raises(ConfigError, match="tokenised apart"):
            engine.label_nll(self.PROMPTS[:1], ["yes", ""])
        with pytest.raises(ModelError, match=r"vLLM refused a prompt: .*of 400.*max_model_len"):
            engine.generate([Prompt(parts=("lift " * 500,))], max_new_tokens=9)
        engine.release(["episode 1"])

    def test_what_vllm_is_told(
        self, stand_in: type[StandInLLM], loaded: LoadedModel, tiny_folder: Path
    ) -> None:
        settings = VLLMSettings(max_images=8, engine_args={"tensor_parallel_size": 2})
        VLLMEngine(tiny_folder, loaded.image_config, settings=settings)
        [args] = stand_in.made
        assert args == {
            "model": str(tiny_folder),
            "dtype": "bfloat16",
            "load_format": "safetensors",
            "trust_remote_code": False,
            "limit_mm_per_prompt": {"image": 8, "video": 1},
            "max_model_len": None,
            "gpu_memory_utilization": 0.9,
            "mm_processor_cache_gb": 4.0,
            "enable_prefix_caching": True,
            "seed": 0,
            "tensor_parallel_size": 2,
        }

    def test_qwen25_has_its_system_turn_and_no_videos(
        self, stand_in: type[StandInLLM], loaded: LoadedModel, tiny_folder: Path, tmp_path: Path
    ) -> None:
        class Echo(StandInLLM):
            def __init__(self, **args: Any) -> None:
                super().__init__(**{**args, "model": str(tiny_folder)})

            def _one(self, request: dict[str, Any], params: Any) -> Any:
                answer = SimpleNamespace(text=request["prompt"], token_ids=[], finish_reason="stop")
                return SimpleNamespace(outputs=[answer])

        sys.modules["vllm"].LLM = Echo  # type: ignore[attr-defined]  # known of the concrete class
        config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        engine = VLLMEngine(tmp_path, loaded.image_config)
        [answer] = engine.generate([Prompt(parts=("go",))], max_new_tokens=9)
        assert answer.text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>")
        with pytest.raises(ConfigError, match=r"Qwen2.5-VL must show its frames as pictures"):
            engine.generate([Prompt(parts=(video(2), "go"))], max_new_tokens=9)


class TestLoading:
    def test_without_vllm_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        monkeypatch.setitem(sys.modules, "vllm", None)
        with pytest.raises(MissingDependencyError, match=r"pip install \"procreward\[vllm\]\""):
            VLLMEngine(WEIGHTS, CONFIG)

    def test_models_of_other_families_go_to_a_server(self, tmp_path: Path) -> None:
        config = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ArchitectureError, match=r"'llava'.*engine: served"):
            VLLMEngine(tmp_path, CONFIG)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("dtype", "int8"), ("max_images", 0), ("max_model_len", 0)),
            *(("gpu_memory_utilization", 0), ("gpu_memory_utilization", 1.5)),
            ("mm_processor_cache_gb", -1),
        ],
    )
    def test_bad_settings(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=f"`{name}`"):
            VLLMSettings(**{name: value})


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_real_thing(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    folder = save_tiny(tmp_path / "model", hidden=256)
    loaded = load_model(str(folder), device="cuda", dtype="float32")
    settings = VLLMSettings(dtype="float32", max_model_len=2048, gpu_memory_utilization=0.3)
    engine = VLLMEngine(folder, loaded.image_config, settings=settings)
    reference = ReferenceEngine(loaded)
    got = engine.generate(TestEngine.PROMPTS, max_new_tokens=12)
    expected = reference.generate(TestEngine.PROMPTS, max_new_tokens=12)
    assert [answer.text for answer in got] == [answer.text for answer in expected]
    labels = ["not complete", "complete"]
    np.testing.assert_allclose(
        engine.label_nll(TestEngine.PROMPTS[:2], labels).nll,
        reference.label_nll(TestEngine.PROMPTS[:2], labels).nll,
        atol=1e-2,
    )
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
