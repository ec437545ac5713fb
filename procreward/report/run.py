"""``procreward report``: from a run to a page that shows it.

* :func:`report` - all of it.
* :class:`ReportResult` - what was written, and what was left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from procreward.checks import check
from procreward.errors import ConfigError, DatasetError
from procreward.optional import JINJA2, MATPLOTLIB, need
from procreward.relabel.config import select
from procreward.report.config import ReportConfig
from procreward.report.draft import Draft, portable_message
from procreward.report.page import GENERATOR, write_page
from procreward.report.runs import Run, open_run

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
    need(JINJA2)
    run = open_run(config.run)
    _check_page(config)
    run, left = _chosen(config, run)
    pictures = _pictures(config, run)
    if config.plot:
        need(MATPLOTLIB)
    with tempfile.TemporaryDirectory(prefix="procreward-report-") as folder:
        draft = Draft.begin(config, run, [*left, *run.notes])
        draft.collect(pictures, Path(folder))
        write_page(draft.page(), config.page)
    files = [config.page]
    broken = dict(draft.broken)
    if config.video:
        files += _write_overlays(config, run, pictures, broken, say)
    if config.plot:
        from procreward.report.plot import write_plot

        files.append(config.page.with_suffix(".png"))
        write_plot(run, files[-1], draft.thresholds, title=run.title)
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
                broken[entry.name] = portable_message(error, pictures.root)
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
