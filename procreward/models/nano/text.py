"""What nano reads and writes: ProcVLM's prompt and answers, and the tokenizer built for them.

The tokenizer is a byte-level BPE with Qwen's special tokens and single digits. The sentences that
never change (the prompt's frame, the answer's frame, the list items) are one token each, so that
a query costs about sixty tokens and a whole reasoned answer about a dozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from procreward.models.nano.tasks import TASKS
from procreward.scorers.completion_judge import LABELS
from procreward.scorers.completion_judge import PROMPT as JUDGE_PROMPT
from procreward.scorers.procvlm_text import DIRECT_PREFIX, PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "SPECIAL_TOKENS",
    "answer",
    "build_tokenizer",
    "direct_answer",
]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special tokens in id order, named as Qwen's."""

_LIST_HEAD = "The following actions are required: \n"
_TAIL = "%</progress>."
_DONE = "The task is finished: nothing remains to be done.\n"
_PHRASES = (
    *PROMPT.split("{task}"),
    *JUDGE_PROMPT.split("{instruction}"),
    _LIST_HEAD,
    DIRECT_PREFIX,
    _TAIL,
    _DONE,
)
_WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def answer(stages: Sequence[str], stage: int, percent: int) -> str:
    """Return the reasoned answer in ProcVLM's format.

    Args:
        stages: Names of the task's stages, in order.
        stage: Index of the stage that is under way; ``len(stages)`` when the task is finished.
        percent: Progress in whole percent, 0 to 100.

    Returns:
        The remaining actions as a numbered list (or that there are none), then the percentage.

    Example:
        >>> text = answer(("reach the cube", "lift the cube"), 1, 64)
        >>> print(text)  # doctest: +NORMALIZE_WHITESPACE
        The following actions are required:
        1. lift the cube
        Therefore, the estimated progress is <progress>64%</progress>.
    """
    remaining = stages[stage:]
    if remaining:
        items = "".join(f"{i}. {name}\n" for i, name in enumerate(remaining, start=1))
        return f"{_LIST_HEAD}{items}{direct_answer(percent)}"
    return f"{_DONE}{direct_answer(percent)}"


def direct_answer(percent: int) -> str:
    """Return the answer without reasoning, such as ``...<progress>64%</progress>.``."""
    return f"{DIRECT_PREFIX}{percent}{_TAIL}"


def build_tokenizer(
    stage_names: Iterable[str], instructions: Iterable[str] = (), *, merges: int = 330
) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on nano's own words and return it ready to save.

    Args:
        stage_names: Every stage name of every task.
        instructions: The environments' own instructions.
        merges: How many merges to learn on top of the 256 bytes.

    Returns:
        A fast tokenizer with padding and end tokens set and Qwen's chat template.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    stages = sorted(set(stage_names))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(SPECIAL_TOKENS) + merges,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(stages, tuple(instructions)), trainer)
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in (*_PHRASES, *(_item(s) for s in stages))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t.startswith("<|v")]
        + ["<|im_start|>", "<|image_pad|>"],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def _item(stage: str) -> str:
    """Return a list item without its number: one token in the vocabulary."""
    return f". {stage}\n"


def _corpus(stages: Sequence[str], instructions: Sequence[str]) -> list[str]:
    """Return the lines that the merges are learnt from."""
    lines = ["user\n", "assistant\n", "system\n"]
    for task in TASKS.values():
        lines += [*task.phrasings] * 4
        lines += [text[0].upper() + text[1:] + "." for text in task.phrasings]
    lines += [*instructions] * 2
    lines += [f" {name}\n" for name in stages]
    lines += [*LABELS] * 4
    lines += [text for text in _PHRASES for _ in range(2)]
    return lines


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
