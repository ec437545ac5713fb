"""Conformance suites, for other people's scorers and environments.

* :func:`check_scorer` - does a scorer keep the contract of :class:`procreward.types.Scorer`?
* :func:`check_wrapper` - does a wrapped environment pay what it should, in the stack it is in?
* :class:`Report`, :class:`Check` - what they found, with an explanation of every point.

Gymnasium's own ``gymnasium.utils.env_checker.check_env`` covers the environment's side and should
be run as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from procreward.errors import ConformanceError

if TYPE_CHECKING:
    import gymnasium as gym

    from procreward.config import ScorerSpec

__all__ = ["Check", "Report", "Skip", "Suite", "check_scorer", "check_wrapper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One point of a suite.

    Attributes:
        name: Short name, such as ``"order_kept"``.
        ok: Whether it holds, or could not be looked at.
        explanation: What it means and why it matters.
        detail: What was found, if it does not hold; why it was skipped, if it was.
        skipped: Whether it could not be looked at.
    """

    name: str
    ok: bool
    explanation: str
    detail: str = ""
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a suite found.

    Attributes:
        subject: What was checked.
        checks: Every point, in the order it was looked at.
    """

    subject: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no point failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The points that failed."""
        return tuple(check for check in self.checks if not check.ok)

    def raise_if_failed(self) -> None:
        """Raise if any point failed.

        Raises:
            ConformanceError: Listing what failed, found and should be.
        """
        if not self.ok:
            raise ConformanceError(str(replace(self, checks=self.failures)))

    def __str__(self) -> str:
        """Return a line per point, and under it what was found if it does not hold."""
        lines = [self.subject]
        for check in self.checks:
            mark = "skipped" if check.skipped else "ok" if check.ok else "FAILED"
            lines.append(f"  {mark:7} {check.name}: {check.explanation}")
            if check.detail:
                lines.append(f"          {check.detail}")
        return "\n".join(lines)


class Skip(Exception):
    """Raised by a point that cannot be looked at; its text says why."""


class Suite:
    """Runs points one after another and writes down what each came to."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.checks: list[Check] = []

    def run(self, name: str, explanation: str, look: Callable[[], str]) -> bool:
        """Look at one point.

        Args:
            name: Its name.
            explanation: What it means.
            look: Returns what is wrong, empty if nothing is. What it raises is a finding, too.

        Returns:
            Whether the point holds.
        """
        skipped = False
        try:
            detail = look()
        except Skip as skip:
            skipped, detail = True, str(skip)
        except Exception as error:
            detail = f"raised {type(error).__name__}: {error}"
        ok = skipped or not detail
        self.checks.append(
            Check(name=name, ok=ok, explanation=explanation, detail=detail, skipped=skipped)
        )
        return ok and not skipped

    def report(self) -> Report:
        """Return what was found."""
        return Report(subject=self.subject, checks=tuple(self.checks))


def check_scorer(
    scorer: ScorerSpec,
    *,
    views: Sequence[str] | None = None,
    frame_size: tuple[int, int] | None = None,
    window_frames: int | None = None,
    instruction: str = "close the drawer",
    tolerance: float = 1e-4,
    raise_on_failure: bool = True,
) -> Report:
    """Put a scorer through the contract that the wrappers rely on.

    Args:
        scorer: The scorer or its name, as :func:`procreward.registry.resolve` takes it.
        views: Names of the views in the queries; None for those that the scorer is set up for.
        frame_size: ``(width, height)`` in pixels of the frames; None for the preset's, or 128 x
            128.
        window_frames: Frames in a query; None for the preset's.
        instruction: The task in words.
        tolerance: Largest difference of a progress between a batch and single queries.
        raise_on_failure: Whether to raise if a point fails.

    Returns:
        A report of every point.

    Raises:
        ConformanceError: If a point fails and ``raise_on_failure``.
        UnknownNameError: If there is no such scorer.
        ModelError: If its weights cannot be loaded.

    Example:
        >>> check_scorer("constant").ok
        True
    """
    from procreward._conformance_scorer import run_scorer_suite

    report = run_scorer_suite(
        scorer,
        views=None if views is None else tuple(views),
        frame_size=frame_size,
        window_frames=window_frames,
        instruction=instruction,
        tolerance=tolerance,
    )
    if raise_on_failure:
        report.raise_if_failed()
    return report


def check_wrapper(
    env: gym.Env[Any, Any],
    *,
    max_steps: int = 64,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> Report:
    """Look at a wrapped environment from outside, and roll it out with random actions.

    This sees what :class:`~procreward.wrapper.ProgressReward` cannot see from within: the wrappers
    around it.

    Args:
        env: The outermost environment.
        max_steps: Steps of a rollout, at least 1; it may end sooner.
        seed: Seed of the rollouts.
        raise_on_failure: Whether to raise if a point fails.

    Returns:
        A report of every point.

    Raises:
        ConformanceError: If a point fails and ``raise_on_failure``.
    """
    from procreward._conformance_wrapper import run_wrapper_suite

    report = run_wrapper_suite(env, max_steps=max_steps, seed=seed)
    if raise_on_failure:
        report.raise_if_failed()
    return report
