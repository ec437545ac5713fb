"""Which rewards leave optimal policies alone: checked by solving random decision processes.

Every reward table is made by the shipped ``Potential`` and ``Shaper``. The controls are the
mistakes that the design avoids; each must be seen to break invariance, so that the positive tests
are known to be able to fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from procreward.schedule import QuerySchedule
from procreward.shaping import Potential, Shaper, ShapingMode

Array = npt.NDArray[np.float64]

GAMMA = 0.95
SCALE = 1.5
NUM_MDPS = 200


@dataclass(frozen=True)
class Mdps:
    """A batch of random decision processes.

    ``transitions`` and ``rewards`` have shape (mdps, states, actions, next states), ``potentials``
    shape (mdps, states).
    """

    transitions: Array
    rewards: Array
    potentials: Array


def random_mdps(states: int, actions: int, seed: int = 0) -> Mdps:
    rng = np.random.default_rng(seed)
    shape = (NUM_MDPS, states, actions, states)
    return Mdps(
        transitions=rng.dirichlet(np.full(states, 0.3), size=shape[:3]),
        rewards=rng.normal(size=shape),
        potentials=rng.uniform(size=(NUM_MDPS, states)),
    )


def changed(q: Array, q_shaped: Array) -> int:
    """Number of processes in which some shaped best action is clearly worse than the best."""
    chosen = q_shaped.argmax(-1)
    gap = q.max(-1) - np.take_along_axis(q, chosen[..., None], -1)[..., 0]
    return int((gap.reshape(len(gap), -1).max(-1) > 1e-6).sum())


def assert_same_greedy_sets(q: Array, q_shaped: Array) -> None:
    best = q >= q.max(-1, keepdims=True) - 1e-9
    best_shaped = q_shaped >= q_shaped.max(-1, keepdims=True) - 1e-9
    assert (best == best_shaped).all()


# --- every step a query, two terminal states, infinite horizon --------------------------------

TERMINAL = 2  # the last two states end the episode
PairReward = Callable[[float, float, bool], float]
"""(potential before, potential after, terminated) to shaping reward."""


def pair_table(mdps: Mdps, reward: PairReward) -> Array:
    """Shaping reward of every (mdp, state, next state)."""
    states = mdps.potentials.shape[1]
    rows = [
        [[reward(p, q, after >= states - TERMINAL) for after, q in enumerate(row)] for p in row]
        for row in mdps.potentials.tolist()
    ]
    return np.array(rows)


def solve(mdps: Mdps, shaping: Array) -> Array:
    """Optimal Q of the states that are not terminal, by value iteration."""
    alive = mdps.potentials.shape[1] - TERMINAL
    gain = (mdps.transitions * (mdps.rewards + shaping[:, :, None, :])).sum(-1)[:, :alive]
    onward = mdps.transitions[:, :alive, :, :alive]
    q: Array = np.zeros_like(gain)
    for _ in range(750):
        q = gain + GAMMA * np.einsum("nsax,nx->nsa", onward, q.max(-1))
    return q


def by_shaper(mode: ShapingMode) -> PairReward:
    shaper = Shaper(mode, gamma=GAMMA, scale=SCALE)

    def reward(before: float, after: float, terminated: bool) -> float:
        shaper.reset(before)
        return shaper.step(after, terminated=terminated)

    return reward


@pytest.fixture(scope="module")
def episodic() -> tuple[Mdps, Array]:
    mdps = random_mdps(states=7, actions=3)
    return mdps, solve(mdps, np.zeros((NUM_MDPS, 7, 7)))


def test_pbrs_shifts_q_by_the_potential(episodic: tuple[Mdps, Array]) -> None:
    mdps, q = episodic
    q_shaped = solve(mdps, pair_table(mdps, by_shaper("pbrs")))
    shift = SCALE * mdps.potentials[:, :-TERMINAL, None]
    np.testing.assert_allclose(q_shaped, q - shift, rtol=0, atol=1e-12)
    assert_same_greedy_sets(q, q_shaped)


def test_sparse_mode_changes_nothing(episodic: tuple[Mdps, Array]) -> None:
    mdps, q = episodic
    np.testing.assert_array_equal(solve(mdps, pair_table(mdps, by_shaper("sparse"))), q)


def test_control_no_zero_at_terminal_states_changes_policies(
    episodic: tuple[Mdps, Array],
) -> None:
    mdps, q = episodic
    pbrs = by_shaper("pbrs")
    q_shaped = solve(mdps, pair_table(mdps, lambda p, after, _: pbrs(p, after, False)))
    assert changed(q, q_shaped) >= 1


def test_control_clipped_difference_changes_policies(episodic: tuple[Mdps, Array]) -> None:
    mdps, q = episodic
    clipped = pair_table(mdps, lambda p, after, _: SCALE * max(0.0, after - p))
    assert changed(q, solve(mdps, clipped)) >= 1


def test_control_clipped_pbrs_changes_policies(episodic: tuple[Mdps, Array]) -> None:
    mdps, q = episodic
    assert changed(q, solve(mdps, np.maximum(pair_table(mdps, by_shaper("pbrs")), 0.0))) >= 1


def test_delta_changes_some_policies_and_raw_changes_many(episodic: tuple[Mdps, Array]) -> None:
    mdps, q = episodic
    by_delta = changed(q, solve(mdps, pair_table(mdps, by_shaper("delta"))))
    by_raw = changed(q, solve(mdps, pair_table(mdps, by_shaper("raw"))))
    assert 1 <= by_delta < by_raw
    assert by_raw > NUM_MDPS / 2


# --- a query every k steps, held between, finite horizon --------------------------------------
#
# The learner's state is (state, last reading, step); a reading is named by the state it was of.

HORIZON = 7
Edge = tuple[float, float]
"""(shaping reward, potential afterwards)."""
HeldReward = Callable[[float, float, int], Edge]
"""(last reading, reading of the next state, step arrived at) to reward and new potential."""


def solve_held(mdps: Mdps, edge: HeldReward, final: Array | None = None) -> list[Array]:
    """Optimal Q per step, shape (mdps, states, last readings, actions).

    Args:
        mdps: The processes.
        edge: The shaping.
        final: Value at the horizon, shape (mdps, states, last readings): what a learner bootstraps
            from after a truncation. None for zero, as after a termination.
    """
    phi = mdps.potentials
    gain = (mdps.transitions * mdps.rewards).sum(-1)
    states = phi.shape[1]
    value = np.zeros((NUM_MDPS, states, states)) if final is None else final
    qs: list[Array] = []
    own = np.arange(states)
    for step in range(HORIZON, 0, -1):
        table = np.array(
            [[[edge(held, new, step) for new in row] for held in row] for row in phi.tolist()]
        )
        reward, after = table[..., 0], table[..., 1]  # (mdps, held, next state)
        value_if_taken = value[:, own, own][:, None, :]
        value_if_held = value.transpose(0, 2, 1)
        taken = after == phi[:, None, :]
        onward = reward + GAMMA * np.where(taken, value_if_taken, value_if_held)
        q = gain[:, :, None, :] + np.einsum("nsax,nhx->nsha", mdps.transitions, onward)
        value = q.max(-1)
        qs.insert(0, q)
    return qs


def shipped(
    k: int, *, ratchet: bool = False, start: float | None = None, terminates: bool = True
) -> HeldReward:
    """The shaping as shipped; ``start`` is the episode's first reading, and turns offset on."""
    schedule = QuerySchedule(k, window_frames=1, frame_stride_steps=1)
    shaper = Shaper("pbrs", gamma=GAMMA, scale=SCALE)

    def edge(held: float, new: float, step: int) -> Edge:
        potential = Potential(ratchet=ratchet, offset=start is not None)
        if start is not None:
            potential.update(start)
        shaper.reset(potential.update(held))
        ended = step == HORIZON
        reading = new if schedule.due(step, ended=ended) else None
        reward = shaper.step(potential.update(reading), terminated=ended and terminates)
        return reward, potential.value + (0.0 if start is None else start)

    return edge


