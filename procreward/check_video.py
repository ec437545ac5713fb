"""``check_video``: is the instruction completed at a moment of a video? For files, without a robot.

* :class:`CheckVideo` - the settings, also the arguments of ``procreward check video``.
* :func:`check_video` - the judge's answers as :class:`VideoVerdict`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from procreward.checks import check, check_frame_size, check_int
from procreward.errors import ConfigError, FrameError
from procreward.instruction import check_instruction

if TYPE_CHECKING:
    from procreward.registry import ScorerHandle
    from procreward.types import Frame, Score
    from procreward.video import VideoReader

__all__ = ["CheckVideo", "VideoVerdict", "check_video", "run_check_video"]

ONLY_VIEW = "video"
"""Name of the view of a video that comes without one."""

JUDGE = "completion_judge"
"""The scorer that a bare model folder or hub id is run as, and whose views can be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckVideo:
    """Judge whether a task is completed in a video: one JSON object per moment.

    Either one VIDEO, or several views of the same scene, each with --view.
    """

    video: tyro.conf.Positional[Path | None] = None
    """The video file."""
    instruction: str
    """The task in words."""
    view: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A view and its file, such as right=FILE; the name of one of the judge's views or its end."""
    judge: str = "nano-judge"
    """Judge: preset, registered scorer, model folder or hub id."""
    model: str | None = None
    """Model folder or hub id in place of the preset's."""
    adapter: str | None = None
    """Adapter folder or hub id in place of the preset's."""
    at_frame: int | None = None
    """Frame that is judged, from 0; without it, the last one."""
    every_k_frames: int | None = None
    """Video frames from one judgement to the next, from the first to the last."""
    window_frames: int | None = None
    """Frames that the judge is shown; without it, what suits the judge."""
    frame_stride_frames: int | None = None
    """Video frames between neighbouring frames of a clip; without it, what suits the judge."""
    frame_size: tuple[int, int] | None = None
    """Width and height in pixels that frames are resized to; without it, as they are."""

    def __post_init__(self) -> None:
        for name in ("every_k_frames", "window_frames", "frame_stride_frames"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), least=1)
        if self.at_frame is not None:
            check_int("at_frame", self.at_frame, least=0)
            fix = "Give one of the two."
            check(self.every_k_frames is None, "at_frame", "alone", self.at_frame, fix)
        if self.frame_size is not None:
            size = check_frame_size("frame_size", self.frame_size)
            object.__setattr__(self, "frame_size", size)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoVerdict:
    """What a judge says about one moment of a video.

    Attributes:
        frame_index: Frame that is judged, from 0.
        timestamp_sec: Its time in seconds.
        views: Names of the views that were looked at, as they were given.
        complete: Whether the task is completed, or None if the model did not say (the score then
            holds the reason).
        score: The model's answer.
        model: What answered, as its configuration names it, or None.
        adapter: The adapter on it, likewise.
    """

    frame_index: int
    timestamp_sec: float
    views: tuple[str, ...]
    complete: bool | None
    score: Score
    model: str | None
    adapter: str | None

    def as_card(self) -> dict[str, Any]:
        """Return the record in the shape of the RoboCasa judge's card, with keys of our own.

        ``prediction``, ``ensemble`` and ``scores`` are the card's: the smaller score is the
        likelier label. What the model does not give is None.
        """
        details = self.score.details
        labels = {"complete": "score_complete", "not complete": "score_not_complete"}
        known = all(name in details for name in labels.values())
        return {
            "prediction": _prediction(self.complete),
            "ensemble": "+".join(self.views),
            "scores": {label: details[name] for label, name in labels.items()} if known else None,
            "log_odds": details.get("log_odds"),
            "success_prob": self.score.success_prob,
            "progress": self.score.progress,
            "reason": self.score.reason,
            "frame_index": self.frame_index,
            "timestamp_sec": self.timestamp_sec,
            "frames": _count(details, "frames"),
            "padded_frames": _count(details, "padded_frames"),
            "model": self.model,
            "adapter": self.adapter,
        }


def _prediction(complete: bool | None) -> Literal["complete", "not complete"] | None:
    if complete is None:
        return None
    return "complete" if complete else "not complete"


def _count(details: Mapping[str, float], name: str) -> int | None:
    return int(details[name]) if name in details else None


