from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.errors import ConfigError
from procreward.schedule import QuerySchedule
from procreward.shaping import Potential, Shaper, ShapingMode, SuccessBonus
from tests.helpers import discounted

Reading = float | None

readings = st.one_of(st.floats(0.0, 1.0), st.none(), st.just(math.nan), st.floats(-0.5, 1.5))
sequences = st.lists(readings, min_size=1, max_size=50)
good_sequences = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=50)
gammas = st.one_of(st.floats(0.5, 1.0), st.sampled_from([0.9, 0.99, 1.0]))
scales = st.floats(0.01, 4.0)
potentials = st.fixed_dictionaries(
    {
        "ratchet": st.booleans(),
        "smooth_alpha": st.one_of(st.none(), st.floats(0.01, 1.0)),
        "offset": st.booleans(),
    }
)


def run_episode(
    scores: Sequence[Reading],
    *,
    k: int,
    potential: Potential,
    shaper: Shaper,
    terminated: bool,
) -> tuple[list[float], list[float]]:
    """Play one episode; ``scores[t]`` is what a query at step ``t`` would read.

    Returns:
        The rewards of the steps after the first usable reading, and the potentials from that
        reading on (one more).
    """
    schedule = QuerySchedule(k, window_frames=1, frame_stride_steps=1)
    potential.reset()
    potential.update(scores[0])
    shaper.reset(potential.value if potential.known else None)
    rewards: list[float] = []
    path = [potential.value] if potential.known else []
    last = len(scores) - 1
    for step in range(1, last + 1):
        was_known = potential.known
        if schedule.due(step, ended=step == last, known=was_known):
            potential.update(scores[step])
        now = potential.value if potential.known else None
        reward = shaper.step(now, terminated=terminated and step == last)
        if was_known:
            rewards.append(reward)
        else:
            assert reward == 0.0
        if now is not None:
            path.append(now)
    return rewards, path


def play(
    scores: Sequence[Reading],
    mode: ShapingMode,
    *,
    k: int = 1,
    gamma: float = 0.9,
    scale: float = 1.0,
    terminated: bool = False,
    **options: Any,
) -> tuple[list[float], list[float]]:
    return run_episode(
        scores,
        k=k,
        potential=Potential(**options),
        shaper=Shaper(mode, gamma=gamma, scale=scale),
        terminated=terminated,
    )


# --- T1: the discounted sum -------------------------------------------------------------------


@given(sequences, st.integers(1, 12), gammas, scales, st.booleans(), potentials)
def test_discounted_sum_telescopes(
    scores: list[Reading],
    k: int,
    gamma: float,
    scale: float,
    terminated: bool,
    options: dict[str, Any],
) -> None:
    rewards, path = play(
        scores, "pbrs", k=k, gamma=gamma, scale=scale, terminated=terminated, **options
    )
    if not rewards:
        return
    end = 0.0 if terminated else gamma ** len(rewards) * scale * path[-1]
    assert abs(discounted(rewards, gamma) - (end - scale * path[0])) <= 1e-12


@given(good_sequences, st.integers(1, 6), gammas, st.data())
def test_a_reading_is_used_twice_and_cancels(
    scores: list[float], k: int, gamma: float, data: st.DataObject
) -> None:
    """Changing one reading in the middle changes rewards there, and not their discounted sum."""
    queries = list(range(0, len(scores) - 1, k))[1:]
    if not queries:
        return
    query = data.draw(st.sampled_from(queries))
    other = list(scores)
    other[query] = 1.0 - scores[query]
    rewards, _ = play(scores, "pbrs", k=k, gamma=gamma)
    changed, _ = play(other, "pbrs", k=k, gamma=gamma)
    next_query = min(query + k, len(scores) - 1)
    touched = range(query - 1, next_query)  # rewards[t] is the reward of step t + 1
    assert all(rewards[t] == changed[t] for t in range(len(rewards)) if t not in touched)
    assert abs(discounted(rewards, gamma) - discounted(changed, gamma)) <= 1e-12


