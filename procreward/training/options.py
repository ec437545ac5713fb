"""``procreward train``: its options, and the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TrainOptions", "run_train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Train a policy whose reward comes from a model; checkpoints, curves, a video."""

    config: str
    """A shipped config by name, such as "toy-ppo", or the path of a YAML file."""
    out: Path | None = None
    """Folder of the run; without it, the config's."""
    total_steps: int | None = None
    """Environment steps, all sub-environments together; without it, the config's."""
    num_envs: int | None = None
    """Sub-environments; without it, the config's."""
    seed: int | None = None
    """Seed of the learner and of the first sub-environment; without it, the config's."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder."""
    dry_run: bool = False
    """Check everything, say what would be done and what a query costs, and write nothing."""


def run_train(options: TrainOptions, say: Callable[[str], None]) -> int:
    """Run the command.

    Args:
        options: What the user asked for.
        say: Takes every block of text meant for the user.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.

    Raises:
        ProcrewardError: As :func:`procreward.training.run.train` says.
    """
    from procreward.training.config import load_train_config
    from procreward.training.run import train

    config = load_train_config(
        options.config,
        out=options.out,
        total_steps=options.total_steps,
        num_envs=options.num_envs,
        seed=options.seed,
    )
    if not options.dry_run:
        return 130 if train(config, say, resume=options.resume).interrupted else 0
    from procreward.training.plan import format_plan, measure_query, prepare

    setup = prepare(config, resume=options.resume, dry=True)
    try:
        say(format_plan(setup.plan))
        for note in setup.plan.notes:
            say(f"note: {note}")
        say(measure_query(setup))
    finally:
        setup.close()
    return 0
