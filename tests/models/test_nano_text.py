from __future__ import annotations

import pytest

from procreward.errors import UnknownNameError
from procreward.models.nano.tasks import TASKS, get_task
from procreward.models.nano.text import answer, build_tokenizer, direct_answer
from procreward.scorers.completion_judge import LABELS
from procreward.scorers.procvlm_text import DIRECT_PREFIX, procvlm_prompt, read_progress

STAGES = ("reach the cube", "grasp the cube", "lift the cube")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(STAGES, ["Lift the red cube off the table."])


def test_answer_lists_what_remains_in_procvlms_format():
    assert answer(STAGES, 1, 42) == (
        "The following actions are required: \n"
        "1. grasp the cube\n"
        "2. lift the cube\n"
        "Therefore, the estimated progress is <progress>42%</progress>."
    )


def test_finished_answer_says_so():
    text = answer(STAGES, 3, 100)
    assert text.startswith("The task is finished: ")
    assert read_progress(text).progress == 1.0


@pytest.mark.parametrize("percent", [0, 7, 55, 100])
def test_answers_are_read_back_by_the_scorers_parser(percent):
    assert read_progress(direct_answer(percent)).progress == pytest.approx(percent / 100)
    assert read_progress(answer(STAGES, 0, percent)).progress == pytest.approx(percent / 100)


@pytest.mark.parametrize(
    "text",
    [
        procvlm_prompt("lift the cube"),
        answer(STAGES, 0, 93),
        "Wash the dishes, then dry them: 3 plates \N{EN DASH} ünïcode!",
        "  two  spaces\n\nand lines\t",
    ],
)
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer("1095")["input_ids"]) == 4


def test_a_whole_reasoned_answer_is_short(tokenizer):
    assert len(tokenizer(answer(STAGES, 0, 93))["input_ids"]) == 11


def test_direct_prefix_is_one_token_wherever_it_stands(tokenizer):
    (prefix,) = tokenizer(DIRECT_PREFIX)["input_ids"]
    assert prefix in tokenizer("assistant\n" + DIRECT_PREFIX + "40%</progress>.")["input_ids"]


def test_judge_labels_differ_in_their_first_token(tokenizer):
    complete, incomplete = (tokenizer(label)["input_ids"] for label in LABELS)
    assert (len(complete), len(incomplete)) == (1, 2)
    assert complete[0] != incomplete[0]


def test_control_tokens_are_special(tokenizer):
    names = ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    ids = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]
    assert set(ids) <= set(tokenizer.all_special_ids)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_chat_template_is_qwens(tokenizer):
    content = [{"type": "image"}, {"type": "text", "text": "hello"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_held_out_wordings_are_not_trained_on():
    for task in TASKS.values():
        assert len(task.phrasings) >= 5
        assert task.held_out not in task.phrasings


def test_unknown_task_is_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'lift'"):
        get_task("lft")