@given(sequences, sequences, potentials, st.sampled_from(["pbrs", "delta", "raw", "sparse"]))
def test_nothing_leaks_into_the_next_episode(
    first: list[Reading], second: list[Reading], options: dict[str, Any], mode: ShapingMode
) -> None:
    potential, shaper = Potential(**options), Shaper(mode, gamma=0.9, scale=2.0)
    run_episode(first, k=2, potential=potential, shaper=shaper, terminated=True)
    again = run_episode(second, k=2, potential=potential, shaper=shaper, terminated=False)
    assert again == play(second, mode, k=2, scale=2.0, **options)


# --- T2: the last reward ----------------------------------------------------------------------


def test_literal_rewards_of_a_truncated_episode_with_queries_every_second_step() -> None:
    scores = [0.5, 9.0, 0.75, 9.0, 0.25, 1.0]  # 9.0 is never asked for; step 5 is forced
    rewards, path = play(scores, "pbrs", k=2, gamma=0.5, scale=2.0)
    assert path == [0.5, 0.5, 0.75, 0.75, 0.25, 1.0]
    assert rewards == [0.5 - 1.0, 0.75 - 1.0, 0.75 - 1.5, 0.25 - 1.5, 1.0 - 0.5]


def test_literal_rewards_of_a_terminated_episode_with_queries_every_second_step() -> None:
    scores = [0.5, 9.0, 0.75, 9.0, 0.25, 1.0]
    rewards, _ = play(scores, "pbrs", k=2, gamma=0.5, scale=2.0, terminated=True)
    assert rewards == [0.5 - 1.0, 0.75 - 1.0, 0.75 - 1.5, 0.25 - 1.5, -0.5]


@given(good_sequences, gammas, scales)
def test_last_reward_takes_back_the_held_potential_when_terminated(
    scores: list[float], gamma: float, scale: float
) -> None:
    rewards, path = play(scores, "pbrs", k=3, gamma=gamma, scale=scale, terminated=True)
    assert rewards[-1] == -scale * path[-2]


@given(good_sequences, gammas, scales)
def test_last_reward_uses_the_forced_query_when_truncated(
    scores: list[float], gamma: float, scale: float
) -> None:
    rewards, path = play(scores, "pbrs", k=1000, gamma=gamma, scale=scale)
    assert path[-1] == scores[-1]
    assert rewards[-1] == gamma * scale * scores[-1] - scale * path[-2]


def test_between_queries_only_the_discount_is_paid() -> None:
    shaper = Shaper("pbrs", gamma=0.75, scale=2.0)
    shaper.reset(0.5)
    assert [shaper.step(None, terminated=False) for _ in range(3)] == [-0.25, -0.25, -0.25]


@given(good_sequences, scales)
def test_bonus_of_the_scale_keeps_the_last_step_non_negative(
    scores: list[float], scale: float
) -> None:
    rewards, _ = play(scores, "pbrs", scale=scale, terminated=True)
    assert rewards[-1] + SuccessBonus(scale).step(True) >= 0.0


# --- T4: the other modes ----------------------------------------------------------------------


@given(good_sequences, scales, st.booleans())
def test_undiscounted_delta_sums_to_the_difference_of_the_ends(
    scores: list[float], scale: float, terminated: bool
) -> None:
    rewards, path = play(scores, "delta", scale=scale, terminated=terminated)
    assert abs(math.fsum(rewards) - scale * (path[-1] - path[0])) <= 1e-12


@given(good_sequences, gammas, scales, st.integers(1, 5))
def test_delta_is_pbrs_plus_a_reward_for_being_far(
    scores: list[float], gamma: float, scale: float, k: int
) -> None:
    delta, path = play(scores, "delta", k=k, gamma=gamma, scale=scale)
    pbrs, _ = play(scores, "pbrs", k=k, gamma=gamma, scale=scale)
    for one, other, after in zip(delta, pbrs, path[1:], strict=True):
        assert abs(one - other - (1.0 - gamma) * scale * after) <= 1e-12


