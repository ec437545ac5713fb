"""The CPU jobs: small models in float32 on one thread, whose answers are compared to the letter.

* ``procvlm_env1``, ``procvlm_env4``, ``procvlm_env16`` - the shipped nano, a window of 8 frames
  that slides by one step over rendered episodes of Lift; ``procvlm_preset_...`` is its own window.
* ``judge_two_views`` - a random Qwen3-VL, 64 frames of 224x224 in two views, by 8 steps.
* ``progresslm_visual`` - a Qwen2.5-VL trained in the run, 8 key frames to compare with, by 8 steps.
* ``topreward`` - a random Qwen3-VL, 16 frames of 224x224, by 2 steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from procreward.bench.baselines import Batched, OneByOne
from procreward.bench.episodes import lift_recordings
from procreward.bench.frames import Clips, Episode, moving_frames, sliding
from procreward.bench.measure import Figures, Goal, Job, run_job
from procreward.bench.progress_job import progress_material
from procreward.bench.progress_twin import TrainSettings
from procreward.bench.sizes import JUDGE_TWIN
from procreward.bench.twins import (
    TwinSize,
    make_tokenizer,
    qwen3_config,
    random_model,
    save_twin,
    train_tokenizer,
)
from procreward.engine import Engine
from procreward.engine.fast import FastEngine
from procreward.engine.loading import LoadedModel, load_model
from procreward.engine.reference import ReferenceEngine
from procreward.scorers.completion_judge import PROMPT as JUDGE_PROMPT
from procreward.scorers.completion_judge import CompletionJudge
from procreward.scorers.procvlm import ProcVLM, ProcVLMOptions
from procreward.scorers.progresslm import ProgressLM
from procreward.scorers.topreward import PROMPT as TOPREWARD_PROMPT
from procreward.scorers.topreward import TOPReward

if TYPE_CHECKING:
    from procreward.types import Query, Scorer

__all__ = ["CPU_GOALS", "CPU_JOBS", "CpuSettings"]

_WORDS = (
    JUDGE_PROMPT.replace("{instruction}", "put the mug from the counter into the open drawer"),
    TOPREWARD_PROMPT.replace("{instruction}", "The robot closes the cabinet door."),
    "user\n assistant\n complete not complete True False 0.1 seconds",
)
_INSTRUCTION = "Put the mug from the counter into the open drawer."


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSettings:
    """How much is measured.

    Attributes:
        cache: Folder for rendered episodes and for what was trained.
        moments: Most moments of a job; None for its own number.
        episodes: Episodes of Lift that are rendered.
        steps: Most steps of each.
        training: How ProgressLM's twin is trained, or None for how it is by default.
        judge_size: Dimensions of the judge.
        judge_frames: Frames in the judge's window, an even number.
    """

    cache: Path
    moments: int | None = None
    episodes: int = 24
    steps: int = 120
    training: TrainSettings | None = None
    judge_size: TwinSize = JUDGE_TWIN
    judge_frames: int = 64


Build = Callable[[Engine], "Scorer"]


def _job(
    name: str,
    loaded: LoadedModel,
    build: Build,
    moments: Sequence[list[Query]],
    settings: CpuSettings,
    *,
    every: int,
) -> Job:
    """Put the three paths together; the first moment's questions, renamed, warm them up."""
    engine = FastEngine(loaded)
    reference = ReferenceEngine(loaded)
    most = settings.moments or len(moments)
    return Job(
        name=name,
        engine=engine,
        ours=build(engine),
        documented=build(OneByOne(reference)),
        batched=build(Batched(loaded)),
        moments=moments[:most],
        warm_up=[
            dataclasses.replace(query, stream=f"warm-up/{query.stream}") for query in moments[0]
        ],
        every=min(every, most),
    )


