"""The growing progress curve and reward strip of an overlay video, drawn with pillow.

matplotlib would take a tenth of a second a frame; this takes a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from procreward.report.records import StepTrace, first_complete, first_success

__all__ = ["Colour", "Font", "draw_chart", "font"]

Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.ImageFont | ImageFont.FreeTypeFont

INK: Colour = (28, 32, 38)
FAINT: Colour = (112, 118, 128)
GRID: Colour = (226, 229, 234)
PAPER: Colour = (255, 255, 255)
READING: Colour = (11, 110, 189)
TRUTH: Colour = (150, 154, 160)
GOOD: Colour = (38, 138, 78)
BAD: Colour = (196, 44, 44)
DECLARED: Colour = (209, 105, 14)

_SCALE = 2  # pillow's lines are not antialiased: draw at twice the size, then shrink
_LEFT, _TOP = 34, 26  # room for the tick labels and the legend
_STRIP, _GAP, _AXIS = 40, 12, 34  # heights of the reward strip, the gap above it, the axis below


@lru_cache(maxsize=16)
def font(size: int) -> Font:
    """Return pillow's built-in typeface at ``size`` pixels."""
    return ImageFont.load_default(size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """Where steps and values fall in a picture of ``width`` x ``height`` pixels."""

    width: int
    height: int
    last_step: int

    @property
    def floor(self) -> int:
        """Vertical position of progress 0."""
        return self.height - _AXIS - _STRIP - _GAP

    @property
    def strip(self) -> float:
        """Vertical position of reward 0."""
        return self.height - _AXIS - _STRIP / 2

    def x(self, step: float) -> float:
        return _LEFT + (self.width - _LEFT - 10) * step / max(self.last_step, 1)

    def y(self, progress: float) -> float:
        return self.floor - (self.floor - _TOP) * progress


def draw_chart(
    trace: Sequence[StepTrace], upto: int, size: tuple[int, int], *, rewards: bool = True
) -> Image.Image:
    """Draw progress and reward of the first ``upto + 1`` entries of an episode.

    Args:
        trace: All entries of the episode; they fix the horizontal range and the reward scale.
        upto: Index of the last entry that is drawn, 0 <= ``upto`` < ``len(trace)``.
        size: Width and height of the picture in pixels.
        rewards: Whether to draw the strip of rewards below the curve.

    Returns:
        An RGB picture of that size.
    """
    plane = _Plane(width=size[0], height=size[1], last_step=trace[-1].step)
    canvas = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), PAPER)
    brush = _Brush(ImageDraw.Draw(canvas))
    seen = trace[: upto + 1]
    _draw_grid(brush, plane)
    if rewards:
        largest = max((abs(entry.reward) for entry in trace), default=0.0)
        _draw_rewards(brush, plane, seen, largest)
    _draw_moments(brush, plane, seen)
    _draw_truth(brush, plane, seen)
    _draw_reading(brush, plane, seen)
    picture = canvas.resize(size, Image.Resampling.LANCZOS)
    _draw_labels(ImageDraw.Draw(picture), plane, seen)
    return picture


