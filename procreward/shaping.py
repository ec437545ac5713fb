"""From progress readings to reward: the only place where it happens.

* :class:`Potential` - readings in, a potential out: clamped, held over failures and, if asked,
  smoothed, ratcheted, offset.
* :class:`Shaper` - potentials in, shaping rewards out.
* :class:`SuccessBonus` - a bonus for completion, paid once an episode.

No environment, no model and no torch in here: numbers only.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

from procreward.checks import check, check_choice, check_unit, is_number

__all__ = ["Potential", "Shaper", "ShapingMode", "SuccessBonus"]

ShapingMode: TypeAlias = Literal["pbrs", "delta", "raw", "sparse"]
"""Name of a way to turn potentials into rewards; see :class:`Shaper`."""


class Potential:
    """The potential of an episode's current state, from a scorer's readings.

    A reading passes through these stages, in this order:

    1. **hold** - None and numbers that are not finite are failed readings: the value stays.
    2. **clamp** - to [0, 1]. The potential is bounded, never the reward: a clipped difference of
       potentials no longer telescopes.
    3. **smooth** - an exponential moving average, ``alpha * reading + (1 - alpha) * average``. The
       first reading is taken as it is.
    4. **ratchet** - the best so far. Rewards then never punish a setback and cannot be earned
       twice by undoing and redoing, as they could if negative rewards were clipped to zero.
    5. **offset** - minus the value at the episode's first reading, so that an episode starts at
       potential 0. That value is fixed once the episode has begun, so nothing is lost.

    The result is in [0, 1], and with ``offset`` in [-1, 1].

    Args:
        ratchet: Whether to keep the best value so far.
        smooth_alpha: Weight of a new reading, in (0, 1], or None for no smoothing.
        offset: Whether to subtract the episode's first value.

    Attributes:
        clamped: Readings outside [0, 1] since construction.
        rejected: Readings that were not finite since construction.

    Raises:
        ConfigError: If ``smooth_alpha`` is outside (0, 1].

    Example:
        >>> potential = Potential(ratchet=True)
        >>> [potential.update(reading) for reading in (0.25, None, 0.75, 0.5, 1.5)]
        [0.25, 0.25, 0.75, 0.75, 1.0]
        >>> potential.clamped
        1
    """

    def __init__(
        self, *, ratchet: bool = False, smooth_alpha: float | None = None, offset: bool = False
    ):
        if smooth_alpha is not None:
            fix = "Use 1 or None for no smoothing."
            check_unit("smooth_alpha", smooth_alpha, allow_zero=False, fix=fix)
        self.ratchet = ratchet
        self.smooth_alpha = smooth_alpha
        self.offset = offset
        self.clamped = 0
        self.rejected = 0
        self.reset()

    def reset(self) -> None:
        """Forget the episode; the counters stay."""
        self._average: float | None = None
        self._best = 0.0
        self._first = 0.0

    @property
    def known(self) -> bool:
        """Whether this episode had a usable reading."""
        return self._average is not None

    @property
    def value(self) -> float:
        """The potential now; 0.0 while nothing is known."""
        if self._average is None:
            return 0.0
        current = self._best if self.ratchet else self._average
        return current - self._first if self.offset else current

    def update(self, progress: float | None) -> float:
        """Take in a reading.

        Args:
            progress: Progress, meant to be in [0, 1], or None when the query failed.

        Returns:
            The potential after the reading, the same as :attr:`value`.
        """
        if progress is None:
            return self.value
        if not math.isfinite(progress):
            self.rejected += 1
            return self.value
        reading = min(max(float(progress), 0.0), 1.0)
        self.clamped += reading != progress
        self._take(reading)
        return self.value

    def _take(self, reading: float) -> None:
        if self._average is None:
            self._average = self._best = self._first = reading
            return
        if self.smooth_alpha is None:
            self._average = reading
        else:
            alpha = self.smooth_alpha
            self._average = min(1.0, alpha * reading + (1.0 - alpha) * self._average)
        self._best = max(self._best, self._average)


class Shaper:
    """Turns the potentials of an episode into rewards.

    With ``p`` the potential on entering a step, ``q`` the potential after it, ``c`` the scale:

    =========  ==============================================  ==================================
    mode       reward of the step                              optimal policies
    =========  ==============================================  ==================================
    ``pbrs``   ``gamma * c * q - c * p``, ``q`` = 0 when       unchanged
               terminated
    ``delta``  ``c * (q - p)``                                 can change: it is ``pbrs`` plus
                                                               ``(1 - gamma) * c * q``
    ``raw``    ``c * q``                                       change: hovering near the goal pays
                                                               ``c * q / (1 - gamma)``
    ``sparse`` 0                                               unchanged
    =========  ==============================================  ==================================

    In ``pbrs`` (potential-based reward shaping, Ng, Harada and Russell 1999) the discounted sum
    over ``T`` steps is ``gamma**T * c * p_T - c * p_0``, and ``- c * p_0`` alone when terminated,
    whatever happened between. This holds for any potential, also a noisy one or one that is asked
    for every k steps and held between, provided that each value is computed once and used twice,
    which is why the shaper keeps it.

    **The last reward of a terminated episode is** ``-c * p``. This surprises, and it is right: the
    potential of a terminal state must be zero, or reaching one terminal state rather than another
    is rewarded by the shaping itself. Everything lent on the way is paid back, and what is left is
    the task's own reward. A success bonus of at least ``c`` keeps the sum of a successful episode's
    last step non-negative. A truncated episode did not end as far as the learner is concerned, so
    its last potential stays.

    Clipping rewards at zero is not offered: going back and forth would then pay without end.
    ``Potential(ratchet=True)`` gives what clipping is wanted for and cannot be farmed.

    Rewards are at most ``c`` in size for potentials in [0, 1] or ``Potential(offset=True)``.

    If nothing is known at the reset, rewards are 0 until the first potential, which becomes
    ``p_0``; it is not paid for. With ``Potential(offset=True)`` this costs nothing, since ``p_0``
    is then 0.

    Args:
        mode: ``"pbrs"``, ``"delta"``, ``"raw"`` or ``"sparse"``.
        gamma: The learner's own discount per environment step, in (0, 1].
        scale: The factor ``c``, positive.

    Raises:
        ConfigError: If there is no such mode, or ``gamma`` or ``scale`` is out of range.

    Example:
        >>> shaper = Shaper("pbrs", gamma=0.5, scale=2.0)
        >>> shaper.reset(0.25)
        >>> [shaper.step(0.75, terminated=False), shaper.step(1.0, terminated=True)]
        [0.25, -1.5]
    """

    def __init__(self, mode: ShapingMode, *, gamma: float, scale: float):
        check_choice("mode", mode, get_args(ShapingMode))
        check_unit("gamma", gamma, allow_zero=False, fix="Use the learner's own discount.")
        fix = "Use mode 'sparse' for no shaping."
        check(is_number(scale) and scale > 0.0, "scale", "positive and finite", scale, fix)
        self.mode = mode
        self.gamma = gamma
        self.scale = scale
        self._potential: float | None = None

    @property
    def potential(self) -> float | None:
        """The potential that the next step starts from, or None while nothing is known."""
        return self._potential

    def reset(self, potential: float | None = None) -> None:
        """Begin an episode.

        Args:
            potential: Potential of the first state, or None when its query failed.
        """
        self._potential = potential

    def step(self, potential: float | None, *, terminated: bool) -> float:
        """Return the shaping reward of one environment step.

        Args:
            potential: Potential after the step; the last one when no query was made. None holds
                the last one too.
            terminated: Whether the episode terminated with this step. False for a truncation.

        Returns:
            The reward, finite; 0.0 while nothing is known and when the first potential arrives.
        """
        before = self._potential
        after = before if potential is None else potential
        self._potential = after
        if before is None or after is None:
            return 0.0
        if self.mode == "pbrs":
            end = 0.0 if terminated else after
            return self.gamma * self.scale * end - self.scale * before
        if self.mode == "delta":
            return self.scale * (after - before)
        return self.scale * after if self.mode == "raw" else 0.0


class SuccessBonus:
    """A bonus that is paid once an episode, when success begins.

    Some environments report success on every step for as long as it lasts, and would be paid on
    every one. The bonus is not a shaping reward: it defines the task.

    Args:
        amount: The bonus, finite and not negative. At least the shaper's scale keeps the last
            reward of a successful episode non-negative.

    Raises:
        ConfigError: If ``amount`` is negative or not finite.

    Example:
        >>> bonus = SuccessBonus(2.0)
        >>> [bonus.step(success) for success in (False, True, True, False, True)]
        [0.0, 2.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, amount: float):
        ok = is_number(amount) and amount >= 0.0
        check(ok, "success_bonus", "finite and at least 0", amount)
        self.amount = float(amount)
        self.reset()

    def reset(self, *, success: bool = False) -> None:
        """Begin an episode.

        Args:
            success: Whether success holds already at the reset. It then pays only if it is lost
                and reached again.
        """
        self.paid = False
        self._before = success

    def step(self, success: bool) -> float:
        """Return the bonus of one environment step.

        Args:
            success: Whether success holds after the step.

        Returns:
            ``amount`` on the first step of the episode on which success begins, 0.0 otherwise.
        """
        begins = success and not self._before
        self._before = success
        if not begins or self.paid:
            return 0.0
        self.paid = True
        return self.amount
