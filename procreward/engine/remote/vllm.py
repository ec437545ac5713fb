"""vLLM in this process, for Qwen-VL models on CUDA: ``pip install "procreward[vllm]"``.

vLLM schedules, batches and caches by itself. What is done here: the prompt keeps its order, with
pictures where the scorer put them; frames are cut and resized as by our own preprocessing, so that
vLLM's leaves them alone; and every frame has a media id made of its key, so that vLLM finds what it
computed for it when a later window holds it again. Drafts and expectations of numbers are not to be
had here; answers in half precision may differ from those of the other engines now and then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from procreward.checks import check, check_choice, check_int, is_number
from procreward.engine import EndTokens, Generation, LabelNLL, NumberReading, Prompt, Stop
from procreward.engine.remote.outside import clips_of
from procreward.engine.remote.vllm_requests import label_nll_of, vllm_request, vllm_text
from procreward.errors import ArchitectureError, ConfigError, MissingDependencyError, ModelError

if TYPE_CHECKING:
    from procreward.engine.sources import Family
    from procreward.engine.vision.preprocess import PreprocessConfig

__all__ = ["VLLMEngine", "VLLMSettings"]

_ENDS = {"template": "<|im_end|>\n", "eos": "<|im_end|>", "none": ""}
# What the family's chat template writes where there is no system turn.
_DEFAULT_SYSTEM = {"qwen2_5_vl": "You are a helpful assistant."}


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMSettings:
    """How vLLM is set up.

    Attributes:
        dtype: ``"auto"`` (bfloat16), ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        max_images: Most pictures in one prompt.
        max_model_len: Most tokens of a prompt and its answer, or None for the model's own limit.
        gpu_memory_utilization: Share of the GPU's memory that vLLM may take, in (0, 1].
        mm_processor_cache_gb: Memory for preprocessed frames, in GiB. At 0 the media ids still
            count as long as prefix caching is on, which it is.
        seed: Seed of vLLM's own random numbers; greedy answers do not depend on it.
        engine_args: Further arguments of ``vllm.LLM``.
    """

    dtype: str = "auto"
    max_images: int = 64
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    mm_processor_cache_gb: float = 4.0
    seed: int = 0
    engine_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("auto", "bfloat16", "float16", "float32"))
        check_int("max_images", self.max_images, least=1)
        if self.max_model_len is not None:
            check_int("max_model_len", self.max_model_len, least=1)
        share = self.gpu_memory_utilization
        ok = is_number(share) and 0 < share <= 1
        check(ok, "gpu_memory_utilization", "a number in (0, 1]", share)
        ok = is_number(self.mm_processor_cache_gb) and self.mm_processor_cache_gb >= 0
        check(ok, "mm_processor_cache_gb", "at least 0", self.mm_processor_cache_gb)

    def llm_args(self, folder: str | Path) -> dict[str, Any]:
        """Return the arguments of ``vllm.LLM`` for the model in a folder."""
        args = {
            "model": str(folder),
            "dtype": "bfloat16" if self.dtype == "auto" else self.dtype,
            "load_format": "safetensors",
            "trust_remote_code": False,
            "limit_mm_per_prompt": {"image": self.max_images, "video": 1},
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "mm_processor_cache_gb": self.mm_processor_cache_gb,
            "enable_prefix_caching": True,
            "seed": self.seed,
        }
        return {**args, **self.engine_args}


class VLLMEngine:
    """Answers prompts with ``vllm.LLM``; see :class:`procreward.engine.Engine`.

    vLLM's core runs in this process too (``VLLM_ENABLE_V1_MULTIPROCESSING=0``) unless that variable
    says otherwise.

    Args:
        folder: The model's folder, as :func:`procreward.engine.sources.resolve_source` gives it.
        image_config: How frames are cut and resized.
        settings: How vLLM is set up.

    Raises:
        ArchitectureError: If the model is not a Qwen-VL.
        MissingDependencyError: If vLLM is not installed.
        ModelError: If vLLM cannot load the model.
    """

    def __init__(
        self,
        folder: str | Path,
        image_config: PreprocessConfig,
        *,
        settings: VLLMSettings | None = None,
    ) -> None:
        self._config = image_config
        self._family = _family(Path(folder))
        self._default_system = _DEFAULT_SYSTEM.get(self._family)
        vllm = _import_vllm()
        self._sampling = vllm.SamplingParams
        try:
            self._llm = vllm.LLM(**(settings or VLLMSettings()).llm_args(folder))
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"vLLM could not load {str(folder)!r}: {error}. Lower `gpu_memory_utilization` or "
                "`max_model_len` if memory ran out, or use `engine: fast`."
            ) from error
        self._tokenizer = self._llm.get_tokenizer()

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int, stop: Stop = ()
    ) -> list[Generation]:
        """Answer every prompt greedily; vLLM batches them as it sees fit.

        Args:
            prompts: The questions.
            max_new_tokens: Limit per answer, at least 1.
            stop: What ends an answer; at strings vLLM stops, at patterns the text is cut later.

        Returns:
            One answer per prompt, in order.

        Raises:
            InstructionError: If a text contains control tokens.
            FrameError: If frames do not fit the model.
            ModelError: If vLLM refuses a prompt, such as one that is too long.
        """
        check_int("max_new_tokens", max_new_tokens, least=1)
        if not prompts:
            return []
        requests = [self._request(prompt) for prompt in prompts]
        outputs = self._run(
            requests,
            max_tokens=max_new_tokens,
            stop=[word for word in stop if isinstance(word, str)],
            include_stop_str_in_output=True,
        )
        return [self._generation(output.outputs[0], stop) for output in outputs]

    def label_nll(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[str],
        *,
        end_tokens: EndTokens = "template",
    ) -> LabelNLL:
        """Score every label as the answer to every prompt: one request for each pair.

        vLLM computes the logits of the whole prompt for this, and reads nothing from its prefix
        cache; where speed counts, ``engine: fast`` scores all labels in one pass.

        Args:
            prompts: The questions.
            labels: The candidate answers.
            end_tokens: What counts to a label besides its own words.

        Returns:
            The likelihoods.

        Raises:
            ConfigError: If a label is not tokenised apart from what stands before it.
            ModelError: If vLLM does not give the label's likelihoods.
        """
        check_choice("end_tokens", end_tokens, tuple(_ENDS))
        nll = np.empty((len(prompts), len(labels)), dtype=np.float64)
        requests: list[dict[str, Any]] = []
        tokens: list[tuple[int, ...]] = [()] * len(labels)
        for prompt in prompts:
            request = self._request(prompt)
            head = self._encode(request.pop("prompt"))
            for column, label in enumerate(labels):
                tokens[column] = self._label(prompt, head, label, end_tokens)
                requests.append({**request, "prompt_token_ids": [*head, *tokens[column]]})
            _check_distinct(labels, tokens)
        outputs = self._run(requests, max_tokens=1, prompt_logprobs=1) if requests else []
        for place, output in enumerate(outputs):
            row, column = divmod(place, len(labels))
            nll[row, column] = label_nll_of(
                output.prompt_token_ids, output.prompt_logprobs, tokens[column]
            )
        return LabelNLL(nll=nll, tokens=tuple(tokens))

    def read_number(
        self, prompts: Sequence[Prompt], *, lead: str, max_new_tokens: int, largest: float = 100.0
    ) -> list[NumberReading]:
        """Refuse: vLLM gives the likelihoods of a few tokens only.

        Raises:
            ConfigError: Always.
        """
        _refuse_numbers()

    def release(self, streams: Iterable[str]) -> None:
        """Do nothing: vLLM's caches drop what has not been used for longest."""

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        if self._family == "qwen2_5_vl" and any(clip.video for clip in clips_of(prompt)):
            raise ConfigError(
                "A prompt for Qwen2.5-VL must show its frames as pictures, got a video clip. "
                "Its video positions depend on the time between frames and are not supported."
            )
        return vllm_request(prompt, self._config, self._default_system)

    def _run(self, requests: Sequence[dict[str, Any]], **sampling: Any) -> list[Any]:
        params = self._sampling(temperature=0.0, **sampling)
        try:
            outputs: list[Any] = self._llm.generate(list(requests), params, use_tqdm=False)
        except ValueError as error:
            raise ModelError(
                f"vLLM refused a prompt: {error}. Ask with fewer or smaller frames (`max_pixels`), "
                "or raise `max_images` or `max_model_len`."
            ) from error
        return outputs

    def _generation(self, answer: Any, stop: Stop) -> Generation:
        from procreward.engine.reading.inputs import cut_at_stop

        tokens = tuple(answer.token_ids)
        if tokens and tokens[-1] in self._tokenizer.all_special_ids:
            tokens = tokens[:-1]
        text = cut_at_stop(answer.text, stop)
        stopped = any(
            word in text if isinstance(word, str) else word.search(text) is not None
            for word in stop
        )
        return Generation(
            text=text, tokens=tokens, finished=answer.finish_reason == "stop" or stopped
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _label(
        self, prompt: Prompt, head: Sequence[int], label: str, end_tokens: EndTokens
    ) -> tuple[int, ...]:
        text = vllm_text(prompt, self._default_system)
        whole = self._encode(text + label + _ENDS[end_tokens])
        if not label or whole[: len(head)] != list(head):
            raise ConfigError(
                f"The label {label!r} must be words that are tokenised apart from what stands "
                "before them. Choose another label."
            )
        return tuple(whole[len(head) :])


def _family(folder: Path) -> Family:
    from procreward.engine.sources import family_of, read_json_object

    config = read_json_object(folder / "config.json")
    family = family_of(config)
    if family is None:
        raise ArchitectureError(
            f"`engine: vllm` writes Qwen-VL prompts, got a model of type "
            f"{config.get('model_type')!r} in {str(folder)!r}. Start `vllm serve` and use `engine: "
            "served`, which takes the model's own chat template, or use `engine: plain`."
        )
    return family


def _check_distinct(labels: Sequence[str], tokens: Sequence[tuple[int, ...]]) -> None:
    for place, one in enumerate(tokens):
        for other, label in zip(tokens[:place], labels, strict=False):
            shorter = min(len(one), len(other))
            if one[:shorter] == other[:shorter]:
                raise ConfigError(
                    f"The labels {label!r} and {labels[place]!r} must differ at a token both have, "
                    f"got {list(other)} and {list(one)}."
                )


def _import_vllm() -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    try:
        import vllm
    except ImportError as error:
        raise MissingDependencyError(
            f"`engine: vllm` needs vLLM, which could not be imported ({error}). Run "
            '`pip install "procreward[vllm]"` on Linux with CUDA, or use `engine: fast`.'
        ) from error
    return vllm


def _refuse_numbers() -> NoReturn:
    raise ConfigError(
        "vLLM gives the likelihoods of a few tokens only, so `engine: vllm` cannot read a number "
        "as an expectation. Use `engine: fast`, or let the model write the number (the scorer's "
        "`readout: greedy`)."
    )
