"""A page while it is being made: what there is room for, and what is left out.

* :class:`Draft` - takes in curves and videos up to the size that the settings allow.
* :func:`portable_message` - an error without the paths of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from procreward.errors import DatasetError
from procreward.report.clips import Clip, encode_clip, in_order
from procreward.report.config import ReportConfig
from procreward.report.content import details, row
from procreward.report.facts import provenance, tiles
from procreward.report.figures import Thresholds
from procreward.report.page import Page, clip_bytes, safe_json
from procreward.report.runs import Entry, Run
from procreward.types import Frame

if TYPE_CHECKING:
    from procreward.report.pictures import Pictures

__all__ = ["Draft", "portable_message"]

_MB = 1_000_000


@dataclass(slots=True, kw_only=True)
class Draft:
    """A page while it is being made.

    Attributes:
        config: The settings.
        run: What is shown.
        thresholds: What counts as a stall or a drop.
        rows: Lines of the table.
        notes: What was left out, in sentences.
        traces: Place of an episode to its curves, as JSON.
        clips: Place of an episode to its video.
        broken: Name of every episode whose pictures cannot be read, and why.
    """

    config: ReportConfig
    run: Run
    thresholds: Thresholds
    rows: list[dict[str, Any]]
    notes: list[str]
    traces: dict[int, str] = field(default_factory=dict)
    clips: dict[int, Clip] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, config: ReportConfig, run: Run, notes: Sequence[str]) -> Draft:
        """Sum up the episodes."""
        thresholds = Thresholds(
            stall_queries=config.stall_queries,
            stall_delta=config.stall_delta,
            regression_delta=config.regression_delta,
        )
        rows = [row(entry, thresholds) for entry in run.entries]
        return cls(config=config, run=run, thresholds=thresholds, rows=rows, notes=list(notes))

    def collect(self, pictures: Pictures | None, folder: Path) -> None:
        """Take in curves and videos, as many as there is room for.

        Args:
            pictures: What gives pictures, or None.
            folder: Where videos are put until the page is written.
        """
        room = self.config.max_mb * _MB - len(safe_json(self.rows).encode())
        room = self._take_traces(room)
        if self.config.curves_only:
            self.notes.append("Videos were left out, as asked for (--curves-only).")
        elif pictures is None:
            self.notes.append("The run's folder has no videos any more, so there are curves only.")
        else:
            self._take_clips(pictures, folder, room)

    def _take_traces(self, room: float) -> float:
        for place, entry in enumerate(self.run.entries):
            text = safe_json(details(entry, self.thresholds))
            size = len(text.encode()) + 100
            if size > room:
                self._say_left_out("curves and videos", place)
                return 0.0
            self.traces[place] = text
            room -= size
        return room

    def _take_clips(self, pictures: Pictures, folder: Path, room: float) -> None:
        from tqdm import tqdm

        shown = [(place, self.run.entries[place]) for place in self.traces]
        total = sum(pictures.count(entry) for _, entry in shown)
        with tqdm(total=total, unit="frame", desc="filming", mininterval=0.5) as bar:

            def film(item: tuple[int, Entry]) -> Clip | DatasetError:
                place, entry = item
                path = folder / f"{place}.mp4"
                return _clip(pictures, entry, path, self.config.video_height, bar.update)

            for (place, entry), clip in in_order(film, shown):
                if isinstance(clip, DatasetError):
                    self.broken[entry.name] = portable_message(clip, pictures.root)
                elif clip_bytes(clip) > room:
                    self._say_left_out("videos", place)
                    return
                else:
                    self.clips[place] = clip
                    room -= clip_bytes(clip)

    def _say_left_out(self, what: str, place: int) -> None:
        entries = self.run.entries
        fewer = "" if what != "videos" else ", make them smaller with --video-height"
        self.notes.append(
            f"The {what} of {len(entries) - place} of {len(entries)} episodes, from "
            f"{entries[place].name} on, were left out to keep the page below "
            f"{self.config.max_mb:g} MB; raise --max-mb{fewer}, or choose with --episodes."
        )

    def page(self) -> Page:
        """Return what the page shows."""
        run = self.run
        scorers = ", ".join(dict.fromkeys(entry.record.scorer for entry in run.entries))
        made = {
            "relabel": f"recorded episodes, relabelled with {scorers}",
            "demo": f"episodes, rewarded by {scorers}",
            "train": f"episodes of the trained policy, rewarded by {scorers}",
        }
        return Page(
            title=run.title,
            subtitle=f"{len(run.entries):,} {made[run.kind]}",
            facts=provenance(run),
            tiles=tiles(run, self.rows),
            notes=self.notes,
            missing={
                "without labels: skipped when the dataset was relabelled": run.skipped,
                "without a video: their pictures cannot be read": self.broken,
            },
            settings=run.account,
            rows=self.rows,
            traces=self.traces,
            clips=self.clips,
            thresholds=asdict(self.thresholds),
        )


def _clip(
    pictures: Pictures, entry: Entry, path: Path, height: int, on_frames: Callable[[int], object]
) -> Clip | DatasetError:
    def frames() -> Iterator[Frame]:
        for frame in pictures.frames(entry):
            yield frame
            on_frames(1)

    try:
        return encode_clip(frames(), path, fps=pictures.fps(entry), max_height=height)
    except DatasetError as error:
        return error


def portable_message(error: Exception, root: Path) -> str:
    """Return an error's message without the paths of this machine.

    Args:
        error: The error.
        root: The file or folder that it may name.
    """
    text = str(error)
    for known in (str(root.absolute()), str(root)):
        text = text.replace(known, root.name)
    return text