def procvlm_job(environments: int, settings: CpuSettings, *, preset: bool = False) -> Job:
    """The shipped nano over rendered episodes.

    Args:
        environments: Environments that ask at once.
        settings: How much.
        preset: Whether the window is nano's own, 4 frames 4 steps apart, instead of 8 neighbours.
    """
    window, stride = (4, 4) if preset else (8, 1)
    recordings = lift_recordings(settings.episodes, settings.steps, settings.cache)
    episodes = [one.episode for one in recordings]
    each = max(2, 6 // environments)
    options = ProcVLMOptions(max_new_tokens=48)
    return _job(
        f"procvlm_{'preset_' if preset else ''}env{environments}",
        load_model("nano", device="cpu", threads=1),
        lambda engine: ProcVLM(engine, options),
        list(sliding(_share_out(episodes, environments, each), window=window, stride=stride)),
        settings,
        every=4 if environments < 16 else 8,
    )


def _share_out(episodes: Sequence[Episode], environments: int, each: int) -> Clips:
    """Give every environment its episodes; where one is used again it gets another name."""
    return [
        [
            dataclasses.replace(
                episodes[(index + environments * lap) % len(episodes)], name=f"env{index}/{lap}"
            )
            for lap in range(each)
        ]
        for index in range(environments)
    ]


def _twin(size: TwinSize, settings: CpuSettings, name: str) -> LoadedModel:
    """Write a random Qwen3-VL and load it as users load theirs."""
    tokenizer = make_tokenizer(train_tokenizer(_WORDS * 4, 500))
    model = random_model(qwen3_config(tokenizer, size), seed=0)
    folder = save_twin(settings.cache / f"twin-{name}", model, tokenizer)
    return load_model(str(folder), device="cpu", dtype="float32", threads=1)


def judge_job(settings: CpuSettings) -> Job:
    """Two views of a long clip.

    Args:
        settings: How much.
    """
    frames, step = settings.judge_frames, 8
    moments = 24
    episode = Episode(
        name="judge",
        frames={
            view: moving_frames(frames + step * moments, (224, 224), seed=seed)
            for seed, view in enumerate(("right", "left"))
        },
        instruction=_INSTRUCTION,
        fps=20.0,
    )
    return _job(
        "judge_two_views",
        _twin(settings.judge_size, settings, "judge"),
        CompletionJudge,
        list(sliding([[episode]], window=frames, every=step)),
        settings,
        every=3,
    )


def topreward_job(settings: CpuSettings) -> Job:
    """Sixteen frames, ``True`` and ``False`` read together.

    Args:
        settings: How much.
    """
    episode = Episode(
        name="topreward",
        frames={"front": moving_frames(16 + 2 * 60, (224, 224), seed=5)},
        instruction="The robot closes the cabinet door.",
        fps=20.0,
    )
    return _job(
        "topreward",
        _twin(settings.judge_size, settings, "topreward"),
        TOPReward,
        list(sliding([[episode]], window=16, every=2)),
        settings,
        every=4,
    )


def progresslm_job(settings: CpuSettings) -> Job:
    """One picture after the other against one demonstration.

    Args:
        settings: How much.
    """
    loaded, demo, episodes = progress_material(
        settings.episodes, settings.steps, settings.cache, settings.training
    )
    account = {"family": loaded.family}
    return _job(
        "progresslm_visual",
        loaded,
        lambda engine: ProgressLM(engine, demo, account=account),
        list(sliding([episodes], window=1, every=8)),
        settings,
        every=2,
    )


def _run(make: Callable[[CpuSettings], Job]) -> Callable[[CpuSettings], Figures]:
    return lambda settings: run_job(make(settings))


CPU_JOBS: Mapping[str, Callable[[CpuSettings], Figures]] = MappingProxyType(
    {
        "procvlm_env1": _run(partial(procvlm_job, 1)),
        "procvlm_env4": _run(partial(procvlm_job, 4)),
        "procvlm_env16": _run(partial(procvlm_job, 16)),
        "procvlm_preset_env1": _run(partial(procvlm_job, 1, preset=True)),
        "procvlm_preset_env16": _run(partial(procvlm_job, 16, preset=True)),
        "judge_two_views": _run(judge_job),
        "progresslm_visual": _run(progresslm_job),
        "topreward": _run(topreward_job),
    }
)
"""The jobs by name."""

_RATIOS = {
    "procvlm_env1": 5.0,
    "procvlm_env16": 8.0,
    "judge_two_views": 4.0,
    "progresslm_visual": 5.0,
}

CPU_GOALS: tuple[Goal, ...] = tuple(
    goal
    for job in CPU_JOBS
    for goal in (
        *([Goal(figure=f"{job}_ratio", bound=_RATIOS[job])] if job in _RATIOS else []),
        Goal(figure=f"{job}_vs_batched", bound=1.0),
        Goal(figure=f"{job}_max_abs_diff", bound=1e-4, least=False),
        Goal(figure=f"{job}_same_text", bound=1.0),
    )
)
"""What each figure is to reach."""
