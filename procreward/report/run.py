"""``procreward report``: from a run to a page that shows it.

* :func:`report` - all of it.
* :class:`ReportResult` - what was written, and what was left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from procreward.checks import check
from procreward.errors import ConfigError, DatasetError
from procreward.relabel.config import select
from procreward.report.clips import Clip, encode_clip
from procreward.report.config import ReportConfig
from procreward.report.content import details, row
from procreward.report.facts import provenance, tiles
from procreward.report.figures import Thresholds
from procreward.report.page import GENERATOR, Page, clip_bytes, need_jinja2, safe_json, write_page
from procreward.report.runs import Entry, Run, open_run

if TYPE_CHECKING:
    from procreward.report.pictures import Pictures

__all__ = ["ReportResult", "report"]

_MB = 1_000_000
_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """What came of it.

    Attributes:
        files: What was written, the page first.
        episodes: Episodes in the table.
        videos: How many of them have a video in the page.
        notes: What was left out, and what to do about it.
        broken: Name of every episode whose pictures cannot be read, and why.
    """

    files: tuple[Path, ...]
    episodes: int
    videos: int
    notes: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0, or 1 if pictures cannot be read."""
        return 1 if self.broken else 0


def report(config: ReportConfig, say: Callable[[str], object]) -> ReportResult:
    """Show a run as one HTML file, and on request as videos and a picture.

    Args:
        config: The settings.
        say: Takes every line or block of text meant for the user.

    Raises:
        ConfigError: If the folder is no finished run, the dataset is not where it was, or the file
            to write is something else.
        DatasetError: If the dataset is another one, or the run's files are damaged.
        MissingDependencyError: If Jinja2, matplotlib or ffmpeg is not installed.
    """
    need_jinja2()
    run = open_run(config.run)
    _check_page(config)
    run, left = _chosen(config, run)
    pictures = _pictures(config, run)
    if config.plot:
        from procreward.report.plot import need_matplotlib

        need_matplotlib()
    with tempfile.TemporaryDirectory(prefix="procreward-report-") as folder:
        draft = _draft(config, run, [*left, *run.notes])
        draft.collect(pictures, Path(folder))
        write_page(draft.page(), config.page)
    files = [config.page]
    broken = dict(draft.broken)
    if config.video:
        files += _write_overlays(config, run, pictures, broken, say)
    if config.plot:
        from procreward.report.plot import write_plot

        files.append(config.page.with_suffix(".png"))
        write_plot(run, files[-1], draft.thresholds, title=draft.title)
    result = ReportResult(
        files=tuple(files),
        episodes=len(run.entries),
        videos=len(draft.clips),
        notes=tuple(draft.notes),
        broken=broken,
    )
    say(_summary(result, config.page))
    return result


def _check_page(config: ReportConfig) -> None:
    """Refuse to replace what is not a report."""
    path = config.page
    fix = "Give another --out."
    check(not path.is_dir(), "out", "a file to write", str(path), fix)
    check(path.suffix.lower() in (".html", ".htm"), "out", "a name with .html", str(path), fix)
    if path.exists() and not config.overwrite and not _is_report(path):
        raise ConfigError(
            f"`out` must be a new file or an earlier report, got {str(path)!r}, which is something "
            "else. Give another --out, or --overwrite."
        )


def _is_report(path: Path) -> bool:
    with path.open("rb") as handle:
        return f'name="generator" content="{GENERATOR}'.encode() in handle.read(_HEAD_BYTES)


def _chosen(config: ReportConfig, run: Run) -> tuple[Run, list[str]]:
    """The run with the episodes that are to be shown, and what that leaves out."""
    numbers = [entry.number for entry in run.entries]
    wanted = set(select(numbers, config.episodes, config.limit))
    entries = tuple(entry for entry in run.entries if entry.number in wanted)
    if len(entries) == len(run.entries):
        return run, []
    note = f"Only {len(entries)} of the run's {len(run.entries)} episodes are shown, as asked for."
    return replace(run, entries=entries), [note]


def _pictures(config: ReportConfig, run: Run) -> Pictures | None:
    if config.curves_only:
        check(not config.video, "video", "left out with `curves_only`", True)
        return None
    from procreward.report.pictures import find_pictures

    return find_pictures(run, config.source, config.views, config.fps)


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A page while it is being made."""

    config: ReportConfig
    run: Run
    thresholds: Thresholds
    rows: list[dict[str, Any]]
    notes: list[str]
    traces: dict[int, str] = field(default_factory=dict)
    clips: dict[int, Clip] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.run.title

    def collect(self, pictures: Pictures | None, folder: Path) -> None:
        """Take in curves and videos, as many as there is room for."""
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
            for place, entry in shown:
                clip = self._clip(pictures, entry, folder / f"{place}.mp4", bar.update)
                if clip is None:
                    continue
                if clip_bytes(clip) > room:
                    self._say_left_out("videos", place)
                    return
                self.clips[place] = clip
                room -= clip_bytes(clip)

    def _clip(
        self, pictures: Pictures, entry: Entry, path: Path, on_frames: Callable[[int], object]
    ) -> Clip | None:
        def frames() -> Iterator[Any]:
            for frame in pictures.frames(entry):
                yield frame
                on_frames(1)

        try:
            height = self.config.video_height
            return encode_clip(frames(), path, fps=pictures.fps(entry), max_height=height)
        except DatasetError as error:
            self.broken[entry.name] = _plain(error, pictures.root)
            return None

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
            title=self.title,
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


def _draft(config: ReportConfig, run: Run, notes: Sequence[str]) -> _Draft:
    thresholds = Thresholds(
        stall_queries=config.stall_queries,
        stall_delta=config.stall_delta,
        regression_delta=config.regression_delta,
    )
    rows = [row(entry, thresholds) for entry in run.entries]
    return _Draft(config=config, run=run, thresholds=thresholds, rows=rows, notes=list(notes))


def _plain(error: Exception, root: Path) -> str:
    """The message without the paths of this machine."""
    text = str(error)
    for known in (str(root.absolute()), str(root)):
        text = text.replace(known, root.name)
    return text


def _write_overlays(
    config: ReportConfig,
    run: Run,
    pictures: Pictures | None,
    broken: dict[str, str],
    say: Callable[[str], object],
) -> list[Path]:
    """Write a video of each episode with curve and text drawn on."""
    from tqdm import tqdm

    from procreward.report.overlay import write_overlay_video

    if run.kind != "relabel" or pictures is None:
        say(f"procreward {run.kind} has written the overlay videos itself; see its folder.")
        return []
    folder, files = config.page.parent / "overlays", []
    with tqdm(run.entries, unit="video", desc="drawing", mininterval=0.5) as bar:
        for entry in bar:
            path = folder / f"{entry.name}.mp4"
            try:
                frames = pictures.frames(entry)
                write_overlay_video(entry.record, frames, path, fps=pictures.fps(entry))
            except DatasetError as error:
                broken[entry.name] = _plain(error, pictures.root)
                continue
            files.append(path)
    return files


def _summary(result: ReportResult, page: Path) -> str:
    size = page.stat().st_size / _MB
    lines = [f"{result.episodes} episodes, {result.videos} with a video, {size:.1f} MB"]
    lines += [f"note: {note}" for note in result.notes]
    lines += ["written:", *(f"  {path}" for path in result.files[:12])]
    if len(result.files) > 12:
        lines.append(f"  and {len(result.files) - 12} more beside them")
    return "\n".join(lines)
