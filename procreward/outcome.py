"""What the answers of an episode come to: the half of a stream that looks at no frame.

* :class:`Outcome` - what a step came to.
* :class:`EpisodeLedger` - potential, completion, shaping and bonus of one episode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from procreward.plan import StreamPlan
from procreward.shaping import Potential, Shaper, SuccessBonus
from procreward.types import Score, Verdict

__all__ = ["EpisodeLedger", "Outcome", "StepEnd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one step of a stream came to.

    Attributes:
        step: Step of the episode, 0 at the reset.
        potential: The potential the shaping used: held between queries; 0.0 before the first
            reading and, in mode ``"pbrs"``, at a terminal state.
        shaping: Shaping reward of the step; 0.0 at the reset.
        bonus: Success bonus of the step; not 0.0 at most once an episode.
        terminated: Whether the episode terminates here, by its environment or by completion.
        truncated: Whether it is cut off here, by its environment or by completion.
        queried: Whether the scorer was asked at this step.
        valid: Whether the scorer's latest query was answered.
        age_steps: Steps since the frame that the potential was read from (since the reset while
            nothing is known).
        verdict: Progress, completion, stall and regression, as of the latest query.
        score: The scorer's answer at this step, or None if it gave none or was not asked.
        judge_score: The judge's answer at this step, likewise.
        reason: Why the scorer gave no usable answer at this step; empty if it did or was not asked.
    """

    step: int
    potential: float
    shaping: float
    bonus: float
    terminated: bool
    truncated: bool
    queried: bool
    valid: bool
    age_steps: int
    verdict: Verdict
    score: Score | None = None
    judge_score: Score | None = None
    reason: str = ""

    @property
    def progress(self) -> float:
        """Latest valid progress in [0, 1], 0.0 before the first."""
        return 0.0 if self.verdict.progress is None else self.verdict.progress

    @property
    def complete(self) -> bool:
        """Whether the task counts as done."""
        return self.verdict.complete


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """How a step stands, whatever the models say about it.

    Attributes:
        step: Step of the episode, 0 at the reset.
        terminated: Whether the episode terminates with it.
        truncated: Whether the episode is cut off with it.
        queried: Whether the models are asked about it.
    """

    step: int
    terminated: bool = False
    truncated: bool = False
    queried: bool = False


class EpisodeLedger:
    """Potential, completion, shaping and bonus of one episode, fed with answers in order.

    For every step: :meth:`take` if the models were asked about it, then :meth:`settle`.
    """

    def __init__(self, plan: StreamPlan) -> None:
        """Build the parts.

        Args:
            plan: The settings.
        """
        config = plan.config
        self._plan = plan
        self._potential = Potential(
            ratchet=config.ratchet, smooth_alpha=config.smooth_alpha, offset=config.offset
        )
        self._shaper = Shaper(config.shaping, gamma=config.gamma, scale=config.scale)
        self._bonus = SuccessBonus(config.success_bonus)
        self._progress_tracker = plan.tracker()
        self._completion_tracker = self._progress_tracker if plan.judge is None else plan.tracker()
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        for part in (self._potential, self._shaper, self._bonus):
            part.reset()
        for tracker in (self._progress_tracker, self._completion_tracker):
            tracker.reset()
        self._read_step = 0
        self._valid = False
        self._verdict = self._progress_tracker.verdict

    @property
    def known(self) -> bool:
        """Whether there was a usable reading in this episode."""
        return self._potential.known

    @property
    def valid(self) -> bool:
        """Whether the scorer's latest query was answered."""
        return self._valid

    @property
    def complete(self) -> bool:
        """Whether the task counts as done."""
        return self._verdict.complete

    def take(self, step: int, score: Score | None, judge_score: Score | None) -> None:
        """Take in what the models say about a step.

        Args:
            step: Step of the episode.
            score: The scorer's answer, or None if it gave none.
            judge_score: The judge's, likewise.
        """
        reading = _reading(score)
        self._valid = reading is not None
        self._potential.update(reading)
        self._progress_tracker.update(score, step)
        if self._completion_tracker is not self._progress_tracker:
            self._completion_tracker.update(self._guarded(judge_score), step)
        self._verdict = self._merged_verdict()
        if reading is not None:
            self._read_step = step

    def settle(
        self, end: StepEnd, *, score: Score | None = None, judge_score: Score | None = None
    ) -> Outcome:
        """Pay a step.

        Args:
            end: The step, completion included where it ends the episode.
            score: The scorer's answer to the step's query, for the outcome.
            judge_score: The judge's, likewise.
        """
        potential = self._potential.value if self.known else None
        shaping = bonus = 0.0
        if end.step == 0:
            self._shaper.reset(potential)
            self._bonus.reset(success=self.complete)
        else:
            shaping = self._shaper.step(potential, terminated=end.terminated)
            bonus = self._bonus.step(self.complete)
        return self._outcome(end, shaping, bonus, score, judge_score)

    def outlook(self, end: StepEnd) -> Outcome:
        """Return what is known of a step that cannot be paid yet: no shaping, no bonus.

        Args:
            end: The step.
        """
        return self._outcome(end, 0.0, 0.0, None, None)

    def _outcome(
        self,
        end: StepEnd,
        shaping: float,
        bonus: float,
        score: Score | None,
        judge_score: Score | None,
    ) -> Outcome:
        zeroed = end.terminated and self._plan.config.shaping == "pbrs"
        return Outcome(
            step=end.step,
            potential=0.0 if zeroed else self._potential.value,
            shaping=shaping,
            bonus=bonus,
            terminated=end.terminated,
            truncated=end.truncated,
            queried=end.queried,
            valid=self._valid,
            age_steps=end.step - self._read_step,
            verdict=self._verdict,
            score=score,
            judge_score=judge_score,
        )

    def _guarded(self, judge_score: Score | None) -> Score | None:
        """Give a judge that knows no progress the scorer's, for the guard `min_progress`."""
        if judge_score is None or not judge_score.valid or judge_score.progress is not None:
            return judge_score
        if self._plan.config.min_progress is None:
            return judge_score
        return replace(judge_score, progress=self._progress_tracker.verdict.progress)

    def _merged_verdict(self) -> Verdict:
        verdict = self._progress_tracker.verdict
        if self._completion_tracker is self._progress_tracker:
            return verdict
        complete = self._completion_tracker.verdict.complete
        return replace(verdict, complete=complete, stalled=verdict.stalled and not complete)


def _reading(score: Score | None) -> float | None:
    """The number a potential is made of: progress, else the completion as far as it is known."""
    if score is None:
        return None
    if score.progress is not None:
        return score.progress
    if score.success_prob is not None:
        return score.success_prob
    return None if score.complete is None else float(score.complete)
