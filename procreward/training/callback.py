"""What a run does while the learner learns: evaluate, checkpoint, count, show, and stop in time.

* :class:`RunCallback` - all of it, between two rollouts.
* :class:`StopSignal` - Ctrl-C as a request.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback

from procreward.training.checkpoints import RunState, save_checkpoint
from procreward.training.config import TrainConfig
from procreward.training.environments import find_normalise, find_reward
from procreward.training.evaluation import EvalResult, Evaluator
from procreward.training.history import History

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["RunCallback", "StopSignal"]

SHOW_EVERY = 16


class StopSignal:
    """Whether the user wants the run to end; the second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.wanted = False

    @contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Take Ctrl-C as a request inside the block.

        Args:
            say: Is told when it comes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread is interrupted
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.wanted = True
            signal.signal(signal.SIGINT, before)
            say("\nstopping after this step; press Ctrl-C again to stop without a checkpoint")

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


class RunCallback(BaseCallback):
    """Evaluates and saves between rollouts, when the learner has finished an update.

    Then the policy is the one that the next rollout uses, and nothing of a rollout is lost in a
    checkpoint. A step at which something is due is therefore rounded up to the end of a rollout
    (of PPO's ``n_steps * num_envs`` steps, of SAC's ``train_freq * num_envs``).
    """

    def __init__(
        self,
        config: TrainConfig,
        evaluator: Evaluator,
        history: History,
        bar: tqdm[Any],
        stop: StopSignal,
        *,
        state: RunState | None = None,
    ) -> None:
        """Keep what is needed.

        Args:
            config: The settings.
            evaluator: Runs the evaluations.
            history: Takes their results.
            bar: Shows the steps.
            stop: Asked at every step.
            state: What a checkpoint that is gone on from says beside the learner.
        """
        super().__init__()
        self._config, self._evaluator, self.history = config, evaluator, history
        self._bar, self._stop, self._state = bar, stop, state
        self._began = time.monotonic()
        self._saved, self._next_save, self._next_eval = -1, 0, 0

    def _on_training_start(self) -> None:
        steps = self.num_timesteps
        self._began = time.monotonic()
        # A run that goes on has been saved and evaluated where it does.
        self._saved = steps if self._state is not None else -1
        self._next_save = _after(steps, self._config.checkpoint_every_steps)
        last = self.history.last_step
        self._next_eval = 0 if last is None else _after(last, self._config.eval.every_steps)
        if self._state is not None:
            normalise = find_normalise(self.training_env)
            if normalise is not None:
                normalise.training = True
            self._state.restore_random(self.model)

    def _on_rollout_start(self) -> None:
        steps, every = self.num_timesteps, self._config.checkpoint_every_steps
        if every and steps >= self._next_save:
            self.save()
            self._next_save = _after(steps, every)
        every = self._config.eval.every_steps
        if every and steps >= self._next_eval and not self._stop.wanted:
            self.evaluate()
            self._next_eval = _after(steps, every)

    def _on_step(self) -> bool:
        if self.n_calls % SHOW_EVERY == 0:
            self._show()
        self._bar.update(self.num_timesteps - self._bar.n)
        return not self._stop.wanted

    def _on_rollout_end(self) -> None:
        elapsed = max(time.monotonic() - self._began, 1e-9)
        self.logger.record("reward_model/queries", self.queries)
        self.logger.record("reward_model/failures", self.failures)
        blocked_s = find_reward(self.training_env).stats.blocked_s
        self.logger.record("reward_model/waiting_share", min(1.0, blocked_s / elapsed))
        self._show()

    @property
    def queries(self) -> int:
        """Queries put to the reward model for training, before a resumed start too."""
        before = 0 if self._state is None else self._state.queries
        return before + find_reward(self.training_env).stats.queries

    @property
    def failures(self) -> int:
        """How many of them got no usable answer."""
        before = 0 if self._state is None else self._state.failures
        return before + find_reward(self.training_env).stats.failures

    def save(self) -> None:
        """Write a checkpoint, unless this very step has one."""
        if self._saved != self.model.num_timesteps:
            counts = {"queries": self.queries, "failures": self.failures}
            save_checkpoint(self._config.out, self.model, **counts)
            self._saved = self.model.num_timesteps

    def finish(self) -> None:
        """Save and evaluate where training has ended."""
        self.save()
        if not self._stop.wanted and self.history.last_step != self.model.num_timesteps:
            self.evaluate()

    def evaluate(self) -> EvalResult:
        """Evaluate the policy as it is; the learner is told nothing."""
        result = self._evaluator(self.model, find_normalise(self.training_env))
        counts = {"queries": self.queries, "failures": self.failures}
        self.history.add(self.model, result, **counts)
        for name, value in (
            ("success_rate", result.success_rate),
            ("mean_length", result.mean_length),
            ("mean_return", result.mean_return),
            ("mean_progress", result.mean_progress),
        ):
            if value is not None:
                self.logger.record(f"eval/{name}", value)
        self.logger.dump(self.model.num_timesteps)
        self._show()
        return result

    def _show(self) -> None:
        shown = {"queries": str(self.queries), "failed": str(self.failures)}
        latest = self.history.latest
        if latest is not None and latest.success_rate is not None:
            shown["success"] = f"{100 * latest.success_rate:.0f} %"
        self._bar.set_postfix(shown, refresh=False)


def _after(step: int, every: int) -> int:
    """The first multiple of ``every`` that lies beyond ``step``."""
    return (step // every + 1) * every if every else 0