def nothing(held: float, new: float, step: int) -> Edge:
    return 0.0, held


def assert_shifted(mdps: Mdps, qs: list[Array], qs_shaped: list[Array], start: float) -> None:
    shift = SCALE * (mdps.potentials - start)[:, None, :, None]
    for q, q_shaped in zip(qs, qs_shaped, strict=True):
        np.testing.assert_allclose(q_shaped, q - shift, rtol=0, atol=1e-12)
        assert_same_greedy_sets(q, q_shaped)


def total_changed(qs: list[Array], qs_shaped: list[Array]) -> int:
    return max(changed(q, s) for q, s in zip(qs, qs_shaped, strict=True))


@pytest.fixture(scope="module")
def finite() -> tuple[Mdps, list[Array]]:
    mdps = random_mdps(states=4, actions=2, seed=1)
    return mdps, solve_held(mdps, nothing)


@pytest.mark.parametrize("k", [1, 2, 3, HORIZON, HORIZON + 3])
def test_held_potential_shifts_q(finite: tuple[Mdps, list[Array]], k: int) -> None:
    mdps, qs = finite
    assert_shifted(mdps, qs, solve_held(mdps, shipped(k)), start=0.0)


@pytest.mark.parametrize("k", [1, 3])
def test_ratcheted_potential_shifts_q(finite: tuple[Mdps, list[Array]], k: int) -> None:
    mdps, qs = finite
    assert_shifted(mdps, qs, solve_held(mdps, shipped(k, ratchet=True)), start=0.0)


