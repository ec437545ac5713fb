"""``ReportConfig``: which run is shown, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from procreward.checks import check, check_int, check_unit, is_number

__all__ = ["ReportConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Make one HTML file of a run: every episode with its video, its curve and the model's words.

    The file needs no network and no other file. Exit status: 0 when all went well, though the page
    may leave videos out to stay within --max-mb (it says so); 1 when the page is written, but
    pictures of an episode cannot be read; 2 on an error; 130 when interrupted.
    """

    run: tyro.conf.Positional[Path]
    """Folder that relabel, demo or train wrote."""
    out: Path | None = None
    """The file to write; without it, RUN/report.html. Videos and figures go beside it."""
    source: Path | None = None
    """The relabelled dataset; without it, where it was when it was relabelled."""
    views: tuple[str, ...] = ()
    """Cameras to show side by side, or ends of their names (flip:NAME turns one that is upside
    down); without it, what the models saw."""
    episodes: str | None = None
    """Show only these, by their number in the dataset or place in the run, such as 0,3,5-9."""
    limit: int | None = None
    """Show only the first so many of the episodes."""
    video: bool = False
    """Also write a video of each episode with curve and text drawn on, to overlays/."""
    plot: bool = False
    """Also write the curves of all episodes and the histograms as a picture, report.png."""
    curves_only: bool = False
    """Leave the videos out of the page; the dataset is not needed then."""
    max_mb: float = 200.0
    """Most megabytes of the page; videos of later episodes are left out of a longer one."""
    video_height: int = 256
    """Most pixels in height of the videos in the page; larger pictures are made smaller."""
    fps: float | None = None
    """Pictures per second of the videos; without it, what the dataset says, else 10."""
    stall_queries: int = 5
    """Queries without a new best reading that are flagged as a stall."""
    stall_delta: float = 0.02
    """Rise of the best reading that ends a stall, in [0, 1]."""
    regression_delta: float = 0.15
    """Fall below the best reading that is flagged as a drop, in [0, 1]."""
    overwrite: bool = False
    """Replace the file although it is not a report."""

    def __post_init__(self) -> None:
        for name in ("stall_queries", "video_height"):
            check_int(name, getattr(self, name), least=1)
        if self.limit is not None:
            check_int("limit", self.limit, least=1)
        for name in ("stall_delta", "regression_delta"):
            check_unit(name, getattr(self, name), allow_zero=False)
        check(is_number(self.max_mb) and self.max_mb > 0, "max_mb", "above 0", self.max_mb)
        if self.fps is not None:
            check(is_number(self.fps) and self.fps > 0, "fps", "above 0", self.fps)

    @property
    def page(self) -> Path:
        """The file that is written."""
        return self.run / "report.html" if self.out is None else self.out