def test_literal_delta_raw_and_sparse_rewards() -> None:
    scores = [0.25, 0.75, 0.5]
    assert play(scores, "delta", scale=2.0, terminated=True)[0] == [1.0, -0.5]
    assert play(scores, "raw", scale=2.0, terminated=True)[0] == [1.5, 1.0]
    assert play(scores, "sparse", scale=2.0, terminated=True)[0] == [0.0, 0.0]


# --- T5: bounds -------------------------------------------------------------------------------


@given(sequences, st.integers(1, 5), gammas, scales, st.booleans(), potentials)
def test_rewards_are_bounded_by_the_scale(
    scores: list[Reading],
    k: int,
    gamma: float,
    scale: float,
    terminated: bool,
    options: dict[str, Any],
) -> None:
    for mode in ("pbrs", "delta"):
        rewards, path = play(
            scores, mode, k=k, gamma=gamma, scale=scale, terminated=terminated, **options
        )
        assert all(abs(reward) <= scale * (1 + 1e-12) for reward in rewards)
        low = -1.0 if options["offset"] else 0.0
        assert all(low <= value <= 1.0 for value in path)
        if mode == "pbrs" and not options["offset"]:
            assert all(-scale <= reward <= gamma * scale for reward in rewards)


def test_readings_out_of_range_are_clamped_before_use_and_counted() -> None:
    potential = Potential()
    assert [potential.update(x) for x in (-0.5, 0.5, 1.5, 1.0, 0.0)] == [0.0, 0.5, 1.0, 1.0, 0.0]
    assert potential.clamped == 2
    potential.reset()
    assert potential.clamped == 2


# --- T9: the ratchet --------------------------------------------------------------------------


@given(good_sequences, scales)
def test_ratcheted_delta_sums_to_the_best_minus_the_first(
    scores: list[float], scale: float
) -> None:
    rewards, _ = play(scores, "delta", scale=scale, ratchet=True)
    assert all(reward >= 0.0 for reward in rewards)
    assert abs(math.fsum(rewards) - scale * (max(scores) - scores[0])) <= 1e-12


@given(good_sequences)
def test_replaying_a_cycle_earns_nothing_with_the_ratchet(scores: list[float]) -> None:
    once, _ = play(scores, "delta", ratchet=True)
    thrice, _ = play(scores * 3, "delta", ratchet=True)
    assert thrice[: len(once)] == once
    assert thrice[len(once) :] == [0.0] * (2 * len(scores))


def test_clipping_would_have_paid_for_every_cycle() -> None:
    scores = [0.0, 1.0] * 5
    clipped = [max(0.0, reward) for reward in play(scores, "delta")[0]]
    assert sum(clipped) == 5.0
    assert sum(play(scores, "delta", ratchet=True)[0]) == 1.0


# --- T12: failures ----------------------------------------------------------------------------


@given(st.lists(st.sampled_from([None, math.nan, math.inf, -math.inf]), max_size=8), potentials)
def test_failed_readings_hold_the_potential(
    failures: list[Reading], options: dict[str, Any]
) -> None:
    potential = Potential(**options)
    potential.update(0.25)
    before = potential.update(0.75)
    assert [potential.update(failure) for failure in failures] == [before] * len(failures)
    assert potential.rejected == sum(failure is not None for failure in failures)
    assert potential.clamped == 0


def test_first_usable_reading_becomes_the_first_potential_unpaid() -> None:
    scores: list[Reading] = [None, math.nan, 0.5, 1.0]
    potential, shaper = Potential(), Shaper("pbrs", gamma=0.5, scale=2.0)
    shaper.reset(None)
    paid = []
    for score in scores:
        potential.update(score)
        paid.append(shaper.step(potential.value if potential.known else None, terminated=False))
    assert paid == [0.0, 0.0, 0.0, 0.5 * 2.0 * 1.0 - 2.0 * 0.5]
    assert shaper.potential == 1.0


@pytest.mark.parametrize("mode", ["pbrs", "delta", "raw", "sparse"])
def test_nothing_known_pays_nothing(mode: ShapingMode) -> None:
    shaper = Shaper(mode, gamma=0.5, scale=1.0)
    shaper.reset()
    assert shaper.step(None, terminated=False) == 0.0
    assert shaper.step(0.5, terminated=True) == 0.0
    assert shaper.potential == 0.5


