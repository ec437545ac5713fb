"""What rewarding many sub-environments costs, and how long a rollout stands still for the model.

**Overhead**, with the ``constant`` scorer, which answers at once: wrapped over bare steps/s with 1,
8 and 32 sub-environments. A window needs a camera frame now and then, and drawing one costs many
physics steps whoever asks for it; so the bare environment draws **the same frames at the same
steps**. Keys that end in ``_frames_included`` are of the same wrapped runs over a bare environment
that draws nothing: what a user pays in all.

* ``ratio_N``: ``VectorProgressReward`` on robosuite Lift (state observations) in a SyncVectorEnv.
* ``metaworld_ratio_N``: the same on Meta-World's drawer-close, whose step takes a fraction of a
  millisecond: the hard case. ``metaworld_async_ratio_N`` is that with a process for each.
* ``metaworld_sb3_ratio_N``: ``VecProgressReward`` in a DummyVecEnv of Stable-Baselines3.
* ``overhead_us_N``: microseconds that the wrapper adds to a sub-environment's step, where that
  does nothing and its frame is ready; with it the ratio of any other simulator can be worked out.

Bare and wrapped runs alternate on the same simulators with equal seeds and actions, in changing
order; a ratio is the median of the pairwise ratios. Episodes end and are reset inside of what is
timed, in both alike.

**Waiting**, on Meta-World's drawer-close with a process for each sub-environment: the share of a
rollout's wall-clock for which the caller stands still for answers (``stats.blocked_s``), with
``latency="blocking"`` and ``"deferred"``, and how much faster the rollout is deferred. A deferred
one includes the wait for its last rewards. Keys without a suffix are of the model ``--scorer`` on
``--device``; those with ``_sleeping`` of a scorer that computes nothing and sleeps
``--sleeping-ms`` a call, which is what a model on a GPU of its own is like for the caller.

Whatever else the machine does is part of the measurement::

    OMP_NUM_THREADS=1 python benchmarks/vector_overhead.py --out overhead.json
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

import procreward.envs  # noqa: F401  registers
from procreward import VectorProgressReward
from procreward.config import load_preset
from procreward.deferred import Latency
from procreward.integrations.sb3 import OnDemandReset, VecProgressReward
from procreward.schedule import QuerySchedule
from procreward.types import Query, Score

Actions = list[npt.NDArray[np.float32]]
Clock = Callable[[], float]
Timer = Callable[[], float]

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
RESETS = AutoresetMode.DISABLED
SIZE = (128, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Measure what rewarding many sub-environments costs."""

    simulator: str = "procreward/Lift-v0"
    """Environment of ``ratio_N``."""
    fast_simulator: str = "procreward/DrawerClose-v0"
    """Environment of the hard case, and of the rollouts with a model."""
    num_envs: tuple[int, ...] = (1, 8, 32)
    """Sub-environments."""
    worker_envs: int = 8
    """Sub-environments with a process each."""
    episode_steps: int = 20
    """Environment steps after which an episode is cut off."""
    env_steps: int = 128
    """Steps of a run, all sub-environments together; at least ``least_steps`` of each."""
    least_steps: int = 24
    """Least steps of every sub-environment in a run."""
    repetitions: int = 5
    """Runs of each kind, half as many with more than 8 sub-environments; the median counts."""
    every_k_steps: int = 8
    """Environment steps between two queries."""
    scorer: str = "nano"
    """Preset of the model that a rollout waits for."""
    device: str = "auto"
    """Where it runs."""
    sleeping_ms: float = 30.0
    """Milliseconds for which the sleeping scorer sleeps at a call."""
    rollout_steps: int = 128
    """Steps of every sub-environment in a rollout with a model."""
    rollout_episode_steps: int = 100
    """Steps after which its episodes are cut off; each begins with an answer to be waited for."""
    rollouts: int = 4
    """Rollouts of each latency; the median counts."""
    clock: Literal["wall", "cpu"] = "wall"
    """What the ratios of one process are timed by: time that passes, or this process's time on
    processors, which is what to compare on a machine that has other work. Workers and waiting are
    always timed by time that passes."""
    quick: bool = False
    """Whether to do everything once and briefly; the figures are then worth little."""
    out: Path | None = None
    """File for the figures, a flat JSON object."""


