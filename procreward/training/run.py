"""A whole training run.

* :func:`train` - from settings to a folder with policy, checkpoints, curves and a video.
* :class:`TrainReport` - what came out.

::

    OUT/config.yaml         every setting; `procreward train --config OUT/config.yaml --resume`
        checkpoints/        the newest two, see procreward.training.checkpoints
        best/               policy.zip, normalisation.pkl and best.json of the best evaluation
        evaluations.jsonl   true success and more, one evaluation a line
        learning_curve.png  the same as a picture
        monitor.csv         every episode that was learned from, by our reward
        tensorboard/        all curves; `tensorboard --logdir OUT`
        videos/             filmed episodes of the last policy, with what the model saw
        episodes.jsonl      the same in numbers
        progress.png        the same as curves
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from procreward.errors import ProcrewardError
from procreward.report.records import atomic_path
from procreward.training.config import TrainConfig, config_mapping
from procreward.training.history import (
    Evaluation,
    History,
    format_evaluations,
    write_learning_curve,
)

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

    from procreward.training.callback import RunCallback, StopSignal
    from procreward.training.plan import TrainSetup

__all__ = ["TrainReport", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a run came to.

    Attributes:
        out: Its folder.
        steps: Environment steps taken, those before a resumed start included.
        interrupted: Whether Ctrl-C ended it.
        evaluations: The evaluations in order, those before a resumed start included.
        best: The best of them, or None if there was none.
        queries: Queries put to the reward model for training, likewise.
        failures: How many of them got no usable answer.
        files: What was written at the end.
    """

    out: Path
    steps: int
    interrupted: bool
    evaluations: tuple[Evaluation, ...]
    best: Evaluation | None
    queries: int
    failures: int
    files: tuple[Path, ...]


def train(config: TrainConfig, say: Callable[[str], None], *, resume: bool = False) -> TrainReport:
    """Train, evaluate, save and show.

    With ``reward.env_reward_weight`` 0 nothing of the simulator's reward reaches the learner; the
    true success of evaluations chooses ``best/`` and is shown, and is not learned from.

    With ``resume`` the run goes on from the newest checkpoint. Parameters, optimisers,
    normalisation, replay buffer, counters and the generators that the learner draws from are as
    they were. Simulators cannot be restored: their episodes begin anew, from seeds that follow
    from the seed and the step of the checkpoint. So a resumed run is reproducible, and equals an
    uninterrupted one exactly where a checkpoint falls on the end of an episode in every
    sub-environment and episodes all begin alike, else only in kind. What an interrupted PPO had
    collected of a rollout is counted as steps, and lost; so are, with ``latency: deferred``, the
    newest ``max_lag_steps`` transitions that SAC's replay buffer had not yet taken in.

    Args:
        config: The settings.
        say: Takes every block of text meant for the user.
        resume: Whether to go on in ``config.out``.

    Returns:
        What came out.

    Raises:
        ProcrewardError: As :func:`procreward.training.plan.prepare` says, before any work; later
            only if the reward model fails for good or a worker process dies.
    """
    from procreward.training.callback import StopSignal
    from procreward.training.plan import format_plan, prepare

    setup = prepare(config, resume=resume)
    try:
        say(format_plan(setup.plan))
        for note in setup.plan.notes:
            say(f"note: {note}")
        _write_config(config)
        stop = StopSignal()
        try:
            with stop.listening(say):
                callback = _learn(config, setup, stop)
        except ProcrewardError:
            _say_how_to_go_on(config, say)
            raise
        report = _finish(config, setup, callback, stop)
    finally:
        setup.close()
    _say_result(report, say)
    if report.interrupted:
        _say_how_to_go_on(config, say)
    return report


def _learn(config: TrainConfig, setup: TrainSetup, stop: StopSignal) -> RunCallback:
    from stable_baselines3.common.logger import configure
    from tqdm import tqdm

    from procreward.training.callback import RunCallback

    formats = ["tensorboard"] if importlib.util.find_spec("tensorboard") is not None else []
    model, plan = setup.model, setup.plan
    model.set_logger(configure(str(config.out / "tensorboard"), formats))
    history = History(config.out, up_to=plan.start or None)
    try:
        with tqdm(total=plan.steps, initial=plan.start, unit="step", mininterval=0.5) as bar:
            callback = RunCallback(config, setup.evaluator, history, bar, stop, state=setup.state)
            # The rewards are told first: what is shown and saved knows them then.
            callbacks = [*_rewards(config, setup), callback]
            model.learn(
                config.total_steps - plan.start, callbacks, reset_num_timesteps=not plan.start
            )
            callback.finish()
    finally:
        model.logger.close()
    return callback


def _rewards(config: TrainConfig, setup: TrainSetup) -> list[BaseCallback]:
    """What tells the learner its rewards, where they come later."""
    if config.latency == "blocking":
        return []
    from procreward.integrations.sb3 import DeferredRewards

    return [DeferredRewards(monitor_file=None if setup.monitor is None else str(setup.monitor))]


def _finish(
    config: TrainConfig, setup: TrainSetup, callback: RunCallback, stop: StopSignal
) -> TrainReport:
    """Film, draw and sum up."""
    from procreward.training.environments import find_normalise
    from procreward.training.film import film

    files: list[Path] = []
    history = callback.history
    if config.eval.video and not stop.wanted:
        files += film(config, setup.model, find_normalise(setup.venv))
    if history.entries and importlib.util.find_spec("matplotlib") is not None:
        files.append(config.out / "learning_curve.png")
        title = f"{config.env.rpartition(':')[2]}, {config.algorithm.upper()}"
        write_learning_curve(history.entries, files[-1], title=title)
    return TrainReport(
        out=config.out,
        steps=setup.model.num_timesteps,
        interrupted=stop.wanted,
        evaluations=tuple(history.entries),
        best=history.best,
        queries=callback.queries,
        failures=callback.failures,
        files=tuple(files),
    )


def _write_config(config: TrainConfig) -> None:
    import yaml

    text = yaml.safe_dump(config_mapping(config), sort_keys=False, allow_unicode=True)
    with atomic_path(config.out / "config.yaml") as staged:
        staged.write_text(text, encoding="utf-8")


def _say_result(report: TrainReport, say: Callable[[str], None]) -> None:
    if report.evaluations:
        say(format_evaluations(report.evaluations))
    if report.best is not None:
        say(f"\nbest: step {report.best.step}, {report.out / 'best'}")
    say(f"{report.steps} steps, {report.queries} queries, {report.failures} failed")
    if report.files:
        say("written:\n" + "\n".join(f"  {path}" for path in report.files))


def _say_how_to_go_on(config: TrainConfig, say: Callable[[str], None]) -> None:
    from procreward.training.checkpoints import newest_checkpoint

    newest = newest_checkpoint(config.out)
    if newest is not None:
        say(
            f"checkpoint of step {newest.steps} saved; go on with\n"
            f"  procreward train --config {config.out / 'config.yaml'} --resume"
        )