@given(sequences, st.booleans(), potentials, st.sampled_from(["pbrs", "delta", "raw", "sparse"]))
def test_rewards_are_finite_floats(
    scores: list[Reading], terminated: bool, options: dict[str, Any], mode: ShapingMode
) -> None:
    rewards, path = play(scores, mode, k=2, terminated=terminated, **options)
    assert all(type(x) is float and math.isfinite(x) for x in [*rewards, *path])


# --- Potential --------------------------------------------------------------------------------


def test_potential_knows_nothing_before_the_first_reading() -> None:
    potential = Potential(offset=True, ratchet=True, smooth_alpha=0.5)
    assert (potential.known, potential.value, potential.update(None)) == (False, 0.0, 0.0)
    known = [potential.known]
    potential.update(0.5)
    known.append(potential.known)
    potential.reset()
    assert known == [False, True]
    assert (potential.known, potential.value) == (False, 0.0)


def test_smoothing_starts_at_the_first_reading() -> None:
    potential = Potential(smooth_alpha=0.25)
    assert [potential.update(x) for x in (0.5, 1.0, None, 0.625)] == [0.5, 0.625, 0.625, 0.625]


def test_smoothing_with_alpha_one_is_none() -> None:
    plain, smooth = Potential(), Potential(smooth_alpha=1.0)
    for reading in (0.3, 0.9, 0.1):
        assert plain.update(reading) == smooth.update(reading)


def test_offset_starts_at_zero_and_can_be_negative() -> None:
    potential = Potential(offset=True)
    assert [potential.update(x) for x in (0.5, 0.75, 0.25)] == [0.0, 0.25, -0.25]


def test_smooth_comes_before_ratchet_and_ratchet_before_offset() -> None:
    potential = Potential(smooth_alpha=0.5, ratchet=True, offset=True)
    # averages 0.5, 0.75, 0.375, 0.6875, 0.84375
    values = [potential.update(x) for x in (0.5, 1.0, 0.0, 1.0, 1.0)]
    assert values == [0.0, 0.25, 0.25, 0.25, 0.34375]


# --- bad settings -----------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.2, math.nan, math.inf])
def test_gamma_out_of_range(gamma: float) -> None:
    with pytest.raises(ConfigError, match=r"`gamma` must be a number in \(0, 1\], got"):
        Shaper("pbrs", gamma=gamma, scale=1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scale_out_of_range(scale: float) -> None:
    with pytest.raises(ConfigError, match="`scale` must be positive and finite"):
        Shaper("pbrs", gamma=1.0, scale=scale)


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match=r"`mode` must be one of 'pbrs', 'delta', .*, got 'pbr'"):
        Shaper("pbr", gamma=1.0, scale=1.0)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.5, math.nan])
def test_smooth_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"`smooth_alpha` must be a number in \(0, 1\]"):
        Potential(smooth_alpha=alpha)


# --- T10: the bonus ---------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=30), st.booleans())
def test_bonus_is_paid_once_at_the_first_rise(success: list[bool], at_reset: bool) -> None:
    bonus = SuccessBonus(5.0)
    bonus.reset(success=at_reset)
    rises = [now and not before for before, now in zip([at_reset, *success], success, strict=False)]
    paid = [bonus.step(now) for now in success]
    assert sum(paid) == (5.0 if any(rises) else 0.0)
    assert bonus.paid == any(rises)
    if any(rises):
        assert paid.index(5.0) == rises.index(True)


def test_bonus_is_paid_again_in_the_next_episode() -> None:
    bonus = SuccessBonus(1.0)
    assert [bonus.step(True), bonus.step(True)] == [1.0, 0.0]
    bonus.reset()
    assert [bonus.step(True), bonus.step(True)] == [1.0, 0.0]


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_bonus_out_of_range(amount: float) -> None:
    with pytest.raises(ConfigError, match="`success_bonus` must be finite and at least 0"):
        SuccessBonus(amount)
