"""The HTML file: one template, with styles, scripts, data and videos in it.

* :func:`write_page` - the file.
* :class:`Page` - what it shows.
* :func:`safe_json` - JSON that cannot end a script element.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from procreward.optional import JINJA2, need
from procreward.report.clips import Clip
from procreward.report.facts import Fact
from procreward.report.records import atomic_path

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["GENERATOR", "Page", "clip_bytes", "safe_json", "write_page"]

GENERATOR = "procreward report"
"""What the page says that it was made by; a file that says so may be replaced."""

SCRIPTS = ("core", "chart", "overview", "table", "player", "viewer", "main")
"""Names of the scripts in the order in which they run."""

_TEMPLATES = "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page shows.

    Attributes:
        title: Its heading.
        subtitle: One line below it.
        facts: Where the numbers come from.
        tiles: The figures of the whole run.
        notes: What is missing, and what to do about it.
        missing: What episodes lack, in words, to their names and why.
        settings: All settings, as JSON has them; empty for none.
        rows: Lines of the table.
        traces: Place of an episode in the table to its curves, as JSON.
        clips: Place of an episode to its video.
        thresholds: What counts as a stall or a drop, by name.
    """

    title: str
    subtitle: str
    facts: Sequence[Fact]
    tiles: Sequence[Fact]
    notes: Sequence[str]
    missing: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    traces: Mapping[int, str]
    clips: Mapping[int, Clip]
    thresholds: Mapping[str, Any]


def safe_json(value: object) -> str:
    r"""Return JSON that can stand in a script element whatever texts are in it.

    Raises:
        ValueError: If a number is not finite.

    Example:
        >>> safe_json({"said": "</script>"})
        '{"said":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Within JSON these stand in texts only, where escapes mean the same.
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # A lone surrogate, which JSON can hold and a file in UTF-8 cannot.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def clip_bytes(clip: Clip) -> int:
    """Return about how many bytes a video takes in the page."""
    return 4 * (-(-clip.size_bytes // 3)) + 100


def write_page(page: Page, path: Path) -> None:
    """Write the file, complete or not at all.

    Args:
        page: What it shows.
        path: The file; replaced if it exists.

    Raises:
        MissingDependencyError: If Jinja2 is not installed.
    """
    with (
        atomic_path(path) as staged,
        staged.open("w", encoding="utf-8", errors="backslashreplace") as handle,
    ):
        for part in _parts(page):
            handle.write(part)


def _parts(page: Page) -> Iterator[str]:
    """Yield the text of the page; videos one at a time, for they may be large."""
    jinja2 = need(JINJA2)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    from markupsafe import Markup

    data = {
        "title": page.title,
        "rows": page.rows,
        "clips": {
            str(place): {"fps": clip.fps, "frames": clip.frames}
            for place, clip in page.clips.items()
        },
        "thresholds": dict(page.thresholds),
    }
    template = environment.get_template("page.html")
    yield from template.generate(
        page=page,
        generator=GENERATOR,
        settings=_pretty(page.settings),
        # Ours, and no part of what was recorded.
        style=Markup(_asset("page.css")),
        scripts=[Markup(_asset(f"{name}.js")) for name in SCRIPTS],
        data=Markup(safe_json(data)),
        traces=((place, Markup(text)) for place, text in page.traces.items()),
        clips=((place, _base64(clip)) for place, clip in page.clips.items()),
    )


def _asset(name: str) -> str:
    return files("procreward.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")


def _pretty(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    return json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False, default=str)


def _base64(clip: Clip) -> Markup:
    from markupsafe import Markup

    return Markup(base64.b64encode(clip.path.read_bytes()).decode("ascii"))
