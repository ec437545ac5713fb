"""Which views each model is shown, and where their frames come from.

A model that names its views in its options (``view`` of ProcVLM, ``views`` of the completion
judge) is shown exactly those; any other is shown what the setting ``views`` says. So a progress
model of one view and a judge of two work side by side, each with frames of the size that its
preset asks for. The environment draws what the two need, and what both see is drawn once.

* :func:`plan_sources` - what has to be drawn.
* :func:`shown_to` - a model's share of what was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from procreward.registry import ScorerHandle
from procreward.runner import Role
from procreward.sources import FrameSource, resolve_sources
from procreward.types import Frame

if TYPE_CHECKING:
    import gymnasium as gym

    from procreward.plan import StreamPlan

__all__ = ["named_views", "plan_sources", "shown_to"]

_PREFIX: Mapping[Role, str] = {"scorer": "scorer:", "judge": "judge:"}


def named_views(handle: ScorerHandle) -> tuple[str, ...]:
    """Return the views that a model names in its options, empty if it takes what there is.

    Args:
        handle: The model by description.

    Example:
        >>> from procreward.registry import resolve
        >>> named_views(resolve("robocasa-judge"))
        ('robot0_agentview_right', 'robot0_agentview_left')
        >>> named_views(resolve("nano"))
        ()
    """
    options = handle.config.options
    named: Any = options.get("views") or options.get("view") or ()
    return (named,) if isinstance(named, str) else tuple(map(str, named))


def plan_sources(env: gym.Env[Any, Any], plan: StreamPlan) -> dict[str, FrameSource]:
    """Find out where the frames of every view that a model is shown come from.

    Args:
        env: The environment that will be asked for frames.
        plan: The settings.

    Returns:
        Name to source: the view's name where all models are shown its frames, else with the one
        that is before it (``"judge:robot0_agentview_left"``); :func:`shown_to` takes it off.

    Raises:
        UnknownNameError: If there is no such key or camera; the message names those there are.
        UnsupportedEnvError: If the environment cannot render as asked.
        FrameError: If an entry of the observation is not laid out as a picture.
        ConfigError: If ``views`` is empty or names a view twice.
    """
    scorer = _sources(env, plan, plan.scorer, plan.frame_size)
    if plan.judge is None:
        return scorer
    size = plan.config.frame_size or plan.judge.preset.frame_size or plan.frame_size
    judge = _sources(env, plan, plan.judge, size)
    both = {view: source for view, source in scorer.items() if judge.get(view) == source}
    shares: dict[Role, dict[str, FrameSource]] = {"scorer": scorer, "judge": judge}
    apart = {
        f"{_PREFIX[role]}{view}": source
        for role, sources in shares.items()
        for view, source in sources.items()
        if view not in both
    }
    return both | apart


def _sources(
    env: gym.Env[Any, Any],
    plan: StreamPlan,
    handle: ScorerHandle,
    size: tuple[int, int] | None,
) -> dict[str, FrameSource]:
    """One model's views, in the order in which it or the settings name them."""
    names, views = named_views(handle), plan.config.views
    if not names:
        return resolve_sources(env, views, size)
    # A view may stand in `views` under another name than its own: "obs:KEY".
    given = {} if views is None else resolve_sources(env, views, size)
    return {name: given[name] if name in given else _source(env, name, size) for name in names}


def _source(env: gym.Env[Any, Any], name: str, size: tuple[int, int] | None) -> FrameSource:
    # The model looks for its frames under the name that it gives, "flip:" and the like included.
    (source,) = resolve_sources(env, [name], size).values()
    return source


def shown_to(role: Role, frames: Mapping[str, Frame]) -> dict[str, Frame]:
    """Pick a model's share out of the frames of one step.

    Args:
        role: Which model.
        frames: Name, as in :func:`plan_sources`, to picture.

    Returns:
        View name to picture.

    Example:
        >>> shown_to("judge", {"front": 1, "scorer:wrist": 2, "judge:left": 3})
        {'front': 1, 'left': 3}
    """
    own = _PREFIX[role]
    others = tuple(prefix for prefix in _PREFIX.values() if prefix != own)
    return {
        name.removeprefix(own): frame
        for name, frame in frames.items()
        if not name.startswith(others)
    }