class Trivial(gym.Env[Any, Any]):
    """Does nothing at all, at once."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - declared so by Gymnasium
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }
    render_mode = "rgb_array"
    instruction = "do nothing"

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._frame = np.full((128, 128, 3), np.arange(128, dtype=np.uint8)[:, None, None])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Return the same observation as ever."""
        return np.zeros(4), {"success": False}

    def step(self, action: Any) -> Any:
        """Return the same observation as ever."""
        return np.zeros(4), 0.0, False, False, {"success": False}

    def render(self) -> Any:
        """Return the frame that is ready."""
        return self._frame


class Sleeping:
    """Waits for a fixed time a call, however many queries there are, and computes nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Sleep, and return the same answer for every query."""
        time.sleep(self._seconds)
        return [Score(progress=0.5) for _ in queries]

    def describe(self) -> Mapping[str, object]:
        """Return the name and the time."""
        return {"name": "sleeping", "seconds": self._seconds}


def make(env_id: str, episode_steps: int) -> gym.Env[Any, Any]:
    """Make a sub-environment whose episodes end inside of what is timed."""
    return gym.make(f"procreward.envs:{env_id}", max_episode_steps=episode_steps)


def some_actions(space: gym.Space[Any], num_envs: int, steps: int) -> Actions:
    """Return small random actions for all sub-environments."""
    space.seed(0)
    return [
        np.stack([np.float32(0.2) * space.sample() for _ in range(num_envs)]) for _ in range(steps)
    ]


class Drawing:
    """Draws for a bare environment what the wrapper would draw, at the same steps."""

    def __init__(self, draw: Callable[[], object], settings: Settings) -> None:
        self._draw, self._step = draw, 0
        self._schedule = QuerySchedule(settings.every_k_steps, window_frames=1)

    def begin(self) -> None:
        """Note that episodes have begun, without drawing."""
        self._step = 0

    def step(self, *, ended: bool) -> None:
        """Draw the step's frames if some query shows them."""
        self._step += 1
        if ended or self._schedule.wants_frame(self._step):
            self._draw()

    def anew(self) -> None:
        """Draw the first frames of the next episodes."""
        self._step = 0
        self._draw()


def seconds_bare(envs: Any, actions: Actions, drawing: Drawing | None, clock: Clock) -> float:
    """Time a bare vector environment that is reset by its user: same-step autoreset's work."""
    envs.reset(seed=0)
    if drawing is not None:
        drawing.begin()
    started = clock()
    for action in actions:
        _, _, terminated, truncated, _ = envs.step(action)
        over = terminated | truncated
        if drawing is not None:
            drawing.step(ended=bool(over.any()))
        if over.any():
            envs.reset(options={"reset_mask": over})
            if drawing is not None:
                drawing.anew()
    return clock() - started


def seconds_wrapped(envs: Any, actions: Actions, clock: Clock) -> float:
    """Time a wrapped vector environment, which resets its sub-environments itself."""
    envs.reset(seed=0)
    started = clock()
    for action in actions:
        envs.step(action)
    return clock() - started


def seconds_sb3(venv: Any, actions: Actions, drawing: Drawing | None, clock: Clock) -> float:
    """Time a VecEnv of Stable-Baselines3, bare or wrapped; it resets its sub-environments."""
    venv.seed(0)
    venv.reset()
    if drawing is not None:
        drawing.begin()
    started = clock()
    for action in actions:
        _, _, dones, _ = venv.step(action)
        if drawing is not None:
            drawing.step(ended=bool(dones.any()))
            if dones.any():
                drawing.anew()
    return clock() - started


def alternate(runs: dict[str, Timer], repetitions: int) -> dict[str, list[float]]:
    """Time all runs in turn, in changing order; the first round warms up and does not count."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repetitions + 1):
        names = list(runs) if round_number % 2 else list(reversed(runs))
        for name in names:
            elapsed = runs[name]()
            if round_number > 0:
                took[name].append(elapsed)
    return took


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median over the rounds of one time over the other."""
    return statistics.median(one / other for one, other in zip(over, under, strict=True))


