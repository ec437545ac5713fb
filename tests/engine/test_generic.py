from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from procreward.engine import Clip, Prompt
from procreward.engine.generic import GenericEngine
from procreward.engine.loading.generic import LoadedGeneric, load_generic
from procreward.errors import (
    ArchitectureError,
    ConfigError,
    InstructionError,
    ModelError,
    UnsafeWeightsError,
)
from tests.tiny import quiet_peft, save_tiny, save_tiny_generic

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (6, 40, 56, 3), dtype=np.uint8)
LABELS = ("complete", "not complete")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_generic(tmp_path_factory.mktemp("generic") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedGeneric:
    return load_generic(str(folder), device="cpu", threads=1)


@pytest.fixture(scope="module")
def engine(loaded: LoadedGeneric) -> GenericEngine:
    return GenericEngine(loaded)


def ask(*parts: Clip | str, **options: Any) -> Prompt:
    return Prompt(parts=parts, **options)


def pictures(*indices: int) -> Clip:
    return Clip(frames=FRAMES[list(indices)])


MIXED = [
    ask(pictures(0), "lift the cube"),
    ask(pictures(1, 2, 3), "lift the red cube and put it down, then open the drawer"),
    ask("before ", pictures(4), " between ", pictures(5), " after"),
    ask("no picture here"),
    ask("a", assistant_prefix="The"),
]


def plain_transformers(loaded: LoadedGeneric, prompt: Prompt, head: str) -> list[int]:
    from PIL import Image

    clips = [part.frames for part in prompt.parts if isinstance(part, Clip)]
    images = [Image.fromarray(frame) for frames in clips for frame in frames] or None
    inputs = loaded.processor(text=head, images=images, return_tensors="pt")
    with torch.inference_mode():
        output = loaded.model.generate(
            **inputs, do_sample=False, max_new_tokens=16, eos_token_id=list(loaded.end_ids)
        )
    tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return [token for token in tokens if token not in loaded.end_ids]


def test_answers_are_those_of_transformers(engine: GenericEngine, loaded: LoadedGeneric) -> None:
    user, head = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    heads = [
        f"{user}<image>lift the cube{head}",
        f"{user}<image><image><image>lift the red cube and put it down, then open the drawer{head}",
        f"{user}before <image> between <image> after{head}",
        f"{user}no picture here{head}",
        f"{user}a{head}The",
    ]
    expected = [plain_transformers(loaded, *pair) for pair in zip(MIXED, heads, strict=True)]
    answers = engine.generate(MIXED, max_new_tokens=16)
    assert [list(answer.tokens) for answer in answers] == expected
    assert len({answer.tokens for answer in answers}) == len(MIXED)
    decode = loaded.tokenizer.decode
    assert [answer.text for answer in answers] == [
        decode(tokens, skip_special_tokens=True) for tokens in expected
    ]


def test_a_batch_answers_like_one_by_one(loaded: LoadedGeneric) -> None:
    single = GenericEngine(loaded, batch_size=1).generate(MIXED, max_new_tokens=12)
    assert GenericEngine(loaded, batch_size=2).generate(MIXED, max_new_tokens=12) == single


def test_pictures_and_their_order_matter(engine: GenericEngine) -> None:
    prompts = [
        ask(pictures(0, 1), "lift"),
        ask(pictures(1, 0), "lift"),
        ask(pictures(0, 2), "lift"),
        ask("lift", pictures(0, 1)),
    ]
    texts = [answer.text for answer in engine.generate(prompts, max_new_tokens=12)]
    assert len(set(texts)) == len(prompts)


def test_a_video_is_shown_as_pictures_and_it_says_so(
    loaded: LoadedGeneric, caplog: pytest.LogCaptureFixture
) -> None:
    engine = GenericEngine(loaded)
    video = Clip(frames=FRAMES[:4], video=True, fps=10.0, frame_indices=(0, 1, 2, 3))
    one, other = engine.generate(
        [ask(video, "lift"), ask(pictures(0, 1, 2, 3), "lift")], max_new_tokens=8
    )
    assert one == other
    assert ["as separate pictures" in record.message for record in caplog.records] == [True]


def test_a_system_turn_is_written(engine: GenericEngine) -> None:
    prompts = [ask("lift"), ask("lift", system="Be brief."), ask("lift", system="Be long.")]
    assert len({one.text for one in engine.generate(prompts, max_new_tokens=12)}) == 3


class TestStops:
    def test_an_answer_is_cut_behind_its_stop(self, engine: GenericEngine) -> None:
        prompt = MIXED[0]
        [free] = engine.generate([prompt], max_new_tokens=24)
        assert (free.finished, len(free.tokens)) == (False, 24)
        middle = next(char for char in free.text[6:] if char.isascii() and char.isalpha())
        [cut] = engine.generate([prompt], max_new_tokens=24, stop=(middle,))
        assert cut.finished
        assert cut.text == free.text[: free.text.index(middle) + 1]
        assert len(cut.tokens) < len(free.tokens)
        pattern = re.compile(f"[{middle}]")
        assert engine.generate([prompt], max_new_tokens=24, stop=(pattern,)) == [cut]

    def test_rows_of_a_batch_stop_by_themselves(self, loaded: LoadedGeneric) -> None:
        stop = ("e", re.compile(r"[a-d]"))
        alone = GenericEngine(loaded, batch_size=1).generate(MIXED, max_new_tokens=24, stop=stop)
        assert GenericEngine(loaded).generate(MIXED, max_new_tokens=24, stop=stop) == alone
        assert len({len(answer.tokens) for answer in alone}) > 1

    def test_an_end_token_ends(self, folder: Path, tmp_path: Path, engine: GenericEngine) -> None:
        [free] = engine.generate([MIXED[0]], max_new_tokens=8)
        at = next(i for i, token in enumerate(free.tokens) if token not in free.tokens[:i] and i)
        ends = Path(shutil.copytree(folder, tmp_path / "m"))
        settings = {"eos_token_id": [free.tokens[at]], "do_sample": True, "temperature": 9.0}
        (ends / "generation_config.json").write_text(json.dumps(settings))
        other = GenericEngine(load_generic(str(ends), device="cpu", threads=1))
        [cut] = other.generate([MIXED[0]], max_new_tokens=8)
        assert (cut.tokens, cut.finished) == (free.tokens[:at], True)

    @pytest.mark.parametrize("stop", [("",), ("é",), "word"])
    def test_wrong_stops_are_refused(self, engine: GenericEngine, stop: Any) -> None:
        with pytest.raises(ConfigError, match="`stop` must be"):
            engine.generate([MIXED[0]], max_new_tokens=1, stop=stop)
        with pytest.raises(ConfigError, match="`max_new_tokens`"):
            engine.generate([MIXED[0]], max_new_tokens=0)


class TestLabels:
    def test_likelihoods_are_those_of_full_forward_passes(
        self, engine: GenericEngine, loaded: LoadedGeneric
    ) -> None:
        prompt = ask(pictures(0, 1), "is it done?", assistant_prefix="It is\n")
        got = engine.label_nll([prompt], LABELS)
        for column, label in enumerate(LABELS):
            tail = loaded.tokenizer.encode(label + "<|im_end|>\n", add_special_tokens=False)
            assert got.tokens[column] == tuple(tail)
            text = (
                "<|im_start|>user\n<image><image>is it done?<|im_end|>\n"
                f"<|im_start|>assistant\nIt is\n{label}<|im_end|>\n"
            )
            inputs = loaded.processor(text=text, images=list(FRAMES[:2]), return_tensors="pt")
            with torch.inference_mode():
                scores = loaded.model(**inputs).logits[0].log_softmax(dim=-1)
            steps = range(inputs["input_ids"].shape[1] - len(tail) - 1, len(scores) - 1)
            expected = -sum(float(scores[i, t]) for i, t in zip(steps, tail, strict=True))
            assert got.nll[0, column] == pytest.approx(expected, abs=1e-4)

    def test_end_tokens(self, engine: GenericEngine, loaded: LoadedGeneric) -> None:
        prompts = [MIXED[0], MIXED[3]]
        results = {end: engine.label_nll(prompts, LABELS, end_tokens=end) for end in ENDS}
        eos = loaded.tokenizer.eos_token_id
        bare = results["none"].tokens
        assert results["eos"].tokens == tuple((*tokens, eos) for tokens in bare)
        assert results["template"].tokens == tuple(
            (*tokens, eos, *loaded.tokenizer.encode("\n")) for tokens in bare
        )
        assert (results["none"].nll < results["eos"].nll).all()
        assert (results["eos"].nll < results["template"].nll).all()
        assert results["none"].nll.shape == (2, 2)

    def test_labels_that_cannot_be_scored(self, engine: GenericEngine) -> None:
        for labels, message in (
            (("",), "tokenised apart"),
            (("yes", "yes"), "must differ at a token"),
            ((), "`labels` must be a sequence"),
        ):
            with pytest.raises(ConfigError, match=message):
                engine.label_nll([MIXED[0]], labels)
        with pytest.raises(ConfigError, match="`end_tokens` must be one of"):
            engine.label_nll([MIXED[0]], LABELS, end_tokens="all")  # type: ignore[arg-type]  # on purpose
        # The label's first letters become part of the token before it.
        merging = ask("x", assistant_prefix="compl")
        with pytest.raises(ConfigError, match="tokenised apart"):
            engine.label_nll([merging], ("ete",), end_tokens="none")
        assert engine.label_nll([], LABELS).nll.shape == (0, 2)


ENDS = ("none", "eos", "template")


class TestRefusals:
    def test_what_it_cannot_do_it_says(self, engine: GenericEngine) -> None:
        with pytest.raises(ConfigError, match="`mode: reasoning`"):
            engine.read_number([MIXED[0]], lead="<progress>", max_new_tokens=4)
        with pytest.raises(ConfigError, match="`engine: fast`"):
            engine.generate([ask("done?", open_turn=True)], max_new_tokens=1)
        with pytest.raises(ConfigError, match="`engine: fast`"):
            engine.label_nll([ask("done?", open_turn=True)], LABELS)
        assert engine.generate([], max_new_tokens=1) == []
        engine.release(["stream"])

    @pytest.mark.parametrize("word", ["<image>", "<|im_end|>", "<|im_start|>system"])
    def test_control_tokens_are_no_words(self, engine: GenericEngine, word: str) -> None:
        for prompt in (ask(f"a {word}"), ask("a", system=word), ask("a", assistant_prefix=word)):
            with pytest.raises(InstructionError, match="control tokens"):
                engine.generate([prompt], max_new_tokens=1)
        with pytest.raises(InstructionError, match="control tokens"):
            engine.label_nll([MIXED[0]], (word, "no"))

    def test_a_template_that_refuses_a_turn(self, folder: Path, tmp_path: Path) -> None:
        strict = Path(shutil.copytree(folder, tmp_path / "m"))
        path = strict / "chat_template.jinja"
        path.write_text(
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + path.read_text()
        )
        engine = GenericEngine(load_generic(str(strict), device="cpu", threads=1))
        assert engine.generate([ask("a")], max_new_tokens=1)
        with pytest.raises(ConfigError, match=r"turns of \['system', 'user'\].*no system"):
            engine.generate([ask("a", system="b")], max_new_tokens=1)

    def test_a_template_that_changes_answers(self, folder: Path, tmp_path: Path) -> None:
        changed = Path(shutil.copytree(folder, tmp_path / "m"))
        path = changed / "chat_template.jinja"
        path.write_text(path.read_text().replace("item['text']", "item['text'] | upper"))
        engine = GenericEngine(load_generic(str(changed), device="cpu", threads=1))
        with pytest.raises(ConfigError, match="`end_tokens` must be 'eos' or 'none'"):
            engine.label_nll([MIXED[0]], LABELS)
        assert engine.label_nll([MIXED[0]], LABELS, end_tokens="eos").nll.shape == (1, 2)


class TestLoading:
    def test_choices_are_said(self, loaded: LoadedGeneric, folder: Path) -> None:
        assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)
        assert loaded.source == str(folder)
        assert {"device", "dtype", "attention", "threads"} == set(loaded.reasons)
        names = [loaded.tokenizer.convert_ids_to_tokens(one) for one in loaded.end_ids]
        assert names == ["<|im_end|>", "<|endoftext|>"]
        assert not loaded.model.training

    def test_adapters_are_merged_or_run_beside(
        self, folder: Path, tmp_path: Path, loaded: LoadedGeneric
    ) -> None:
        from peft import LoraConfig, get_peft_model

        own = load_generic(str(folder), device="cpu", threads=1)
        settings = LoraConfig(
            r=4, target_modules=r".*language_model.*\.q_proj", init_lora_weights=False
        )
        with torch.random.fork_rng(), quiet_peft():
            torch.manual_seed(3)
            get_peft_model(own.model, settings).save_pretrained(tmp_path / "a")
        adapter = str(tmp_path / "a")
        both = [
            load_generic(str(folder), device="cpu", threads=1, adapter=adapter, merge_adapter=merge)
            for merge in (True, False)
        ]
        assert [one.merged for one in both] == [True, False]
        weight = "model.language_model.embed_tokens.weight"
        tensors = [one.model.get_parameter(weight) for one in (loaded, *both)]
        assert tensors[0] is tensors[2]
        assert tensors[0] is not tensors[1]
        merged, beside = (GenericEngine(one).label_nll(MIXED[:2], LABELS).nll for one in both)
        assert abs(merged - GenericEngine(loaded).label_nll(MIXED[:2], LABELS).nll).max() > 1e-2
        assert abs(merged - beside).max() < 1e-4

    def test_a_text_model_is_refused(self, folder: Path, tmp_path: Path) -> None:
        text = Path(shutil.copytree(folder, tmp_path / "m"))
        config = json.loads((text / "config.json").read_text())
        (text / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
        with pytest.raises(ArchitectureError, match="model_type 'gpt2'"):
            load_generic(str(text))

    def test_pickles_are_refused(self, folder: Path, tmp_path: Path) -> None:
        unsafe = Path(shutil.copytree(folder, tmp_path / "m"))
        (unsafe / "model.safetensors").rename(unsafe / "pytorch_model.bin")
        with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin"):
            load_generic(str(unsafe))

    def test_processors_that_are_not_there(self, folder: Path, tmp_path: Path) -> None:
        bare = Path(shutil.copytree(folder, tmp_path / "m"))
        (bare / "chat_template.jinja").unlink()
        with pytest.raises(ModelError, match="has no chat template"):
            load_generic(str(bare))
        (bare / "processor_config.json").unlink()
        with pytest.raises(ModelError, match=r"processor"):
            load_generic(str(bare))

    @pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
    def test_a_processor_that_needs_torchvision(self, tmp_path: Path) -> None:
        qwen = save_tiny(tmp_path / "m")
        with pytest.raises(ModelError, match=r"processor .* could not be built.*torchvision"):
            load_generic(str(qwen))

    def test_code_of_the_repository_is_not_run(self, folder: Path, tmp_path: Path) -> None:
        custom = Path(shutil.copytree(folder, tmp_path / "m"))
        path = custom / "processor_config.json"
        own = {"auto_map": {"AutoProcessor": "mine.Mine"}, "processor_class": "Mine"}
        path.write_text(json.dumps(own))
        (custom / "mine.py").write_text("raise SystemExit('code was run')")
        with pytest.raises(ModelError, match="processor"):
            load_generic(str(custom))
