"""Dense rewards for robot learning from camera frames and vision-language reward models.

* :class:`ProgressReward` - a Gymnasium wrapper: reward from what the environment looks like.
* :class:`VectorProgressReward` - the same for many environments, in one call to the model.
* :class:`CompletionChecker` - the same without an environment, for a robot's stream.
* :func:`score_video` - the same for a file.
* :class:`RewardConfig`, :class:`ScorerConfig`, :func:`load_preset` - the settings.
* :class:`Scorer`, :class:`Query`, :class:`Score`, :class:`Verdict`, :func:`register_scorer` - what
  a reward model of your own needs.
* :class:`QuerySchedule`, :class:`FrameBuffer`, :class:`Potential`, :class:`Shaper`,
  :class:`CompletionTracker` - the parts of the wrapper, for a training loop of your own.

Everything is loaded when it is first used: importing this package imports no model, no simulator
and no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procreward.checker import CompletionChecker as CompletionChecker
    from procreward.completion import CompletionTracker as CompletionTracker
    from procreward.config import Preset as Preset
    from procreward.config import RewardConfig as RewardConfig
    from procreward.config import ScorerConfig as ScorerConfig
    from procreward.config import load_preset as load_preset
    from procreward.config import preset_names as preset_names
    from procreward.errors import ProcrewardError as ProcrewardError
    from procreward.frames import FrameBuffer as FrameBuffer
    from procreward.registry import register_scorer as register_scorer
    from procreward.registry import scorer_names as scorer_names
    from procreward.schedule import QuerySchedule as QuerySchedule
    from procreward.shaping import Potential as Potential
    from procreward.shaping import Shaper as Shaper
    from procreward.types import Query as Query
    from procreward.types import Score as Score
    from procreward.types import Scorer as Scorer
    from procreward.types import Verdict as Verdict
    from procreward.vector import VectorProgressReward as VectorProgressReward
    from procreward.video import VideoRecord as VideoRecord
    from procreward.video import score_video as score_video
    from procreward.wrapper import ProgressReward as ProgressReward

    __version__: str

__all__ = [
    "CompletionChecker",
    "CompletionTracker",
    "FrameBuffer",
    "Potential",
    "Preset",
    "ProcrewardError",
    "ProgressReward",
    "Query",
    "QuerySchedule",
    "RewardConfig",
    "Score",
    "Scorer",
    "ScorerConfig",
    "Shaper",
    "VectorProgressReward",
    "Verdict",
    "VideoRecord",
    "__version__",
    "load_preset",
    "preset_names",
    "register_scorer",
    "score_video",
    "scorer_names",
]

_HOMES = {
    "CompletionChecker": "checker",
    "CompletionTracker": "completion",
    "FrameBuffer": "frames",
    "Potential": "shaping",
    "Preset": "config",
    "ProcrewardError": "errors",
    "ProgressReward": "wrapper",
    "Query": "types",
    "QuerySchedule": "schedule",
    "RewardConfig": "config",
    "Score": "types",
    "Scorer": "types",
    "ScorerConfig": "config",
    "Shaper": "shaping",
    "VectorProgressReward": "vector",
    "Verdict": "types",
    "VideoRecord": "video",
    "load_preset": "config",
    "preset_names": "config",
    "register_scorer": "registry",
    "score_video": "video",
    "scorer_names": "registry",
}


# In a checkout `envs` and `configs` lie beside this package. With the checkout as working directory
# this copy is imported even where a complete one is installed, and must find them there.
if find_spec("procreward.envs") is None:
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> object:
    """Import a public name from its module at its first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("procreward")
    if name not in _HOMES:
        raise AttributeError(f"module 'procreward' has no attribute {name!r}")
    found = getattr(import_module(f"procreward.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names along with the usual ones."""
    return sorted({*globals(), *__all__})