def overhead(
    name: str, runs: dict[str, Timer], num_envs: int, steps: int, settings: Settings
) -> dict[str, float]:
    """Time bare, drawing and wrapped runs and return their figures."""
    rounds = settings.repetitions if num_envs <= 8 else (settings.repetitions + 1) // 2
    took = alternate(runs, rounds)
    speed = num_envs * steps / statistics.median(took["bare"])
    return {
        f"{name}_{num_envs}": median_ratio(took["drawing"], took["wrapped"]),
        f"{name}_{num_envs}_frames_included": median_ratio(took["bare"], took["wrapped"]),
        f"{name}_{num_envs}_bare_steps_per_s": speed,
    }


def steps_for(num_envs: int, settings: Settings) -> int:
    """Return how many steps a run has."""
    return max(settings.least_steps, settings.env_steps // num_envs)


def gymnasium_runs(
    envs: Any, draw: Callable[[], object], steps: int, settings: Settings
) -> dict[str, Timer]:
    """Return the three runs of a vector environment and the wrapper above it."""
    actions = some_actions(envs.single_action_space, envs.num_envs, steps)
    drawing, clock = Drawing(draw, settings), CLOCKS[settings.clock]
    wrapped = VectorProgressReward(envs, scorer="constant", every_k_steps=settings.every_k_steps)
    return {
        "bare": partial(seconds_bare, envs, actions, None, clock),
        "drawing": partial(seconds_bare, envs, actions, drawing, clock),
        "wrapped": partial(seconds_wrapped, wrapped, actions, clock),
    }


def sb3_runs(
    subs: Sequence[gym.Env[Any, Any]], draw: Callable[[], object], steps: int, settings: Settings
) -> dict[str, Timer]:
    """Return the three runs of a DummyVecEnv and the wrapper above one with the same simulators."""
    bare = DummyVecEnv([partial(_itself, sub) for sub in subs])
    on_demand = DummyVecEnv([partial(OnDemandReset, sub) for sub in subs])
    wrapped = VecProgressReward(on_demand, scorer="constant", every_k_steps=settings.every_k_steps)
    actions = some_actions(bare.action_space, len(subs), steps)
    drawing, clock = Drawing(draw, settings), CLOCKS[settings.clock]
    return {
        "bare": partial(seconds_sb3, bare, actions, None, clock),
        "drawing": partial(seconds_sb3, bare, actions, drawing, clock),
        "wrapped": partial(seconds_sb3, wrapped, actions, None, clock),
    }


def _itself(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return env


def simulator_figures(
    env_id: str, prefix: str, settings: Settings, *, sb3: bool
) -> dict[str, float]:
    """Return the ratios in one process, for every number of sub-environments."""
    figures: dict[str, float] = {}
    for num_envs in settings.num_envs:
        steps = steps_for(num_envs, settings)
        envs = SyncVectorEnv(
            [partial(make, env_id, settings.episode_steps)] * num_envs, autoreset_mode=RESETS
        )
        subs = envs.envs
        view = subs[0].get_wrapper_attr("default_views")[0]

        def draw(subs: Sequence[Any] = subs, view: str = view) -> None:
            for sub in subs:
                sub.unwrapped.render_camera(view, *SIZE)

        runs = gymnasium_runs(envs, draw, steps, settings)
        figures |= overhead(f"{prefix}ratio", runs, num_envs, steps, settings)
        if sb3:
            runs = sb3_runs(subs, draw, steps, settings)
            figures |= overhead(f"{prefix}sb3_ratio", runs, num_envs, steps, settings)
        envs.close()
    return figures


def trivial_figures(settings: Settings) -> dict[str, float]:
    """Return what the wrapper adds to a sub-environment's step that takes no time."""
    figures: dict[str, float] = {}
    for num_envs in settings.num_envs:
        steps = 10 * steps_for(num_envs, settings)
        envs = SyncVectorEnv(
            [lambda: gym.wrappers.TimeLimit(Trivial(), settings.episode_steps)] * num_envs,
            autoreset_mode=RESETS,
        )
        took = alternate(gymnasium_runs(envs, lambda: None, steps, settings), settings.repetitions)
        extra = statistics.median(
            wrapped - bare for wrapped, bare in zip(took["wrapped"], took["drawing"], strict=True)
        )
        figures[f"overhead_us_{num_envs}"] = 1e6 * extra / (steps * num_envs)
        envs.close()
    return figures


def worker_figures(settings: Settings) -> dict[str, float]:
    """Return the ratio with worker processes, and the waiting of rollouts with a model."""
    num_envs, env_id = settings.worker_envs, settings.fast_simulator
    settings = replace(settings, clock="wall")
    # What draws frames must not have been forked from a process that has.
    envs = AsyncVectorEnv(
        [partial(make, env_id, settings.rollout_episode_steps)] * num_envs,
        context="spawn",
        autoreset_mode=RESETS,
    )
    try:
        (view,) = envs.get_attr("default_views")[0]
        steps = steps_for(num_envs, settings)
        runs = gymnasium_runs(
            envs, partial(envs.call, "render_camera", view, *SIZE), steps, settings
        )
        figures = overhead("metaworld_async_ratio", runs, num_envs, steps, settings)
        model = {"preset": settings.scorer, "device": settings.device}
        figures |= waiting_figures(envs, model, "", settings)
        sleeping = Sleeping(settings.sleeping_ms / 1e3)
        return figures | waiting_figures(envs, sleeping, "_sleeping", settings)
    finally:
        envs.close()


def waiting_figures(
    envs: AsyncVectorEnv, scorer: Any, suffix: str, settings: Settings
) -> dict[str, float]:
    """Return how rollouts with a model go, blocking and deferred in turn."""
    actions = some_actions(envs.single_action_space, envs.num_envs, settings.rollout_steps)
    # The same frames for both models.
    preset = load_preset(settings.scorer)
    waited: dict[Latency, list[float]] = {"blocking": [], "deferred": []}
    runs: dict[str, Timer] = {}
    for latency, kept in waited.items():
        wrapped = VectorProgressReward(
            envs,
            latency=latency,
            scorer=scorer,
            every_k_steps=settings.every_k_steps,
            window_frames=preset.window_frames,
            frame_stride_steps=preset.frame_stride_steps,
            frame_size=preset.frame_size,
        )
        runs[latency] = partial(seconds_rollout, wrapped, actions, kept)
    took = alternate(runs, settings.rollouts)
    figures = {"deferred_speedup" + suffix: median_ratio(took["blocking"], took["deferred"])}
    for latency, kept in waited.items():
        shares = median_ratio(kept[1:], took[latency])
        figures[f"waiting_share_{latency}{suffix}"] = shares
        millis = 1e3 * statistics.median(took[latency]) / settings.rollout_steps
        figures[f"ms_per_step_{latency}{suffix}"] = millis
    return figures


def seconds_rollout(envs: Any, actions: Actions, waited: list[float]) -> float:
    """Time a rollout until all its rewards are there; note for how long it stood still."""
    envs.reset(seed=0)
    # The first potentials are waited for by both, as they are once an episode.
    envs.collect(wait=True)
    before, started = envs.stats.blocked_s, time.perf_counter()
    for action in actions:
        envs.step(action)
    envs.collect(wait=True)
    elapsed = time.perf_counter() - started
    waited.append(envs.stats.blocked_s - before)
    return elapsed


def shortened(settings: Settings) -> Settings:
    """Return settings for a run that only shows that everything works."""
    return replace(
        settings,
        num_envs=settings.num_envs[:2],
        worker_envs=2,
        episode_steps=10,
        env_steps=12,
        least_steps=12,
        repetitions=1,
        sleeping_ms=5.0,
        rollout_steps=12,
        rollout_episode_steps=10,
        rollouts=1,
    )


def main(settings: Settings) -> dict[str, float]:
    """Run everything and return the figures."""
    if settings.quick:
        settings = shortened(settings)
    # The rollouts first: the parent has drawn nothing yet and its caches are as small as theirs.
    figures = worker_figures(settings)
    figures |= trivial_figures(settings)
    figures |= simulator_figures(settings.fast_simulator, "metaworld_", settings, sb3=True)
    figures |= simulator_figures(settings.simulator, "", settings, sb3=False)
    figures |= {
        "cpu_clock": float(settings.clock == "cpu"),
        "worker_envs": float(settings.worker_envs),
        "episode_steps": float(settings.episode_steps),
        "every_k_steps": float(settings.every_k_steps),
        "sleeping_ms": settings.sleeping_ms,
        "rollout_steps": float(settings.rollout_steps),
        "rollout_episode_steps": float(settings.rollout_episode_steps),
        "repetitions": float(settings.repetitions),
        "rollouts": float(settings.rollouts),
    }
    for name, value in figures.items():
        print(f"{name:45} {value:12.4f}")
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        settings.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