def run_check_video(command: CheckVideo, write: Callable[[str], object]) -> list[VideoVerdict]:
    """Judge a video and write one line of JSON per moment.

    Args:
        command: What to do.
        write: Takes the lines.

    Returns:
        What was written.

    Raises:
        ProcrewardError: As :func:`check_video` does.
    """
    verdicts = check_video(command)
    for verdict in verdicts:
        write(json.dumps(verdict.as_card(), ensure_ascii=False, allow_nan=False))
    return verdicts


def check_video(command: CheckVideo) -> list[VideoVerdict]:
    """Judge a video at its last frame, at a given one, or at every k-th.

    The clip that ends at the moment is cut as it is from an environment's stream, with the window
    that suits the judge. A model that gives no label of its own is read against its preset's
    ``complete_threshold``.

    Args:
        command: The files and the settings.

    Returns:
        One verdict per moment, in order.

    Raises:
        ConfigError: If a file is missing, views are named wrongly, there is no such judge or no
            such frame.
        FrameError: If a file is no video, the views differ in length or frame rate, or frames have
            another size than the model takes.
        InstructionError: If the instruction is empty.
        ScorerError: If the judge breaks its contract, or fails too often.
        ModelError: If the judge cannot be loaded.
    """
    from procreward.video import VideoReader

    check_instruction(command.instruction)
    files = _files(command)
    handle, names = _judge(command, tuple(files))
    with ExitStack() as stack:
        readers = {
            names[given]: stack.enter_context(VideoReader(path, frame_size=command.frame_size))
            for given, path in files.items()
        }
        fps = _frame_rate(readers)
        judging = _Judging(command, handle, tuple(files), fps)
        stack.callback(judging.end)
        verdicts = list(judging.verdicts(readers))
    if not verdicts:
        raise ConfigError(
            f"`at_frame` must be below the video's number of frames, {judging.frames}, got "
            f"{command.at_frame}. Frames count from 0."
        )
    return verdicts


class _Judging:
    """One run over the frames of a video."""

    def __init__(
        self,
        command: CheckVideo,
        handle: ScorerHandle,
        views: tuple[str, ...],
        fps: float,
    ) -> None:
        from procreward.config import RewardConfig
        from procreward.frames import FrameBuffer
        from procreward.registry import get_scorer
        from procreward.runner import QueryRunner

        preset = handle.preset
        self._command, self._preset = command, preset
        self._views, self._fps = views, fps
        self._account = get_scorer(handle).describe()
        most_failures = RewardConfig().max_consecutive_failures
        self._runner = QueryRunner(handle, max_consecutive_failures=most_failures)
        self._stream = uuid.uuid4().hex
        self._buffer = FrameBuffer(
            command.window_frames or preset.window_frames,
            frame_stride_steps=command.frame_stride_frames or preset.frame_stride_steps,
            pad=preset.pad,
        )
        self.frames = 0

    def verdicts(self, readers: Mapping[str, VideoReader]) -> Iterator[VideoVerdict]:
        for index, (frames, last) in enumerate(_together(readers)):
            if index == 0:
                self._check_size(frames)
            self.frames = index + 1
            self._buffer.push(frames, index)
            if self._due(index, last=last):
                yield self._verdict(index)
            if index == self._command.at_frame and len(readers) == 1:
                return  # several views are read on, to see that they are of one length

    def end(self) -> None:
        """Let the model forget the video, if it wants to know."""
        self._runner.release([self._stream])

    def _due(self, index: int, *, last: bool) -> bool:
        if self._command.at_frame is not None:
            return index == self._command.at_frame
        every = self._command.every_k_frames
        return last or (every is not None and index % every == 0)

    def _verdict(self, index: int) -> VideoVerdict:
        from procreward.runner import DueQuery
        from procreward.types import Query, Score

        clips, steps = self._buffer.window()
        query = Query(
            frames=clips,
            instruction=self._command.instruction,
            frame_steps=steps,
            stream=self._stream,
            fps=self._fps,
        )
        (answer,) = self._runner.run([DueQuery(role="scorer", query=query)])
        score = answer if isinstance(answer, Score) else Score(reason=answer.reason)
        model, adapter = (self._account.get(name) for name in ("model", "adapter"))
        return VideoVerdict(
            frame_index=index,
            timestamp_sec=index / self._fps,
            views=self._views,
            complete=self._complete(score),
            score=score,
            model=None if model is None else str(model),
            adapter=None if adapter is None else str(adapter),
        )

    def _complete(self, score: Score) -> bool | None:
        if score.complete is not None:
            return score.complete
        reading = score.progress if score.success_prob is None else score.success_prob
        return None if reading is None else reading >= self._preset.complete_threshold

    def _check_size(self, frames: Mapping[str, Frame]) -> None:
        """Name the option that helps, which the model's own message cannot know."""
        size = self._account.get("frame_size")
        if not isinstance(size, list | tuple):
            return
        for view, frame in frames.items():
            height, width = frame.shape[:2]
            if (width, height) != tuple(size):
                raise FrameError(
                    f"The judge {self._command.judge!r} takes frames of {size[0]}x{size[1]} "
                    f"pixels, got {width}x{height} of view {view!r}. Resize them with "
                    f"`--frame-size {size[0]} {size[1]}`."
                )


