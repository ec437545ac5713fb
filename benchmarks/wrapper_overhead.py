"""How much the wrapper itself costs: wrapped steps/s over bare steps/s.

The ``constant`` scorer answers at once, so what is left is the wrapper: schedule, buffer, query,
shaping, completion and info. Three comparisons in one run:

* ``lift_ratio``: robosuite Lift. A window needs a camera frame now and then, and rendering one
  costs several physics steps whoever asks for it; so the bare environment renders **the same
  frames at the same steps**. This is the pure overhead, the figure with the goal of 0.98.
* ``lift_ratio_frames_included``: the same wrapped run over a bare Lift that renders nothing. This
  is what a user pays in all; ``--every-k-steps`` and the window decide it.
* ``trivial_ratio``: an environment whose step does nothing and whose frame is ready; the worst
  case, also given as ``trivial_overhead_us`` a step.

Bare and wrapped runs alternate on one and the same environment, episode by episode with equal
seeds and actions, in changing order; each ratio is the median of the pairwise ratios. Whatever
else the machine does is part of the measurement, so use ``taskset`` and a quiet machine.

::

    OMP_NUM_THREADS=1 python benchmarks/wrapper_overhead.py --out overhead.json
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import tyro

import procreward.envs  # noqa: F401  registers
from procreward.schedule import QuerySchedule
from procreward.wrapper import ProgressReward


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure the wrapper's overhead."""

    lift_steps: int = 100
    """Steps of an episode of Lift."""
    trivial_steps: int = 20_000
    """Steps of an episode of the trivial environment."""
    repetitions: int = 15
    """Episodes of each run; the median counts."""
    every_k_steps: int = 8
    """Environment steps between two queries."""
    window_frames: int = 1
    """Frames in a query; more of them need more camera frames."""
    out: Path | None = None
    """File for the figures, a flat JSON object."""


class Trivial(gym.Env[Any, Any]):
    """Does nothing at all, at once."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_mode = "rgb_array"
    instruction = "do nothing"

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._observation = np.zeros(4)
        self._frame = np.full((128, 128, 3), np.arange(128, dtype=np.uint8)[:, None, None])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Return the same observation as ever."""
        return self._observation, {"success": False}

    def step(self, action: Any) -> Any:
        """Return the same observation as ever."""
        return self._observation, 0.0, False, False, {"success": False}

    def render(self) -> Any:
        """Return the frame that is ready."""
        return self._frame


def seconds(env: gym.Env[Any, Any], actions: Any, grab: Callable[[int], None] | None) -> float:
    """Time one episode: reset with its first frame excluded, every step included."""
    env.reset(seed=0)
    started = time.perf_counter()
    for number, action in enumerate(actions, start=1):
        env.step(action)
        if grab is not None:
            grab(number)
    return time.perf_counter() - started


def grabber(render: Callable[[], Any], settings: Settings) -> Callable[[int], None]:
    """Return what renders the frames the wrapper would render, at the same steps."""
    schedule = QuerySchedule(
        settings.every_k_steps, window_frames=settings.window_frames, frame_stride_steps=1
    )

    def grab(step: int) -> None:
        if schedule.wants_frame(step):
            render()

    return grab


def alternate(runs: dict[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Time all runs in turn, in changing order; the first round warms up and does not count."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repetitions + 1):
        names = list(runs) if round_number % 2 else list(reversed(runs))
        for name in names:
            elapsed = runs[name]()
            if round_number > 0:
                took[name].append(elapsed)
    return took


def ratio(took: dict[str, list[float]], wrapped: str, bare: str) -> float:
    """Return the median over the rounds of wrapped speed over bare speed."""
    pairs = zip(took[wrapped], took[bare], strict=True)
    return statistics.median(base / full for full, base in pairs)


def measure(env: gym.Env[Any, Any], steps: int, settings: Settings, render: Any) -> Any:
    """Time the bare, the rendering and the wrapped environment."""
    env.action_space.seed(0)
    actions = [0.2 * env.action_space.sample() for _ in range(steps)]
    wrapped = ProgressReward(
        env,
        scorer="constant",
        every_k_steps=settings.every_k_steps,
        window_frames=settings.window_frames,
    )
    grab = grabber(render, settings)
    return alternate(
        {
            "bare": lambda: seconds(env, actions, None),
            "rendering": lambda: seconds(env, actions, grab),
            "wrapped": lambda: seconds(wrapped, actions, None),
        },
        settings.repetitions,
    )


def main(settings: Settings) -> dict[str, float]:
    """Run everything and return the figures."""
    steps = settings.trivial_steps
    trivial = measure(Trivial(), steps, settings, lambda: None)
    overhead_s = statistics.median(trivial["wrapped"]) - statistics.median(trivial["bare"])

    # No time limit: an episode that ends would have to be reset inside the measurement.
    lift = gym.make("procreward/Lift-v0", max_episode_steps=settings.lift_steps + 1)
    base: Any = lift.unwrapped
    took = measure(
        lift,
        settings.lift_steps,
        settings,
        lambda: base.render_camera(base.default_views[0], 128, 128),
    )
    lift.close()
    figures = {
        "lift_ratio": ratio(took, "wrapped", "rendering"),
        "lift_ratio_frames_included": ratio(took, "wrapped", "bare"),
        "trivial_ratio": ratio(trivial, "wrapped", "rendering"),
        "trivial_overhead_us": 1e6 * overhead_s / steps,
        "lift_bare_steps_per_s": settings.lift_steps / statistics.median(took["bare"]),
        "lift_rendering_steps_per_s": settings.lift_steps / statistics.median(took["rendering"]),
        "lift_wrapped_steps_per_s": settings.lift_steps / statistics.median(took["wrapped"]),
        "trivial_bare_steps_per_s": steps / statistics.median(trivial["bare"]),
        "trivial_wrapped_steps_per_s": steps / statistics.median(trivial["wrapped"]),
        "every_k_steps": float(settings.every_k_steps),
        "window_frames": float(settings.window_frames),
        "repetitions": float(settings.repetitions),
    }
    for name, value in figures.items():
        print(f"{name:30} {value:12.4f}")
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
