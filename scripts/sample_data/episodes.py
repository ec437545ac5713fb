"""Episodes to write: scripted robosuite ones, and drawn ones that need no simulator."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.environments import make_env
from procreward.envs.experts import make_expert

__all__ = ["SampleEpisode", "draw_episodes", "record_episodes"]

VIEWS = ("agentview", "robot0_eye_in_hand")
PLAYED = (
    ("Lift", "expert"),
    ("Lift", "fail"),
    ("Lift", "retry"),
    ("Stack", "expert"),
    ("Stack", "fail"),
    ("Stack", "retry"),
)
# Numbers at the front of an observation that are the robot's own; the task's objects follow.
_OWN = 32
# Steps that an episode goes on for once the task is done.
_AFTER_SUCCESS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleEpisode:
    """An episode in plain arrays, with T actions and T + 1 states.

    Attributes:
        task: Name of the robosuite task, such as ``"Lift"``.
        kind: Kind of episode, such as ``"expert"``.
        instruction: The task in words.
        seed: Seed of the reset and of the expert.
        fps: States per second.
        frames: View name to ``(T + 1, height, width, 3) uint8``, upright RGB.
        observations: ``(T + 1, n) float64``, what a policy sees beside the pictures: the robot's
            own joints, hand and gripper, the same numbers for every task.
        actions: ``(T, 7) float32``.
        rewards: ``(T,) float64``, what the environment paid for reaching the next state.
        success: ``(T + 1,) bool``, whether the task is done in a state.
        sim_states: ``(T + 1, m) float64``, MuJoCo's time, positions and velocities.
        model_xml: MuJoCo's model, empty in drawn episodes.
        env_args: robomimic's ``env_args`` as JSON.
    """

    task: str
    kind: str
    instruction: str
    seed: int
    fps: int
    frames: dict[str, npt.NDArray[np.uint8]]
    observations: npt.NDArray[np.float64]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float64]
    success: npt.NDArray[np.bool_]
    sim_states: npt.NDArray[np.float64]
    model_xml: str
    env_args: str

    @property
    def length(self) -> int:
        """Actions, T."""
        return len(self.actions)

    @property
    def terminated(self) -> bool:
        """Whether the last state is one in which the task is done."""
        return bool(self.success[-1])


def record_episodes(
    *,
    played: tuple[tuple[str, str], ...] = PLAYED,
    views: tuple[str, ...] = VIEWS,
    size: int = 128,
    seed: int = 0,
    max_steps: int | None = None,
    on_step: Callable[[], object] | None = None,
) -> list[SampleEpisode]:
    """Play scripted robosuite episodes; the same arguments give the same episodes.

    An episode ends soon after the task is done, or at the environment's horizon.

    Args:
        played: Pairs of task and kind of episode, one for each episode.
        views: Cameras.
        size: Width and height of the pictures in pixels.
        seed: Seed of the first episode; they count up from it.
        max_steps: Time limit in steps, or None for the registered one.
        on_step: Called after every step, for a progress bar.

    Returns:
        The episodes, in order.
    """
    episodes = []
    envs = {
        task: make_env(f"procreward/{task}-v0", max_steps=max_steps)
        for task in dict.fromkeys(task for task, _ in played)
    }
    try:
        for number, (task, kind) in enumerate(played):
            episodes.append(_record(envs[task], task, kind, seed + number, views, size, on_step))
    finally:
        for env in envs.values():
            env.close()
    return episodes


def _record(
    env: Any,
    task: str,
    kind: str,
    seed: int,
    views: tuple[str, ...],
    size: int,
    on_step: Callable[[], object] | None,
) -> SampleEpisode:
    base = env.unwrapped
    expert = make_expert(f"procreward/{task}-v0", kind, seed)
    observation, info = env.reset(seed=seed)
    expert.reset(env)

    def look() -> tuple[dict[str, npt.NDArray[np.uint8]], npt.NDArray[np.float64]]:
        pictures = {view: base.render_camera(view, size, size).copy() for view in views}
        return pictures, base._sim_env.sim.get_state().flatten().copy()

    seen, observations, success = [look()], [observation], [bool(info["success"])]
    actions: list[npt.NDArray[np.float32]] = []
    rewards: list[float] = []
    truncated = False
    while not (truncated or all(success[-_AFTER_SUCCESS:])):
        action = np.asarray(expert.act(env), np.float32)
        observation, reward, _, truncated, info = env.step(action)
        seen.append(look())
        observations.append(observation)
        success.append(bool(info["success"]))
        actions.append(action)
        rewards.append(float(reward))
        if on_step is not None:
            on_step()
    return SampleEpisode(
        task=task,
        kind=kind,
        instruction=base.instruction,
        seed=seed,
        fps=int(base.metadata["render_fps"]),
        frames={view: np.stack([pictures[view] for pictures, _ in seen]) for view in views},
        observations=np.stack(observations)[:, :_OWN],
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float64),
        success=np.array(success),
        sim_states=np.stack([state for _, state in seen]),
        model_xml=base._sim_env.sim.model.get_xml(),
        env_args=_env_args(task),
    )


def draw_episodes(
    lengths: tuple[int, ...] = (6, 9, 7),
    *,
    views: tuple[str, ...] = VIEWS,
    size: int = 64,
    fps: int = 20,
) -> list[SampleEpisode]:
    """Draw episodes in which a square crosses the picture, for tests without a simulator.

    Every second episode fails: its square turns back half-way. The background tells the view and
    the episode, the square's column the step, so that a picture can be recognised.

    Args:
        lengths: Actions of each episode.
        views: Names of the views.
        size: Width and height of the pictures in pixels, at least 16.
        fps: Pictures per second.
    """
    return [_draw(number, length, views, size, fps) for number, length in enumerate(lengths)]


def _draw(number: int, length: int, views: tuple[str, ...], size: int, fps: int) -> SampleEpisode:
    steps = np.arange(length + 1)
    failed = number % 2 == 1
    done = np.minimum(steps, length - steps) / length if failed else steps / length
    side = size // 8
    frames = {}
    for place, view in enumerate(views):
        pictures = np.empty((length + 1, size, size, 3), np.uint8)
        pictures[...] = (40 + 30 * (number % 4), 60 + 60 * place, 90)
        for step, share in enumerate(done):
            left = round(float(share) * (size - side))
            pictures[step, size // 2 : size // 2 + side, left : left + side] = (250, 240, 30)
        frames[view] = pictures
    rng = np.random.default_rng(number)
    success = done >= 1.0
    return SampleEpisode(
        task="Lift",
        kind="fail" if failed else "expert",
        instruction=("pick up the cube", "stack the cubes")[number % 2],
        seed=number,
        fps=fps,
        frames=frames,
        observations=np.round(rng.normal(size=(length + 1, 5)), 3),
        actions=np.round(rng.uniform(-1, 1, (length, 7)), 3).astype(np.float32),
        rewards=success[1:].astype(np.float64),
        success=success,
        sim_states=np.round(rng.normal(size=(length + 1, 6)), 3),
        model_xml="",
        env_args=_env_args("Lift"),
    )


def _env_args(task: str) -> str:
    """Return robomimic's description of the environment."""
    kwargs = {
        "robots": "Panda",
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "use_camera_obs": True,
        "ignore_done": True,
        "control_freq": 20,
    }
    described = {"env_name": task, "type": 1, "env_version": "1.5.2", "env_kwargs": kwargs}
    return json.dumps(described)