def _files(command: CheckVideo) -> dict[str, Path]:
    """View name, as it was given, to file."""
    if (command.video is None) == (not command.view):
        raise ConfigError(
            "`video` must be one file, or be left out for `--view NAME=FILE`, got "
            f"{'neither' if command.video is None else 'both'}."
        )
    if command.video is not None:
        return {ONLY_VIEW: command.video}
    files: dict[str, Path] = {}
    for item in command.view:
        name, _, path = item.partition("=")
        check(bool(name and path), "view", "NAME=FILE, such as right=right.mp4", item)
        check(name not in files, "view", "given once per name", item)
        files[name] = Path(path)
    return files


def _judge(command: CheckVideo, given: tuple[str, ...]) -> tuple[ScorerHandle, dict[str, str]]:
    """Resolve the judge, told which views there are; also the given names to the judge's own."""
    from procreward.config import preset_names
    from procreward.registry import MODEL_SCORER, resolve

    handle = resolve(command.judge)
    bare = handle.config.model == command.judge and command.judge not in preset_names()
    if bare and handle.config.name == MODEL_SCORER:
        # What a bare folder or hub id is asked here is a judge's question.
        handle = resolve({"name": JUDGE, "model": command.judge})
    changes: dict[str, Any] = {}
    if command.model is not None:
        changes |= {"model": command.model, "revision": None}
    if command.adapter is not None:
        changes["adapter"] = command.adapter
    names = {name: name for name in given}
    if handle.config.name == JUDGE:
        weights = _weights(handle.config.options.get("views"))
        names = {name: _full_name(name, weights) for name in given}
        check(len(set(names.values())) == len(names), "view", "given once per view", given)
        known = all(name in weights for name in names.values())
        chosen = {name: weights[name] if known else 1.0 for name in names.values()}
        changes["options"] = {**handle.config.options, "views": chosen}
    if not changes:
        return handle, names
    config = replace(handle.config, **changes)
    preset = replace(handle.preset, scorer=config)
    return replace(handle, key=config.key(), spec=config.to_dict(), preset=preset), names


def _weights(views: object) -> dict[str, float]:
    """The views that a judge is configured for."""
    if isinstance(views, Mapping):
        return {str(name): float(weight) for name, weight in views.items()}
    return dict.fromkeys(map(str, views), 1.0) if isinstance(views, list | tuple) else {}


def _full_name(name: str, known: Mapping[str, float]) -> str:
    """Complete ``right`` to ``robot0_agentview_right``; a name that fits none stays as it is."""
    if name in known:
        return name
    fits = [full for full in known if full.endswith((f"_{name}", f"/{name}"))]
    return fits[0] if len(fits) == 1 else name


def _frame_rate(readers: Mapping[str, VideoReader]) -> float:
    rates = {view: reader.fps for view, reader in readers.items()}
    if len(set(rates.values())) > 1:
        raise FrameError(
            "The views must have the same frame rate, got "
            f"{', '.join(f'{rate:g} fps of {view!r}' for view, rate in rates.items())}. Write all "
            "with the rate at which the cameras were read."
        )
    return next(iter(rates.values()))


def _together(readers: Mapping[str, VideoReader]) -> Iterator[tuple[dict[str, Frame], bool]]:
    """Yield the frames of all views, and whether they are the last, by reading one ahead."""
    streams = {view: iter(reader) for view, reader in readers.items()}
    count = 0
    ahead = {view: next(stream, None) for view, stream in streams.items()}
    while True:
        frames = {view: frame for view, frame in ahead.items() if frame is not None}
        if not frames:
            return
        if len(frames) < len(ahead):
            ended = [view for view in ahead if view not in frames]
            raise FrameError(
                f"The views must have the same number of frames, but {', '.join(map(repr, ended))} "
                f"ended after {count} while {', '.join(map(repr, frames))} went on. Cut them to "
                "the same moments."
            )
        count += 1
        ahead = {view: next(stream, None) for view, stream in streams.items()}
        yield frames, all(frame is None for frame in ahead.values())
