"""A video of an episode with the progress curve, the model's words and the reward drawn on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from procreward.errors import ConfigError
from procreward.optional import FFMPEG, need
from procreward.report.chart import (
    BAD,
    DECLARED,
    FAINT,
    GOOD,
    INK,
    PAPER,
    READING,
    Colour,
    draw_chart,
    font,
)
from procreward.report.records import EpisodeRecord, StepTrace, atomic_path
from procreward.types import Frame

__all__ = ["camera_picture_box", "draw_overlay", "write_overlay_video"]

_WIDTH, _HEIGHT = 832, 480  # even, as yuv420p needs
_FRAME = 384  # side of the square the camera picture is fitted into
_MARGIN, _HEADER = 16, 48
_PANEL = _FRAME + 2 * _MARGIN  # left edge of the right-hand column
_CHART = (_WIDTH - _PANEL - 8, 268)
_BLANK = 235  # darkest that a codec makes of white
_HOLD_S = 1.5  # the last picture stays, or a player jumps away from the result


def write_overlay_video(
    record: EpisodeRecord,
    frames: Iterable[Frame],
    path: Path,
    *,
    frame_steps: Sequence[int] | None = None,
    fps: float = 10.0,
) -> None:
    """Write the episode as an H.264 ``.mp4`` of 832 x 480 pixels, atomically.

    Args:
        record: The episode the frames belong to.
        frames: Camera pictures, each ``(height, width, 3) uint8``, oldest first; any size.
        path: The video; replaced if it exists.
        frame_steps: Environment step of each frame; default: frame ``i`` is step ``i``.
        fps: Frames per second of the video; below real time, so that the text can be read.

    Raises:
        ConfigError: If there is no frame, or the steps do not match frames and trace.
        MissingDependencyError: If imageio's ffmpeg is not installed.
    """
    ffmpeg = need(FFMPEG)
    with atomic_path(path) as staged:
        # Without macro_block_size=1 every picture is resized to multiples of 16.
        sink = ffmpeg.write_frames(
            str(staged), (_WIDTH, _HEIGHT), fps=fps, codec="libx264", quality=7, macro_block_size=1
        )
        sink.send(None)
        try:
            for picture in _pictures(record, frames, frame_steps, fps):
                sink.send(np.ascontiguousarray(picture))
        finally:
            sink.close()


def _pictures(
    record: EpisodeRecord, frames: Iterable[Frame], frame_steps: Sequence[int] | None, fps: float
) -> Iterator[Frame]:
    """Yield every picture of the video, the last one held."""
    picture = None
    steps = iter(count() if frame_steps is None else frame_steps)
    for number, frame in enumerate(frames, start=1):
        step = next(steps, None)
        if step is None or step >= len(record.trace):
            raise _mismatch(record, number)
        picture = draw_overlay(record, frame, step)
        yield picture
    if picture is None or (frame_steps is not None and next(steps, None) is not None):
        raise _mismatch(record, 0)
    for _ in range(round(_HOLD_S * fps)):
        yield picture


def _mismatch(record: EpisodeRecord, number: int) -> ConfigError:
    which = f"picture {number} without" if number else "fewer"
    return ConfigError(
        f"`frames` must hold at least one frame, each with a step below {len(record.trace)}, got "
        f"{which}."
    )


def camera_picture_box(picture: Frame) -> tuple[slice, slice]:
    """Return where the camera picture is in a picture of an overlay video.

    Args:
        picture: The first picture, ``(480, 832, 3) uint8``, decoded.

    Returns:
        Rows and columns, without the empty sides of a picture that is not square.
    """
    square = picture[_HEADER : _HEADER + _FRAME, _MARGIN : _MARGIN + _FRAME]
    inked = square.min(axis=2) < _BLANK
    return _middle(inked.any(axis=1), _HEADER), _middle(inked.any(axis=0), _MARGIN)


def _middle(inked: npt.NDArray[np.bool_], offset: int) -> slice:
    """What lies between the empty ends, which are of equal size."""
    places = np.flatnonzero(inked)
    if not len(places):
        return slice(offset, offset + _FRAME)
    empty = min(int(places[0]), _FRAME - 1 - int(places[-1]))
    return slice(offset + empty, offset + _FRAME - empty)


def draw_overlay(record: EpisodeRecord, frame: Frame, step: int) -> Frame:
    """Compose one picture of the video.

    Args:
        record: The episode.
        frame: Camera picture at ``step``, ``(height, width, 3) uint8``.
        step: Index into ``record.trace``; nothing later than it is shown.

    Returns:
        The picture, ``(480, 832, 3) uint8``.
    """
    canvas = Image.new("RGB", (_WIDTH, _HEIGHT), PAPER)
    draw = ImageDraw.Draw(canvas)
    seen = record.trace[: step + 1]
    _draw_header(draw, record, seen)
    _paste_frame(canvas, frame)
    instruction = _clip(f"“{record.instruction}”", 15, _FRAME, draw)
    draw.text((_MARGIN, _HEADER + _FRAME + 12), instruction, fill=INK, font=font(15))
    canvas.paste(draw_chart(record.trace, step, _CHART), (_PANEL, _HEADER - 6))
    _draw_figures(draw, seen)
    _draw_answer(draw, seen)
    return np.asarray(canvas, dtype=np.uint8)


def _draw_header(
    draw: ImageDraw.ImageDraw, record: EpisodeRecord, seen: Sequence[StepTrace]
) -> None:
    task = record.env_id.rsplit("/", maxsplit=1)[-1]
    title = f"{task}   {record.policy} {record.episode}   step {seen[-1].step}/{record.steps}"
    draw.text((_MARGIN, 24), title, fill=INK, font=font(20), anchor="lm")
    right = _WIDTH - _MARGIN
    for name, moments, colour in (
        ("env: success", [entry.success for entry in seen], GOOD),
        ("model: complete", [entry.complete for entry in seen], DECLARED),
    ):
        if any(moments):
            label, fill = (name, colour) if moments[-1] else (f"{name} lost", FAINT)
            right = _draw_badge(draw, right, label, fill) - 8


def _draw_badge(draw: ImageDraw.ImageDraw, right: int, label: str, colour: Colour) -> int:
    """Draw a filled label that ends at ``right``; return its left edge."""
    left = right - int(draw.textlength(label, font=font(14))) - 16
    draw.rounded_rectangle([left, 12, right, 36], radius=6, fill=colour)
    draw.text(((left + right) / 2, 24), label, fill=PAPER, font=font(14), anchor="mm")
    return left


def _paste_frame(canvas: Image.Image, frame: Frame) -> None:
    """Fit the camera picture into its square, keeping its proportions."""
    picture = Image.fromarray(frame)
    scale = _FRAME / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(picture, (_MARGIN + (_FRAME - size[0]) // 2, _HEADER + (_FRAME - size[1]) // 2))


def _draw_figures(draw: ImageDraw.ImageDraw, seen: Sequence[StepTrace]) -> None:
    """Write progress, reward and return of the moment."""
    now = seen[-1]
    progress = "no reading" if now.progress is None else f"{100 * now.progress:.0f} %"
    reward_colour = GOOD if now.reward > 0 else BAD if now.reward < 0 else INK
    total = sum(entry.reward for entry in seen)
    top = _HEADER + _CHART[1] + 2
    for offset, label, value, colour in (
        (0, "progress", progress, READING),
        (140, "reward", f"{now.reward:+.3f}", reward_colour),
        (270, "return", f"{total:+.3f}", INK),
    ):
        x = _PANEL + 8 + offset
        draw.text((x, top), label, fill=FAINT, font=font(13))
        draw.text((x, top + 15), value, fill=colour, font=font(23))


def _draw_answer(draw: ImageDraw.ImageDraw, seen: Sequence[StepTrace]) -> None:
    """Write the latest answer of the model, its end where it is too long."""
    asked = [entry for entry in seen if entry.queried]
    if not asked:
        return
    left, top = _PANEL + 8, _HEADER + _CHART[1] + 52
    entry = asked[-1]
    label = f"answer at step {entry.step}" + ("" if entry.valid else ", invalid")
    draw.text((left, top), label, fill=FAINT if entry.valid else BAD, font=font(13))
    lines = _wrap(entry.text.strip() or "(no text)", _WIDTH - left - _MARGIN, draw)
    room = (_HEIGHT - 10 - top - 18) // 17
    if len(lines) > room:  # the number the reward comes from stands at the end
        lines = ["…" + lines[-room], *lines[-room + 1 :]]
    for index, line in enumerate(lines):
        draw.text((left, top + 18 + 17 * index), line, fill=INK, font=font(14))


def _wrap(text: str, width: int, draw: ImageDraw.ImageDraw) -> list[str]:
    """Break text into lines of at most ``width`` pixels, within words where it must."""
    lines = [""]
    for paragraph in text.splitlines():
        for word in paragraph.split():
            joined = f"{lines[-1]} {word}".lstrip()
            if draw.textlength(joined, font=font(14)) <= width:
                lines[-1] = joined
            else:
                lines.append(_clip(word, 14, width, draw))
        lines.append("")
    return [line for line in lines if line]


def _clip(text: str, size: int, width: int, draw: ImageDraw.ImageDraw) -> str:
    """Shorten text with an ellipsis until it fits ``width`` pixels."""
    if draw.textlength(text, font=font(size)) <= width:
        return text
    while text and draw.textlength(text + "…", font=font(size)) > width:
        text = text[:-1]
    return text + "…"