@dataclass(frozen=True, slots=True)
class _Brush:
    """Draws on the enlarged canvas in the coordinates of the final picture."""

    draw: ImageDraw.ImageDraw

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        if len(points) > 1:
            scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
            self.draw.line(scaled, fill=colour, width=round(width * _SCALE), joint="curve")

    def dot(self, x: float, y: float, colour: Colour, radius: float) -> None:
        box = [(v * _SCALE) for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(box, fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.draw.rectangle([v * _SCALE for v in (left, top, right, bottom)], fill=colour)

    def cross(self, x: float, y: float, colour: Colour, radius: float) -> None:
        for sign in (-1, 1):
            ends = [(x - radius, y - sign * radius), (x + radius, y + sign * radius)]
            self.line(ends, colour, 2)


def _draw_grid(brush: _Brush, plane: _Plane) -> None:
    right = plane.x(plane.last_step)
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        brush.line([(_LEFT, plane.y(level)), (right, plane.y(level))], GRID, 1)


def _draw_rewards(brush: _Brush, plane: _Plane, seen: Sequence[StepTrace], largest: float) -> None:
    """Draw one bar a step, scaled so that the largest of the episode fills the strip."""
    right = plane.x(plane.last_step)
    brush.line([(_LEFT, plane.strip), (right, plane.strip)], GRID, 1)
    half = max((plane.x(1) - plane.x(0)) * 0.4, 0.5)
    for entry in seen:
        if entry.reward == 0.0 or largest == 0.0:
            continue
        tip = plane.strip - (_STRIP / 2) * entry.reward / largest
        x, colour = plane.x(entry.step), GOOD if entry.reward > 0 else BAD
        brush.box(x - half, min(tip, plane.strip), x + half, max(tip, plane.strip), colour)


def _draw_moments(brush: _Brush, plane: _Plane, seen: Sequence[StepTrace]) -> None:
    """Mark the first success of the environment and the first completion by the model."""
    for step, colour in ((first_success(seen), GOOD), (first_complete(seen), DECLARED)):
        if step is not None:
            x = plane.x(step)
            brush.line([(x, plane.y(1.0) - 4), (x, plane.floor)], colour, 1.5)


def _draw_truth(brush: _Brush, plane: _Plane, seen: Sequence[StepTrace]) -> None:
    points = [
        (plane.x(entry.step), plane.y(entry.true_progress))
        for entry in seen
        if entry.true_progress is not None
    ]
    brush.line(points, TRUTH, 1.5)


def _draw_reading(brush: _Brush, plane: _Plane, seen: Sequence[StepTrace]) -> None:
    """Draw the held reading as steps, a dot per answer, a cross per invalid one."""
    points: list[tuple[float, float]] = []
    for entry in seen:
        if entry.progress is None:
            continue
        x, y = plane.x(entry.step), plane.y(entry.progress)
        if points:
            points.append((x, points[-1][1]))
        points.append((x, y))
    brush.line(points, READING, 2.5)
    for entry in seen:
        if entry.queried:
            x, y = plane.x(entry.step), plane.y(entry.progress or 0.0)
            if entry.valid:
                brush.dot(x, y, READING, 3.5)
            else:
                brush.cross(x, y, BAD, 4.5)


def _draw_labels(draw: ImageDraw.ImageDraw, plane: _Plane, seen: Sequence[StepTrace]) -> None:
    """Write tick labels, axis names and the legend at the final size."""
    for level in (0.0, 0.5, 1.0):
        draw.text(
            (_LEFT - 6, plane.y(level)), f"{level:.1f}", fill=FAINT, font=font(12), anchor="rm"
        )
    base = plane.height - _AXIS + 5
    draw.text((_LEFT, base), "0", fill=FAINT, font=font(12), anchor="mt")
    right = plane.x(plane.last_step)
    draw.text((right + 8, base), str(plane.last_step), fill=FAINT, font=font(12), anchor="rt")
    middle = (_LEFT + right) / 2
    draw.text((middle, base + 2), "environment step", fill=FAINT, font=font(12), anchor="mt")
    draw.text((_LEFT - 6, plane.strip), "rew.", fill=FAINT, font=font(11), anchor="rm")
    _draw_legend(draw, seen)


def _draw_legend(draw: ImageDraw.ImageDraw, seen: Sequence[StepTrace]) -> None:
    entries = [("progress read", READING)]
    if any(entry.true_progress is not None for entry in seen):
        entries.append(("truth", TRUTH))
    if first_success(seen) is not None:
        entries.append(("env: success", GOOD))
    if first_complete(seen) is not None:
        entries.append(("model: complete", DECLARED))
    x = float(_LEFT)
    for label, colour in entries:
        draw.rectangle([x, 7, x + 10, 10], fill=colour)
        draw.text((x + 14, 9), label, fill=INK, font=font(12), anchor="lm")
        x += 14 + draw.textlength(label, font=font(12)) + 12
