from __future__ import annotations

import math

from procreward.models.nano.card import GOALS, render_card

FIGURES = {
    **{key: 0.5 for key, *_ in GOALS},
    "mae_points_lift": 3.25,
    "spearman_retry_lift": math.nan,
    "clock_spearman_expert": 0.99,
    "clock_spearman_failing": -0.1,
    "noisy_truth_spearman_failing": 0.8,
    "right_instruction_mean": 0.5,
    "wrong_instruction_finished_mean": 0.4,
    "wrong_instruction_mean": 0.02,
    "mae_points_new_wording": 6.0,
    "invalid_rate": 0.0,
    "failing_episodes": 312,
    "mode": "direct",
}


def test_card_has_every_goal_and_only_measured_tasks():
    card = render_card(FIGURES)
    header = next(line for line in card.splitlines() if line.startswith("| figure"))
    assert header == "| figure | goal | all | lift |"
    assert "| Mean absolute error, points | <= 4 | 0.5 | 3.25 |" in card
    assert "| Spearman, retrying episodes | >= 0.95 | 0.5 |  |" in card
    assert all(words in card for _, words, _, _ in GOALS)


def test_card_says_mode_and_controls():
    card = render_card(FIGURES)
    assert "Answered in mode `direct`." in card
    assert "over 312 failing episodes" in card
    assert "| the same on failing episodes that move | -0.1 |" in card
