"""PPO in one file, in CleanRL's manner: plain PyTorch on Gymnasium's own vector environments.

By default the embedded model `nano` watches Meta-World's drawer-close. The learner never sees the
simulator's own reward; the true success is only counted, before training and after it:

    pip install -c constraints.txt ".[metaworld]"
    python examples/cleanrl_ppo.py --steps 20000

A process for every sub-environment, and queries that are answered while they step:

    python examples/cleanrl_ppo.py --workers --latency deferred

A run of seconds, without a simulator and with a reward model that answers a constant:

    python examples/cleanrl_ppo.py --env procreward.envs:procreward/Toy-v0 --scorer constant \
        --steps 512

What such loops often get wrong, and how it is done here:

* An episode that was cut off is not over for the learner: its last state's value counts. With
  same-step autoreset that state is in `infos["final_obs"]`; the observation that `step` returned
  belongs to the next episode already.
* An episode that terminated has no such value, and no advantage flows from one episode to another.
* Every step is a transition. (Next-step autoreset, Gymnasium's default, has steps that are none.)
* Deferred rewards are NaN until they are known, and put in before anything is computed from them.
"""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
import tyro
from gymnasium.vector import AutoresetMode
from torch import Tensor, nn

from procreward import VectorProgressReward

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(kw_only=True)
class Args:
    """Settings of a run."""

    env: str = "procreward.envs:procreward/DrawerClose-v0"
    """What `gym.make` takes; flat observations and continuous actions."""
    scorer: str = "nano"
    """Reward model: a preset, a scorer or a model folder."""
    steps: int = 20_000
    """Environment steps, all sub-environments together."""
    num_envs: int = 4
    """Sub-environments; they share one reward model and one call of it a step."""
    workers: bool = False
    """Whether every sub-environment has a process of its own."""
    latency: Literal["blocking", "deferred"] = "blocking"
    """Whether a step waits for its reward, or gets it at the end of the rollout."""
    every_k_steps: int = 4
    """Environment steps between queries."""
    episode_steps: int = 100
    """Environment steps after which an episode is cut off."""
    gamma: float = 0.98
    """Discount of the learner and of the shaping."""
    shaping: Literal["delta", "pbrs", "raw"] = "delta"
    """How progress becomes reward. `pbrs` only guides towards a reward of the task, and there is
    none here: by it alone, all policies are equally good."""
    scale: float = 10.0
    """Factor on the progress."""
    seed: int = 0
    """Seed of the learner and of the first sub-environment."""
    out: Path = Path("runs/cleanrl_ppo")
    """Where the policy, what normalises its observations and the curve go."""
    eval_episodes: int = 20
    """Episodes before and after training in which the true success is counted."""

    rollout_steps: int = 256
    """Steps of every sub-environment between two updates."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatch: int = 256
    """Transitions in a gradient step."""
    learning_rate: float = 3e-4
    """Of Adam."""
    gae_lambda: float = 0.95
    """How far an advantage looks beyond the next state's value."""
    clip: float = 0.2
    """How far a probability may move in one update, as a ratio."""
    value_weight: float = 0.5
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Length that a gradient is cut to."""


class Agent(nn.Module):
    """A Gaussian policy and a critic, with networks of their own."""

    def __init__(self, num_obs: int, num_actions: int) -> None:
        super().__init__()
        self.actor = network(num_obs, num_actions, last_gain=0.01)
        self.critic = network(num_obs, 1, last_gain=1.0)
        self.log_std = nn.Parameter(torch.zeros(num_actions))

    def policy(self, obs: Tensor) -> torch.distributions.Normal:
        """Return the distribution of every action's entries, ``(..., actions)``."""
        return torch.distributions.Normal(self.actor(obs), self.log_std.exp())

    def value(self, obs: Tensor) -> Tensor:
        """Return what the critic expects, ``(...)``."""
        value: Tensor = self.critic(obs)
        return value.squeeze(-1)


def sizes(envs: gym.vector.VectorEnv[Any, Any, Any]) -> tuple[int, int]:
    """Return how many numbers an observation and an action are."""
    spaces = {"observations": envs.single_observation_space, "actions": envs.single_action_space}
    for name, space in spaces.items():
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"{name} must be flat boxes, got {space}; flatten them by a wrapper")
    num_obs, num_actions = (int(space.shape[0]) for space in spaces.values())
    return num_obs, num_actions


