"""Write nano's model card from the figures that ``benchmarks/nano_quality.py`` measured.

::

    python -m procreward.models.nano.card --figures nano_quality.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from procreward.models.nano.tasks import TASKS

__all__ = ["GOALS", "main", "render_card"]

CARD = Path(__file__).parent / "MODEL_CARD.md"

GOALS: tuple[tuple[str, str, str, float], ...] = (
    ("spearman_expert", "Spearman, expert episodes", ">=", 0.98),
    ("spearman_retry", "Spearman, retrying episodes", ">=", 0.95),
    ("spearman_failing", "Spearman, failing episodes that move 15 points", ">=", 0.90),
    ("mae_points", "Mean absolute error, points", "<=", 4.0),
    ("auc_success", "AUC of the final progress, success against failure", ">=", 0.98),
    ("false_peak_share", "Failing episodes with a peak 40 points too high", "<=", 0.02),
    ("judge_balanced_accuracy", "Judge, balanced accuracy", ">=", 0.95),
    ("static_slope", "Slope on a still video, largest", "<=", 0.02),
    ("size_mb", "Size with tokenizer and judge, MB", "<=", 8.0),
)
"""Figure, its name in words, direction and goal."""

_INTRO = """# Model card: nano

A Qwen3-VL of about three million parameters (four vision layers and four language layers, 128
wide) with its own tokenizer of some six hundred tokens, trained from scratch on a CPU by this
repository. It reads four frames of one camera, four environment steps apart, and answers in
ProcVLM's format: the actions that remain, then `<progress>NN%</progress>`. A LoRA adapter (`judge`)
answers `complete` or `not complete` instead.

## What it is for

Trying procreward without a GPU and without downloads, and testing it with a real model. It knows
six tasks **in their own simulators, from their default camera**: robosuite Lift, Stack and
PickPlaceCan (Panda arm), and Meta-World window-open, drawer-close and button-press-topdown. It is
not a general reward model: another camera, robot, scene or task is outside of what it can answer,
and it will answer with a number all the same.

Frames must be 128 x 128 pixels; the lower quarter, which shows the foreground, is cut off.

## How it was trained

Scripted episodes (expert, retrying, dropping, missing, stalling, backtracking, random, idle) with
true progress from the simulator's state. Labels depend on the state alone, so time does not tell:
a fifth of the training windows runs backwards, some stand still, some come with another task's
instruction and the label 0 %. First the vision tower learns to read positions, grasp and height
from single frames; then the whole model learns to answer, half with reasoning and half without.
`python -m procreward.models.nano.render`, `.wander`, `.apart`, `.policies` and `.train` do it
again.

Rounds, each going on from the one before:

1. 2,200 scripted episodes (700 of Lift, 300 of each other task; 73,479 frames), 10 minutes of the
   first phase and 60 of the second on two CPU cores. Policies that were trained on these weights'
   rewards fooled them: a hand held in front of a closed window read as a window that is open, and
   a button pressed with open fingers did not count.
2. 1,810 further episodes of the three Meta-World tasks (51,810 frames): policies while they learn,
   from the true progress and from the first weights' rewards (`.policies`; 1,160 episodes), and
   hands that wander, tremble and go on after success (`.wander`; 650). 32 minutes more of the
   second phase on one core, learning rate up to 7e-4. Policies still found the closed window: where
   the hand was still told where the window was.
3. 2,790 further episodes (66,790 frames): the part put anywhere on its way with the hand elsewhere
   (`.apart`; 1,200 of the window, 500 of the button, 150 of the drawer), policies that learn from
   the second weights (720) and from this round's own weights part of the way (220, window only).
   52 minutes more on one core, learning rate up to 7e-4, the last 16 with the window drawn more
   than twice as often. Where hands are put was widened, and the round prolonged, after looking at
   states of policies that had fooled the second weights; those states themselves were kept for
   testing.

Rounds 2 and 3 were stopped and continued, with more of these episodes each time. The judge's
adapter is still that of round 2: its balanced accuracy was 0.970 on the weights it was trained for
and is 0.964 on these. Training again comes close to these weights and does not repeat them.

## Held-out figures

From `benchmarks/nano_quality.py`: seeds from 1,000,000 on, which neither training nor its
monitoring has seen, through the same scorer that users call.
"""

_CONTROLS = """
## Controls

| control | value |
|---|---|
| clock (elapsed time as progress), Spearman on expert episodes | {clock_spearman_expert} |
| the same on failing episodes that move | {clock_spearman_failing} |
| the truth read with an error of 2 points, on the same episodes | {noisy_truth_spearman_failing} |
| mean progress with the right instruction | {right_instruction_mean} |
| mean progress with another task's instruction | {wrong_instruction_mean} |
| the same at an expert's end, where the scene looks finished | {wrong_instruction_finished_mean} |
| error with a wording that was never trained, points | {mae_points_new_wording} |
| answers that cannot be read | {invalid_rate} |

A clock is nearly perfect on expert episodes, so Spearman there says little; the failing and the
retrying episodes are the test. False peaks were measured over {failing_episodes} failing episodes.
"""

_LIMITS = """
## Where it fails

* It reads single frames rather than motion. Where the picture hides the state (a cube behind the
  fingers, a height seen from above), so is the answer uncertain.
* False peaks: see the table. An agent that is rewarded by nano will look for them. Require a level
  to hold for several queries before it counts, or use the judge as well.
* **It can be cheated.** A hand in front of the closed window still reads as an open one in some
  places: on states of the two policies that fooled the second weights most, the error fell from 51
  and 32 points to 17 and 11, not to zero. Policies that start from nothing no longer end there in
  the five seeds of `benchmarks/learning.py`; another one may. Lift, Stack and Can have not been
  tried so, and their weights have seen no policy that learns.
* **A finished scene tends to read as finished whatever the instruction says**; see the controls.
  The instruction tells apart scenes that are under way; it does not tell which of several finished
  tasks was meant. Give nano the instruction of the task that runs. (Tuning with 30 % instead of 8 %
  wrong instructions was tried for five minutes: it helped little and cost right readings, so those
  weights were not shipped.)
* Wordings far from the trained ones, and instructions of tasks it does not know, are answered
  with a number that means nothing.
* Robosuite's success line lies at 90 %, Meta-World's at 100 %; the preset's threshold is a
  compromise between them.
"""


def render_card(figures: Mapping[str, float | str]) -> str:
    """Return the card as Markdown.

    Args:
        figures: What the benchmark wrote.
    """
    tasks = [name for name in TASKS if f"mae_points_{name}" in figures]
    head = " | ".join(["figure", "goal", "all", *tasks])
    lines = [f"| {head} |", "|" + "---|" * (3 + len(tasks))]
    for key, words, sign, goal in GOALS:
        cells = [_number(figures.get(k)) for k in (key, *(f"{key}_{task}" for task in tasks))]
        lines.append("| " + " | ".join([words, f"{sign} {goal:g}", *cells]) + " |")
    controls = _CONTROLS.format_map({k: _number(v) for k, v in figures.items()})
    mode = f"\nAnswered in mode `{figures.get('mode', 'reasoning')}`.\n"
    return _INTRO + mode + "\n" + "\n".join(lines) + "\n" + controls + _LIMITS


def _number(value: float | str | None) -> str:
    if not isinstance(value, int | float) or math.isnan(value):
        return ""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write nano's model card.")
    parser.add_argument("--figures", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=CARD)
    args = parser.parse_args(argv)
    card = render_card(json.loads(args.figures.read_text(encoding="utf-8")))
    args.out.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
