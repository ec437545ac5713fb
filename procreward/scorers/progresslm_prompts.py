"""ProgressLM's prompts, word for word.

They are those of its evaluation code (``eval/qwen25vl`` and ``eval/qwen3vl`` in
ProgressLM/ProgressLM), which the published figures come from, and of its reinforcement-learning
data (``build_prompts_general.py``). Spelling, doubled full stops and texts that touch are
upstream's own: the models were trained on them.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

from procreward.checks import check_choice
from procreward.engine import Clip, Prompt
from procreward.errors import ConfigError
from procreward.scorers.demonstration import Demonstration

__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "PICTURE_WORD",
    "Family",
    "Layout",
    "progresslm_prompt",
    "prompt_sha256",
]

Layout: TypeAlias = Literal["eval", "train"]
"""Where the pictures of a visual demonstration stand; see :func:`progresslm_prompt`."""

Family: TypeAlias = Literal["qwen2.5", "qwen3"]
"""For which models upstream worded the prompts without reasoning."""

PICTURE_WORD = "<image>"
"""What stands for each key frame in the line of percentages; plain text to Qwen's tokenizers."""

LAYOUTS: tuple[str, ...] = ("eval", "train")
FAMILIES: tuple[str, ...] = ("qwen2.5", "qwen3")

_SYSTEM = (
    "You are a progress estimator that evaluates the progress of the current state during an "
    "ongoing task based on a {kind} demonstration. The demonstration consists of a sequence of "
    "{items} and their corresponding progress value (ranging from 0% to 100%), showing how the "
    "task evolves from start to completion."
)
_TEXT_SYSTEM = _SYSTEM.format(kind="textual", items="text-based steps")
_VISUAL_SYSTEM = _SYSTEM.format(kind="visual", items="vision-based states")
_QWEN3_TEXT_NOTHINK_SYSTEM = (
    "You are a progress estimator that evaluates the progress of an ongoing task based on a "
    "textual demonstration of its step-by-step progression.\n\n"
    "The demonstration consists of a sequence of text instructions (text_demo), each describing "
    "one step of the process.\n"
    "Each step explicitly states the corresponding progress value (ranging from 0% to 100%), "
    "showing how the task evolves from start to completion."
)
_VISUAL_NOTHINK_SYSTEM = (
    "You are a progress estimator specializing in evaluating the progress of an ongoing task based "
    "on visual evidence. The demonstration consists of a sequence of video frames (images) showing "
    "how the task evolves from 0% (start) to 100% (completion). Your goal is to produce a "
    "human-like reasoning chain that logically supports the given progress score."
)

_DEMO = "Here is the demonstration:"
_TEXT_DEMO = (
    "Here is the demonstration (If you see [left] [right], it indicates that this is a dual-arm "
    "robot, with the left and right arms working in coordination):"
)
_SHIFTS = "The progress shifts across all given visual demos is: "
_STATE = "Here is the current state that you need to estimate:"

_TEXT_TASK = """\
Your task:
1. Read the task goal to understand the task objective and the entity being operated on.
2. Analyze the textual demonstration to understand how the task progresses from start to completion.
3. Examine the current state image carefully. If the target is incorrect (different from the \
object metioned in task goal) or you really cannot match the current image to any step in the \
demonstration, you must explain the reason within <ref_think></ref_think> and output "n/a" within \
<ref></ref>, <score_think></score_think>, and <score></score>.
4. If a match is possible, examine all steps in the textual demonstration, where each step \
represents an independent action. Identify the single step whose action is most closely related to \
the current state image. Then compare the current image with that reference step to determine \
whether it corresponds to an earlier or later stage, and finally estimate the overall progress as \
a floating-point value between 0% and 100%.

Your response **must** strictly follow this format:
<ref_think>
Explain the reason for selecting the most relevant step from the demonstration.
If the task target is incorrect, or the current state image cannot be matched to any demonstration \
step, explain why here.
</ref_think>

<ref>
If a valid matching step exists, output only the step number.
If the task target is incorrect or no step matches the current image, output only "n/a".
Please ensure that this is the same as the ref value you reasoned before.
</ref>

<score_think>
If a valid matching step exists, explain how you compare the current image with that step to judge \
progress.
If the task target is incorrect or no step matches the current image, output only "n/a".
</score_think>

<score>
If a valid matching step exists, output the estimated progress (0%\u2013100%).
If the task target is incorrect or no step matches the current image, output only "n/a".
</score>
"""

