"""Demonstrations that show a model how a task goes: steps in words, or key frames.

A demonstration is written down as

* a list of steps, or a mapping with ``steps`` (text);
* a mapping with ``frames`` (picture files), ``folder`` (all its pictures, in natural order of their
  names) or ``video`` (frames taken evenly from first to last);
* a path: of a folder, a video, or a YAML file that holds one of the above, whose paths are relative
  to it.

A mapping from instructions to demonstrations gives each task its own. ``progress`` beside any of
them names the progress of each step or key frame in percent; without it they are evenly spaced.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from procreward.checks import check, check_int, check_names, is_number
from procreward.errors import ConfigError, FrameError, UnknownNameError
from procreward.frames import check_frame
from procreward.types import Frame

__all__ = ["DEFAULT_DEMO_FRAMES", "Demonstration", "Demonstrations", "load_demonstrations"]

DEFAULT_DEMO_FRAMES = 5
"""Key frames taken from a video: 0 %, 25 %, 50 %, 75 % and 100 %."""

_SOURCES = ("steps", "frames", "folder", "video")
_KEYS = (*_SOURCES, "progress")
_YAML = (".yaml", ".yml")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_FORMS = (
    "a list of steps, a mapping with one of `steps`, `frames`, `folder` and `video`, the path of a "
    "folder, video or YAML file, or a mapping from instructions to any of these"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demonstration:
    """One demonstration: steps in words or key frames, each with its progress.

    Attributes:
        steps: What is done, in order; empty for a visual demonstration. Step ``i`` of ``n`` (from
            1) ends at ``i / n`` of the task.
        frames: Key frames, each ``(height, width, 3) uint8``, from the task's start to its end;
            empty for a textual one. Frame ``i`` of ``n`` (from 0) shows ``i / (n - 1)``.
        progress: Progress of each step or frame in percent, in [0, 100], strictly increasing up to
            100 and, for key frames, from 0 on; empty for evenly spaced ones.
        percents: Progress of each as it is written into a prompt, in whole percent.
        pixel_digest: SHA-256 of the key frames' sizes and pixels, 64 hexadecimal digits.
        digest: SHA-256 of all that a model sees of it, 64 hexadecimal digits.

    Raises:
        ConfigError: If there are neither steps nor frames or both, a step is empty, a single key
            frame is given, or the progress is not as above.
        FrameError: If a key frame is not a picture.
    """

    steps: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()
    progress: tuple[float, ...] = ()
    percents: tuple[int, ...] = field(init=False)
    pixel_digest: str = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if bool(self.steps) == bool(self.frames):
            what = "both" if self.steps else "neither"
            raise ConfigError(f"A demonstration must have either steps or key frames, got {what}.")
        for step in self.steps:
            ok = isinstance(step, str) and bool(step.strip())
            check(ok, "steps", "a list of sentences", step)
        if len(self.frames) == 1:
            raise ConfigError(
                "A visual demonstration must have at least 2 key frames, the task's start and its "
                "end, got 1."
            )
        for index, frame in enumerate(self.frames):
            check_frame(frame, f"key frame {index} of the demonstration")
        if self.progress:
            self._check_progress()
        percents, pixels = self._whole_percents(), hashlib.sha256()
        for frame in self.frames:
            pixels.update(repr(frame.shape).encode() + np.ascontiguousarray(frame).tobytes())
        words = json.dumps([self.steps, percents, pixels.hexdigest()])
        object.__setattr__(self, "percents", percents)
        object.__setattr__(self, "pixel_digest", pixels.hexdigest())
        object.__setattr__(self, "digest", hashlib.sha256(words.encode()).hexdigest())

    @property
    def visual(self) -> bool:
        """Whether it shows key frames rather than steps in words."""
        return bool(self.frames)

    def _whole_percents(self) -> tuple[int, ...]:
        if self.progress:
            return tuple(round(value) for value in self.progress)
        first, total = (0, len(self.frames) - 1) if self.visual else (1, len(self.steps))
        return tuple(round(i / total * 100) for i in range(first, total + 1))

    def _check_progress(self) -> None:
        values, count = self.progress, len(self.steps) + len(self.frames)
        check(all(map(is_number, values)), "progress", "a list of percentages", values)
        if len(values) != count:
            what = "key frame" if self.visual else "step"
            raise ConfigError(
                f"`progress` must hold one percentage per {what} ({count}), got {len(values)}."
            )
        rises = all(one < two for one, two in pairwise(values))
        start = values[0] == 0 if self.visual else values[0] > 0
        if not (rises and start and values[-1] == 100):
            first = "from 0" if self.visual else "from above 0"
            raise ConfigError(
                f"`progress` must increase strictly {first} to 100 percent, got {list(values)}."
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Demonstrations:
    """The demonstration of every task: one for all, or one per instruction.

    Attributes:
        common: The demonstration of every instruction, or None.
        by_instruction: Instruction, without blanks around it, to its demonstration; used when there
            is no common one.

    Raises:
        ConfigError: If there is none at all, or both kinds are given.
    """

    common: Demonstration | None = None
    by_instruction: Mapping[str, Demonstration] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.common is None) == (not self.by_instruction):
            raise ConfigError(
                "There must be either one demonstration for all instructions or one for each, got "
                f"{'neither' if self.common is None else 'both'}."
            )

    def find(self, instruction: str) -> Demonstration:
        """Return the demonstration of a task.

        Args:
            instruction: The task; blanks around it do not count.

        Raises:
            ConfigError: If there is none for it.
        """
        if self.common is not None:
            return self.common
        found = self.by_instruction.get(instruction.strip())
        if found is None:
            known = ", ".join(map(repr, self.by_instruction))
            raise ConfigError(
                f"`demo` must hold a demonstration for every instruction, got none for "
                f"{instruction!r}. It has: {known}."
            )
        return found

    def describe(self) -> dict[str, object]:
        """Return a JSON-able account: of the common one, or of each by its instruction."""
        if self.common is not None:
            return _account(self.common)
        return {name: _account(demo) for name, demo in self.by_instruction.items()}


def load_demonstrations(
    demo: object, *, demo_frames: int = DEFAULT_DEMO_FRAMES, folder: str | Path = "."
) -> Demonstrations:
    """Read what a user wrote as demonstration.

    Args:
        demo: One of the forms that this module's docstring lists, or a :class:`Demonstration`, a
            :class:`Demonstrations`, or a mapping from instructions to either.
        demo_frames: Key frames taken from a video, at least 2.
        folder: Where relative paths start.

    Returns:
        The demonstrations, pictures loaded.

    Raises:
        ConfigError: If it is none of these forms, a file is missing, or a value cannot be right.
        UnknownNameError: If a mapping has a key that is misspelt.
        FrameError: If a picture or video cannot be read.
    """
    check_int("demo_frames", demo_frames, least=2, fix="The first and the last frame are two.")
    if isinstance(demo, Demonstrations):
        return demo
    root = Path(folder)
    if isinstance(demo, str | Path) and Path(demo).suffix.lower() in _YAML:
        path = root / Path(demo).expanduser()
        demo, root = _read_yaml(path), path.parent
    if isinstance(demo, Mapping) and _is_per_instruction(demo):
        loaded = {str(k).strip(): _load(v, demo_frames, root) for k, v in demo.items()}
        return Demonstrations(by_instruction=loaded)
    return Demonstrations(common=_load(demo, demo_frames, root))


def _load(demo: object, demo_frames: int, root: Path) -> Demonstration:
    if isinstance(demo, Demonstration):
        return demo
    if isinstance(demo, str | Path):
        path = root / _path("demo", demo)
        if path.suffix.lower() in _YAML:
            return _load(_read_yaml(path), demo_frames, path.parent)
        demo = {"folder" if path.is_dir() else "video": str(demo)}
    elif isinstance(demo, Sequence):
        demo = {"steps": demo}
    if not isinstance(demo, Mapping) or not demo:
        raise ConfigError(f"`demo` must be {_FORMS}, got {demo!r}.")
    return _from_mapping(demo, demo_frames, root)


def _from_mapping(demo: Mapping[Any, Any], demo_frames: int, root: Path) -> Demonstration:
    check_names("demonstration setting", demo, _KEYS)
    given = [name for name in _SOURCES if name in demo]
    if len(given) != 1:
        raise ConfigError(
            f"`demo` must have exactly one of {', '.join(_SOURCES)}, got "
            f"{', '.join(given) or 'none'}."
        )
    name = given[0]
    value = demo[name]
    progress = _list("progress", demo.get("progress") or ())
    if name == "steps":
        return Demonstration(steps=_list("steps", value), progress=progress)
    if name == "frames":
        frames = tuple(_picture(root / _path("frames", item)) for item in _list("frames", value))
        check(bool(frames), "frames", "a list of at least 2 picture files", value)
    elif name == "folder":
        frames = _folder(root / _path("folder", value))
    else:
        count = max(2, len(progress)) if progress else demo_frames
        frames = _video(root / _path("video", value), count)
    return Demonstration(frames=frames, progress=progress)


def _is_per_instruction(demo: Mapping[Any, Any]) -> bool:
    """Whether the keys are instructions; a misspelt setting is not taken for one."""
    if not demo or any(key in _KEYS for key in demo):
        return False
    for key in demo:
        if difflib.get_close_matches(str(key), _KEYS, n=1, cutoff=0.7):
            raise UnknownNameError("demonstration setting", str(key), _KEYS)
    return True


def _list(name: str, value: object) -> tuple[Any, ...]:
    ok = isinstance(value, Sequence) and not isinstance(value, str)
    check(ok, name, "a list", value)
    assert isinstance(value, Sequence)
    if name == "steps":
        check(len(value) > 0, name, "a list of at least one sentence", value)
    return tuple(value)


def _path(name: str, value: object) -> Path:
    check(isinstance(value, str | Path) and str(value) != "", name, "a path", value)
    assert isinstance(value, str | Path)
    return Path(value).expanduser()


def _read_yaml(path: Path) -> object:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The demonstration {str(path)!r} cannot be read: {error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The demonstration {str(path)!r} is not valid YAML: {error}") from error


def _folder(path: Path) -> tuple[Frame, ...]:
    if not path.is_dir():
        raise ConfigError(f"`folder` must be a folder of pictures, got {str(path)!r}: no such one.")
    names = [item for item in path.iterdir() if item.suffix.lower() in _PICTURES]
    files = sorted((item for item in names if not item.name.startswith(".")), key=_natural)
    if not files:
        raise ConfigError(
            f"`folder` must hold pictures ({', '.join(_PICTURES)}), got none in {str(path)!r}."
        )
    return tuple(_picture(item) for item in files)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key by which ``frame_9`` comes before ``frame_10``."""
    pieces = re.split(r"([0-9]+)", path.name.lower())
    # Pieces at odd places are numbers; equal ones ("1", "01") are told apart by the name itself.
    key = [(int(piece), "") if i % 2 else (-1, piece) for i, piece in enumerate(pieces)]
    return key, path.name