def test_offset_potential_shifts_q() -> None:
    mdps = random_mdps(states=4, actions=2, seed=2)
    # Dyadic readings, so that taking the offset away and adding it again is exact.
    mdps.potentials[:] = np.round(mdps.potentials * 256) / 256
    qs = solve_held(mdps, nothing)
    assert_shifted(mdps, qs, solve_held(mdps, shipped(3, start=0.375)), start=0.375)


@pytest.mark.parametrize("k", [1, 3])
def test_truncated_episode_keeps_its_last_potential_for_a_bootstrapping_learner(k: int) -> None:
    mdps = random_mdps(states=4, actions=2, seed=3)
    true_value = np.random.default_rng(4).normal(size=(NUM_MDPS, 4, 1)) * np.ones((1, 1, 4))
    learned = true_value - SCALE * mdps.potentials[:, None, :]
    qs = solve_held(mdps, nothing, final=true_value)
    qs_shaped = solve_held(mdps, shipped(k, terminates=False), final=learned)
    assert_shifted(mdps, qs, qs_shaped, start=0.0)


def test_control_zeroing_a_truncated_end_changes_policies_of_a_bootstrapping_learner() -> None:
    mdps = random_mdps(states=4, actions=2, seed=3)
    true_value = np.random.default_rng(4).normal(size=(NUM_MDPS, 4, 1)) * np.ones((1, 1, 4))
    learned = true_value - SCALE * mdps.potentials[:, None, :]
    qs = solve_held(mdps, nothing, final=true_value)
    assert total_changed(qs, solve_held(mdps, shipped(3), final=learned)) >= 1


def test_control_forgotten_final_zero_changes_policies(finite: tuple[Mdps, list[Array]]) -> None:
    mdps, qs = finite
    assert total_changed(qs, solve_held(mdps, shipped(3, terminates=False))) >= 1


def test_control_lump_of_a_semi_markov_step_changes_policies(
    finite: tuple[Mdps, list[Array]],
) -> None:
    """``gamma**k * q - p`` paid at query steps is right per option, wrong per step."""
    mdps, qs = finite
    k = 3

    def lump(held: float, new: float, step: int) -> Edge:
        ended = step == HORIZON
        if not ended and step % k:
            return 0.0, held
        elapsed = step % k or k
        return SCALE * (GAMMA**elapsed * (0.0 if ended else new) - held), new

    assert total_changed(qs, solve_held(mdps, lump)) >= 1


def test_control_clipped_held_difference_changes_policies(
    finite: tuple[Mdps, list[Array]],
) -> None:
    mdps, qs = finite

    def clipped(held: float, new: float, step: int) -> Edge:
        after = new if step % 3 == 0 or step == HORIZON else held
        return SCALE * max(0.0, after - held), after

    assert total_changed(qs, solve_held(mdps, clipped)) >= 1