_VISUAL_STEPS = """\
Your task:
1. Check the current state image carefully.
2. Analyze the overall task goal and visual demonstration to understand how the task progresses \
from start to completion.
3. Identify the reference states from the visual demonstration that are most related to the \
current state image.
4. Compare the current state image with the chosen reference state, determining whether the image \
is behind or after the reference state.
5. Estimate the progress numerically as a floating-point value between 0% and 100%"""

_VISUAL_TASK = (
    _VISUAL_STEPS
    + """.
6. If you really cannot match the current state image to any of the states from demonstration, you \
need to explain the reason within `<ref_think></ref_think>` and output "n/a" within `<ref></ref>`, \
`<score_think></score_think>`, and `<score></score>`.

Your response **must** strictly follow this format:
<ref_think>Reason for choosing the most related state from the demonstration as the reference or \
explanation of why the current state image does not match the task goal or any steps from \
demonstration</ref_think>
<ref>which state from the visual demonstration is most related to the current state (output only \
the number of the state) or "n/a"</ref>
<score_think>Reason for comparing the current state image with the reference state or \
"n/a"</score_think>
<score>Your final estimated progress score or "n/a"</score>"""
)

_VISUAL_NOTHINK_TASK = (
    _VISUAL_STEPS
    + """, or directly output the "n/a" if you really cannot match the current state image to any \
of the states from demonstration.

Your answer only needs to output the final progress score you estimated, no other words needed."""
)

_NOTHINK_TASK = (
    "Output Instruction:\nBased on the task goal, demonstration, and current image, output ONLY "
    'the estimated progress as a percentage (0%\u2013100%), or output exactly "n/a" if the '
    "target is incorrect, unmatched, or any abnormal condition exists; output nothing else."
)


def progresslm_prompt(
    goal: str,
    demo: Demonstration,
    state: Clip,
    *,
    think: bool = True,
    layout: Layout = "eval",
    family: Family = "qwen2.5",
    picture_word: str = PICTURE_WORD,
    stream: str | None = None,
) -> Prompt:
    """Write the question about one picture.

    In the layout ``"eval"`` a demonstration's pictures come first and the line with their
    percentages follows, with ``<image>`` in it as plain text; the system text stands in the system
    turn and again at the user turn's head. In the layout ``"train"``, that of the
    reinforcement-learning data, each picture is followed by its percentage, sections are three
    lines apart and there is no system turn of its own. (The supervised data had a third one, with
    the goal worded otherwise; it is not offered.)

    Args:
        goal: The task, as it is.
        demo: What the picture is compared with.
        state: The picture, one frame.
        think: Whether the model reasons before its number. Without reasoning, upstream's visual
            prompts never name the goal.
        layout: The layout; ``"train"`` only with reasoning.
        family: Whose wording without reasoning; with reasoning both are the same.
        picture_word: What stands for each key frame in the line of percentages (layout ``"eval"``).
        stream: For :attr:`procreward.engine.Prompt.stream`.

    Returns:
        The prompt.

    Raises:
        ConfigError: If ``layout`` or ``family`` is unknown, or the layout ``"train"`` is asked for
            without reasoning.
    """
    check_choice("layout", layout, LAYOUTS)
    check_choice("prompt_family", family, FAMILIES)
    if layout == "train":
        if not think:
            raise ConfigError(
                "`layout` must be 'eval' where `think` is false, got 'train': the training data "
                "always reasons."
            )
        return Prompt(parts=_train_parts(goal, demo, state), stream=stream)
    system = _system(demo.visual, think, family)
    if demo.visual:
        parts = _visual_parts(goal, demo, state, think, family, picture_word)
    else:
        parts = _text_parts(goal, demo, state, think)
    return Prompt(parts=parts, system=system, stream=stream)