def network(num_in: int, num_out: int, *, last_gain: float) -> nn.Sequential:
    """Return two hidden layers of 64, with orthogonal weights."""
    layers = [nn.Linear(num_in, 64), nn.Linear(64, 64), nn.Linear(64, num_out)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, last_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Normaliser:
    """Scales observations by the mean and variance of all that it was shown."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(size), np.zeros(size)

    def see(self, obs: npt.NDArray[Any]) -> None:
        """Take ``(batch, size)`` observations into account."""
        mean, count = obs.mean(axis=0), len(obs)
        apart, total = mean - self.mean, self.count + count
        self.squares += ((obs - mean) ** 2).sum(axis=0) + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def __call__(self, obs: npt.NDArray[Any]) -> Floats:
        """Return observations of any shape ``(..., size)``, scaled and cut to [-10, 10]."""
        std = np.sqrt(self.squares / max(self.count, 1) + 1e-8)
        scaled: Floats = np.clip((obs - self.mean) / std, -10.0, 10.0).astype(np.float32)
        return scaled

    def state_dict(self) -> dict[str, Tensor]:
        """Return what has to be saved beside a policy."""
        arrays = {"count": self.count, "mean": self.mean, "squares": self.squares}
        return {name: torch.as_tensor(value) for name, value in arrays.items()}


class Rollout:
    """What happened in the latest steps; every array is ``(steps, num_envs, ...)``."""

    def __init__(self, steps: int, envs: VectorProgressReward) -> None:
        shape = (steps, envs.num_envs)
        num_obs, num_actions = sizes(envs)
        self.obs = np.zeros((*shape, num_obs), np.float32)
        # The state that a step led to, also where the episode ended with it.
        self.next_obs = np.zeros((*shape, num_obs), np.float32)
        self.actions = np.zeros((*shape, num_actions), np.float32)
        self.log_probs, self.rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.terminated, self.ended = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)


def advantages(
    rewards: Floats,
    values: Floats,
    next_values: Floats,
    terminated: Bools,
    ended: Bools,
    *,
    gamma: float,
    gae_lambda: float,
) -> Floats:
    """Return the generalised advantage estimates of a rollout.

    Args:
        rewards: What each step paid, ``(steps, num_envs)`` as everything here.
        values: What the critic expected before it.
        next_values: What it expected of the state that the step led to: at the end of an episode
            of its last state, not of the next episode's first.
        terminated: Where an episode ended for good: nothing follows.
        ended: Where an episode ended in any way: what follows belongs to another one.
        gamma: The discount.
        gae_lambda: Weight of later steps.
    """
    errors = rewards + gamma * np.where(terminated, 0.0, next_values) - values
    out = np.zeros_like(rewards)
    following = np.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        following = errors[step] + gamma * gae_lambda * np.where(ended[step], 0.0, following)
        out[step] = following
    return out


class Collector:
    """Steps the environments with the policy, and keeps count of rewards and true successes."""

    def __init__(self, envs: VectorProgressReward, normaliser: Normaliser, args: Args) -> None:
        if envs.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            raise ValueError("next-step autoreset would bring steps that are no transitions")
        self.envs, self.normaliser, self.args = envs, normaliser, args
        self.steps = 0
        self.solved = np.zeros(envs.num_envs, np.bool_)
        self.returns = np.zeros(envs.num_envs)
        obs, _ = envs.reset(seed=args.seed)
        normaliser.see(obs)
        self.obs = normaliser(obs)

    def collect(self, agent: Agent, steps: int) -> tuple[Rollout, list[tuple[float, bool]]]:
        """Return the next steps, and the return and success of the episodes that ended in them."""
        rollout, first = Rollout(steps, self.envs), self.steps
        solved = np.zeros(rollout.ended.shape, np.bool_)
        for row in range(steps):
            self._act(agent, rollout, row, solved)
        # Nothing when blocking.
        for late in self.envs.collect(wait=True):
            rollout.rewards[late.step - first, late.index] = late.reward
        if np.isnan(rollout.rewards).any():
            raise ValueError("a reward is missing; nothing may be learnt from this rollout")
        return rollout, self._episodes(rollout, solved)

    def _act(self, agent: Agent, rollout: Rollout, row: int, solved: Bools) -> None:
        with torch.no_grad():
            policy = agent.policy(torch.from_numpy(self.obs))
            action = policy.sample()
            log_prob = policy.log_prob(action).sum(-1)
        space = self.envs.single_action_space
        clipped = np.clip(action.numpy(), space.low, space.high)
        obs, rewards, terminated, truncated, infos = self.envs.step(clipped)
        ended = terminated | truncated
        self.normaliser.see(obs)
        following, last_obs = self.normaliser(obs), obs
        if ended.any():
            last_obs = obs.copy()
            last_obs[ended] = np.stack(infos["final_obs"][ended])
        rollout.obs[row], rollout.next_obs[row] = self.obs, self.normaliser(last_obs)
        rollout.actions[row], rollout.log_probs[row] = action.numpy(), log_prob.numpy()
        rollout.rewards[row], rollout.terminated[row] = rewards, terminated
        rollout.ended[row] = ended
        solved[row] = successes(infos, ended)
        self.obs = following
        self.steps += 1

    def _episodes(self, rollout: Rollout, solved: Bools) -> list[tuple[float, bool]]:
        episodes = []
        for rewards, successful, ended in zip(rollout.rewards, solved, rollout.ended, strict=True):
            self.returns += rewards
            self.solved |= successful
            for index in np.flatnonzero(ended):
                episodes.append((float(self.returns[index]), bool(self.solved[index])))
            self.returns[ended], self.solved[ended] = 0.0, False
        return episodes


def successes(infos: dict[str, Any], ended: Bools) -> Bools:
    """Return where a step solved the task, by `info["success"]`; of an ended episode its last."""
    nowhere = np.zeros(len(ended), np.bool_)
    final = infos.get("final_info", {}).get("success", nowhere)
    return np.where(ended, final, infos.get("success", nowhere)).astype(np.bool_)


def update(
    agent: Agent, optimiser: torch.optim.Optimizer, rollout: Rollout, args: Args
) -> dict[str, float]:
    """Improve policy and critic by one rollout; return the mean losses."""
    obs, actions = torch.from_numpy(rollout.obs), torch.from_numpy(rollout.actions)
    with torch.no_grad():
        values = agent.value(obs).numpy()
        next_values = agent.value(torch.from_numpy(rollout.next_obs)).numpy()
    advantage = advantages(
        rollout.rewards,
        values,
        next_values,
        rollout.terminated,
        rollout.ended,
        gamma=args.gamma,
        gae_lambda=args.gae_lambda,
    )
    batch = [
        part.flatten(0, 1)
        for part in (
            obs,
            actions,
            torch.from_numpy(rollout.log_probs),
            torch.from_numpy(advantage),
            torch.from_numpy(advantage + values),
        )
    ]
    losses: list[tuple[float, float]] = []
    for _ in range(args.epochs):
        for rows in torch.randperm(advantage.size).split(args.minibatch):
            losses.append(gradient_step(agent, optimiser, [part[rows] for part in batch], args))
    policy_loss, value_loss = np.mean(losses, axis=0)
    return {"policy_loss": float(policy_loss), "value_loss": float(value_loss)}


def gradient_step(
    agent: Agent, optimiser: torch.optim.Optimizer, batch: list[Tensor], args: Args
) -> tuple[float, float]:
    """Take one step on a minibatch; return its two losses."""
    obs, actions, old_log_probs, advantage, targets = batch
    if len(advantage) > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = (agent.policy(obs).log_prob(actions).sum(-1) - old_log_probs).exp()
    cut = ratio.clamp(1.0 - args.clip, 1.0 + args.clip)
    policy_loss = -torch.minimum(ratio * advantage, cut * advantage).mean()
    value_loss = (agent.value(obs) - targets).square().mean()
    optimiser.zero_grad()
    (policy_loss + args.value_weight * value_loss).backward()
    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
    optimiser.step()
    return policy_loss.item(), value_loss.item()


def make_envs(args: Args) -> VectorProgressReward:
    """Make the sub-environments and reward them by progress."""
    settings: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}
    if args.workers:
        # What draws frames must not have been forked from a process that has.
        settings["context"] = "spawn"
    envs = gym.make_vec(
        args.env,
        num_envs=args.num_envs,
        vectorization_mode="async" if args.workers else "sync",
        vector_kwargs=settings,
        max_episode_steps=args.episode_steps,
    )
    return VectorProgressReward(
        envs,
        latency=args.latency,
        scorer=args.scorer,
        every_k_steps=args.every_k_steps,
        shaping=args.shaping,
        gamma=args.gamma,
        scale=args.scale,
    )


def evaluate(agent: Agent, normaliser: Normaliser, args: Args) -> float:
    """Return the share of a fixed set of episodes that the policy's mean action solves."""
    env = gym.make(args.env, max_episode_steps=args.episode_steps)
    low, high = env.action_space.low, env.action_space.high
    solved = 0
    for episode in range(args.eval_episodes):
        obs, _ = env.reset(seed=10_000 + episode)
        ended = success = False
        while not (ended or success):
            with torch.no_grad():
                mean = agent.actor(torch.from_numpy(normaliser(obs))).numpy()
            obs, _, terminated, truncated, info = env.step(np.clip(mean, low, high))
            ended, success = terminated or truncated, bool(info.get("success", False))
        solved += success
    env.close()
    return solved / args.eval_episodes


def main(args: Args) -> None:
    """Train, save and say how it went."""
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    envs = make_envs(args)
    num_obs, num_actions = sizes(envs)
    agent, normaliser = Agent(num_obs, num_actions), Normaliser(num_obs)
    optimiser = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    collector = Collector(envs, normaliser, args)
    if args.eval_episodes:
        print(f"success before training: {evaluate(agent, normaliser, args):.2f}")

    curve: list[dict[str, float]] = []
    started = time.perf_counter()
    while collector.steps * args.num_envs < args.steps:
        left = -(-args.steps // args.num_envs) - collector.steps
        rollout, episodes = collector.collect(agent, min(args.rollout_steps, left))
        losses = update(agent, optimiser, rollout, args)
        row: dict[str, float] = {
            "steps": collector.steps * args.num_envs,
            "episodes": len(episodes),
            "success_rate": float(np.mean([success for _, success in episodes] or [np.nan])),
            "mean_return": float(np.mean([paid for paid, _ in episodes] or [np.nan])),
            **losses,
            "seconds": time.perf_counter() - started,
        }
        curve.append(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    envs.close()

    if args.eval_episodes:
        print(f"success after training: {evaluate(agent, normaliser, args):.2f}")
    saved = {"agent": agent.state_dict(), "normaliser": normaliser.state_dict()}
    torch.save(saved, args.out / "policy.pt")
    with (args.out / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)
    print(f"{collector.steps * args.num_envs} steps; policy and curve in {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
