"""SAC of Stable-Baselines3 on a task that is rewarded by its camera alone.

By default the embedded model `nano` watches Meta-World's drawer-close, and the learner never sees
the simulator's own reward:

    pip install -c constraints.txt ".[sb3,metaworld]"
    python examples/sb3_sac.py --steps 20000

A run of seconds, without a simulator and with a reward model that answers a constant:

    python examples/sb3_sac.py --env procreward.envs:procreward/Toy-v0 --scorer constant --steps 512
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from procreward.integrations.sb3 import LearnerCheck, make_progress_vec_env


@dataclass(kw_only=True)
class Args:
    """Settings of a run."""

    env: str = "procreward.envs:procreward/DrawerClose-v0"
    """What `gym.make` takes; `MODULE:ID` imports the module first, in worker processes too."""
    scorer: str = "nano"
    """Reward model: a preset, a scorer or a model folder."""
    steps: int = 20_000
    """Environment steps, all sub-environments together."""
    num_envs: int = 2
    """Sub-environments; they share one reward model and one call of it a step."""
    workers: bool = False
    """Whether every sub-environment has a process of its own."""
    every_k_steps: int = 4
    """Environment steps between queries."""
    episode_steps: int = 100
    """Environment steps after which an episode is cut off."""
    gamma: float = 0.98
    """Discount of the learner and of the shaping."""
    scale: float = 10.0
    """Factor on the progress."""
    seed: int = 0
    """Seed of the learner and of the first sub-environment."""
    out: Path = Path("runs/sb3_sac")
    """Where the policy, what normalises its observations and the monitor's CSV go."""


def main(args: Args) -> None:
    """Train, save and say how it went."""
    args.out.mkdir(parents=True, exist_ok=True)
    venv = make_progress_vec_env(
        args.env,
        args.num_envs,
        seed=args.seed,
        env_kwargs={"max_episode_steps": args.episode_steps},
        vec_env_cls=SubprocVecEnv if args.workers else DummyVecEnv,
        monitor_file=str(args.out / "monitor.csv"),
        scorer=args.scorer,
        every_k_steps=args.every_k_steps,
        # Without a bonus or the simulator's reward, "pbrs" would set no task.
        shaping="delta",
        gamma=args.gamma,
        scale=args.scale,
    )
    # Observations only: a normalised reward would be no shaping any more.
    venv = VecNormalize(venv, norm_reward=False)
    model = SAC(
        "MlpPolicy",
        venv,
        learning_starts=min(1000, args.steps // 2),
        gamma=args.gamma,
        seed=args.seed,
        device="cpu",
        verbose=1,
    )
    model.learn(args.steps, callback=LearnerCheck())
    model.save(args.out / "policy.zip")
    venv.save(str(args.out / "normalisation.pkl"))
    print(f"{model.num_timesteps} steps; policy and monitor in {args.out}")
    venv.close()


if __name__ == "__main__":
    main(tyro.cli(Args))
