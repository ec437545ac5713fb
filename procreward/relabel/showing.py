"""Which pictures of a dataset the models are shown, under which names and in which size.

A model that names its views in its options is shown those, whatever the dataset calls them
(``"robot0_agentview_left"`` may be ``"observation.images.robot0_agentview_left"`` there); any other
is shown the views that the settings choose.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from procreward.errors import UnknownNameError
from procreward.plan import StreamPlan
from procreward.registry import ScorerHandle
from procreward.relabel.ahead import resize
from procreward.types import Frame
from procreward.views import named_views

__all__ = ["Showing", "find_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture that models are shown.

    Attributes:
        name: The view's name as :func:`procreward.views.shown_to` takes it.
        view: The dataset's name of it.
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
        return tuple(dict.fromkeys(one.view for one in self.shown))

    @classmethod
    def of(cls, plan: StreamPlan, there: Sequence[str], chosen: Sequence[str]) -> Showing:
        """Work it out.

        Args:
            plan: The settings; nothing is built.
            there: The dataset's views.
            chosen: Views of the settings, by their names in the dataset or ends of those; empty
                for the dataset's first.

        Raises:
            UnknownNameError: If there is no such view.
        """
        views = tuple(find_view(name, there) for name in chosen) or tuple(there[:1])
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
                yield {one.name: resize(item[one.view], one.size) for one in self.shown}
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
    pairs = [(name, find_view(name, there)) for name in names] or [(view, view) for view in chosen]
    return tuple(Shown(name=name, view=view, size=size) for name, view in pairs)


def _apart(role: str, shown: Iterable[Shown], both: Sequence[Shown]) -> tuple[Shown, ...]:
    return tuple(
        Shown(name=f"{role}:{one.name}", view=one.view, size=one.size)
        for one in shown
        if one not in both
    )


def find_view(name: str, there: Sequence[str]) -> str:
    """Find a view by its name or the end of it.

    Args:
        name: Such as ``"front"``.
        there: Such as ``("observation.images.front",)``.

    Raises:
        UnknownNameError: If none or several fit.

    Example:
        >>> find_view("front", ["observation.images.front", "observation.images.wrist"])
        'observation.images.front'
    """
    if name in there:
        return name
    fits = [view for view in there if view.endswith((f".{name}", f"_{name}", f"/{name}"))]
    if len(fits) != 1:
        raise UnknownNameError("view", name, there)
    return fits[0]
