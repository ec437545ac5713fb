"""Which pictures of a dataset the models are shown, under which names and in which size.

A model that names its views in its options is shown those, whatever the dataset calls them
(``"robot0_agentview_left"`` may be ``"observation.images.robot0_agentview_left"`` there); any other
is shown the views that the settings choose. ``"flip:front"`` is a view that is upside down in the
dataset and is turned, as ``views`` of an environment has it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from procreward.errors import ConfigError, UnknownNameError
from procreward.plan import StreamPlan
from procreward.registry import ScorerHandle
from procreward.relabel.ahead import resize
from procreward.types import Frame
from procreward.views import named_views

__all__ = ["FLIP", "Showing", "find_view", "stored_views", "upright"]

FLIP = "flip:"
"""What is before the name of a view that is upside down in the dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture that models are shown.

    Attributes:
        name: The view's name as :func:`procreward.views.shown_to` takes it.
        view: The dataset's name of it, behind :data:`FLIP` if it is turned.
        size: ``(width, height)`` in pixels that it is resized to, or None.
    """

    name: str
    view: str
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """What all models are shown.

    Attributes:
        shown: The pictures, those of both models once.
    """

    shown: tuple[Shown, ...]

    @property
    def views(self) -> tuple[str, ...]:
        """The dataset's views that have to be decoded."""
        return stored_views(one.view for one in self.shown)

    @classmethod
    def of(cls, plan: StreamPlan, there: Sequence[str], chosen: Sequence[str]) -> Showing:
        """Work it out.

        Args:
            plan: The settings; nothing is built.
            there: The dataset's views.
            chosen: Views of the settings, as :func:`find_view` takes them; empty for the dataset's
                first. One that is turned is turned for a model that names it as well.

        Raises:
            UnknownNameError: If there is no such view.
            ConfigError: If a view is chosen twice.
        """
        views = tuple(find_view(name, there) for name in chosen) or tuple(there[:1])
        for number, view in enumerate(stored := [one.removeprefix(FLIP) for one in views]):
            if view in stored[:number]:
                raise ConfigError(f"`views` must name each view once, got {view!r} twice.")
        scorer = _of(plan.scorer, plan.frame_size, there, views)
        if plan.judge is None:
            return cls(shown=scorer)
        size = plan.config.frame_size or plan.judge.preset.frame_size or plan.frame_size
        judge = _of(plan.judge, size, there, views)
        both = tuple(one for one in scorer if one in judge)
        return cls(shown=both + _apart("scorer", scorer, both) + _apart("judge", judge, both))

    def show(
        self, pictures: Iterable[Mapping[str, Frame]]
    ) -> Generator[dict[str, Frame], None, None]:
        """Name and resize pictures; closes what it reads from.

        Args:
            pictures: Dataset view to picture.

        Yields:
            Name to picture.
        """
        try:
            for item in pictures:
                yield {one.name: resize(upright(item, one.view), one.size) for one in self.shown}
        finally:
            close = getattr(pictures, "close", None)
            if callable(close):
                close()


def _of(
    handle: ScorerHandle,
    size: tuple[int, int] | None,
    there: Sequence[str],
    chosen: Sequence[str],
) -> tuple[Shown, ...]:
    names = named_views(handle)
    as_chosen = {view.removeprefix(FLIP): view for view in chosen}
    found = {name: find_view(name, there) for name in names}
    pairs = {name: as_chosen.get(view, view) for name, view in found.items()} or as_chosen
    return tuple(Shown(name=name, view=view, size=size) for name, view in pairs.items())


def _apart(role: str, shown: Iterable[Shown], both: Sequence[Shown]) -> tuple[Shown, ...]:
    return tuple(
        Shown(name=f"{role}:{one.name}", view=one.view, size=one.size)
        for one in shown
        if one not in both
    )


def find_view(name: str, there: Sequence[str]) -> str:
    """Find a view by its name or the end of it.

    Args:
        name: Such as ``"front"``, or ``"flip:front"`` if it is upside down there.
        there: Such as ``("observation.images.front",)``.

    Returns:
        The dataset's name of it, behind :data:`FLIP` if that was given.

    Raises:
        UnknownNameError: If none or several fit.

    Example:
        >>> find_view("front", ["observation.images.front", "observation.images.wrist"])
        'observation.images.front'
        >>> find_view("flip:front", ["observation.images.front", "observation.images.wrist"])
        'flip:observation.images.front'
    """
    before = FLIP if name.startswith(FLIP) else ""
    name = name.removeprefix(FLIP)
    if name in there:
        return before + name
    fits = [view for view in there if view.endswith((f".{name}", f"_{name}", f"/{name}"))]
    if len(fits) != 1:
        raise UnknownNameError("view", name, there)
    return before + fits[0]


def stored_views(views: Iterable[str]) -> tuple[str, ...]:
    """Return the dataset's names of views that :func:`find_view` found, each once."""
    return tuple(dict.fromkeys(view.removeprefix(FLIP) for view in views))


def upright(pictures: Mapping[str, Frame], view: str) -> Frame:
    """Take the picture of a view, turned if its name says so.

    Args:
        pictures: The dataset's view to picture, ``(height, width, 3) uint8``.
        view: As :func:`find_view` returns it.
    """
    picture = pictures[view.removeprefix(FLIP)]
    return np.ascontiguousarray(picture[::-1]) if view.startswith(FLIP) else picture