def _picture(path: Path) -> Frame:
    from PIL import Image, ImageOps

    if not path.is_file():
        raise ConfigError(f"`demo` must name picture files, got {str(path)!r}: no such file.")
    try:
        with Image.open(path) as image:
            frame: Frame = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FrameError(f"{str(path)!r} cannot be read as a picture: {error}.") from error
    return check_frame(frame, str(path))


def _video(path: Path, count: int) -> tuple[Frame, ...]:
    # Here, since videos are read by a module that knows the scorers.
    from procreward.video import VideoReader

    if not path.is_file():
        raise ConfigError(
            f"`demo` must name a folder, a video or a YAML file, got {str(path)!r}: there is no "
            "such file or folder."
        )
    with VideoReader(path) as video:
        total = sum(1 for _ in video)
    if total < count:
        raise ConfigError(
            f"`demo_frames` must be at most the video's number of frames, got {count} for the "
            f"{total} of {str(path)!r}."
        )
    # Read twice rather than kept: a long video does not fit in memory.
    wanted = {round(i * (total - 1) / (count - 1)) for i in range(count)}
    with VideoReader(path) as video:
        return tuple(frame for index, frame in enumerate(video) if index in wanted)


def _account(demo: Demonstration) -> dict[str, object]:
    return {
        "kind": "visual" if demo.visual else "text",
        "count": len(demo.frames) or len(demo.steps),
        "percents": list(demo.percents),
        "sha256": demo.digest,
    }