def prompt_sha256(*, think: bool, layout: Layout, family: Family) -> str:
    """Return the SHA-256 of the wording, as 64 hexadecimal digits.

    Args:
        think: Whether the model reasons.
        layout: The layout.
        family: Whose wording.
    """
    texts = [layout, str(think), _DEMO, _TEXT_DEMO, _SHIFTS, _STATE]
    for visual in (False, True):
        texts += [_system(visual, think, family), _task(visual, think, family)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _system(visual: bool, think: bool, family: Family) -> str:
    if think:
        return _VISUAL_SYSTEM if visual else _TEXT_SYSTEM
    if visual:
        return _VISUAL_NOTHINK_SYSTEM
    return _QWEN3_TEXT_NOTHINK_SYSTEM if family == "qwen3" else _TEXT_SYSTEM


def _task(visual: bool, think: bool, family: Family) -> str:
    if think:
        return _VISUAL_TASK if visual else _TEXT_TASK
    return _VISUAL_NOTHINK_TASK if visual and family == "qwen2.5" else _NOTHINK_TASK


def _text_parts(goal: str, demo: Demonstration, state: Clip, think: bool) -> tuple[Clip | str, ...]:
    task = _task(False, think, "qwen2.5")
    if not think:
        return (f"Our goal is {goal}.", _DEMO, _steps(demo), _STATE, state, task)
    head = (_TEXT_SYSTEM, f"The overall task goal is {goal}.", _TEXT_DEMO)
    return (*head, _steps(demo), _STATE, state, task)


def _visual_parts(
    goal: str, demo: Demonstration, state: Clip, think: bool, family: Family, word: str
) -> tuple[Clip | str, ...]:
    head = (_VISUAL_SYSTEM, f"The overall task goal is {goal}", _DEMO) if think else (_DEMO,)
    shifts = _SHIFTS + " ".join(f"{word} {percent}%" for percent in demo.percents)
    return (*head, *_key_frames(demo), shifts, _STATE, state, _task(True, think, family))


def _train_parts(goal: str, demo: Demonstration, state: Clip) -> tuple[Clip | str, ...]:
    gap = "\n\n\n"
    head = f"{_system(demo.visual, True, 'qwen2.5')}{gap}The overall task goal is {goal}.{gap}"
    tail = (f"{gap}{_STATE}\n", state, gap + _task(demo.visual, True, "qwen2.5"))
    if not demo.visual:
        return (f"{head}{_TEXT_DEMO}\n", _steps(demo), *tail)
    parts: list[Clip | str] = [f"{head}{_DEMO}\n"]
    for index, (clip, percent) in enumerate(zip(_key_frames(demo), demo.percents, strict=True)):
        last = index == len(demo.frames) - 1
        parts += [clip, f" {percent}%" if last else f" {percent}% "]
    return (*parts, *tail)


def _steps(demo: Demonstration) -> str:
    return "\n\n".join(
        f"Step {number}. {step}\nThe Progress for now is {percent}%."
        for number, (step, percent) in enumerate(
            zip(demo.steps, demo.percents, strict=True), start=1
        )
    )


def _key_frames(demo: Demonstration) -> tuple[Clip, ...]:
    """One clip each, since key frames may differ in size; the keys last as long as the pictures."""
    stream = f"demo:{demo.pixel_digest[:16]}"
    return tuple(
        Clip(frames=frame[None], keys=((stream, "", index),))
        for index, frame in enumerate(demo.frames)
    )
