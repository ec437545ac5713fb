"""Frames on their way to a scorer.

* :func:`check_frame` - refuses whatever is not an upright RGB picture with content, and says why.
* :class:`FrameBuffer` - the recent frames of one episode, cut into the windows a scorer is shown.

Where frames come from is in :mod:`procreward.sources`, when one is needed in
:mod:`procreward.schedule`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from procreward.checks import check_int
from procreward.errors import FrameError
from procreward.types import Frame, Frames

__all__ = ["FrameBuffer", "check_frame", "layout_defect"]


def check_frame(frame: object, where: str) -> Frame:
    """Return ``frame`` unchanged if it is a picture that a scorer can look at.

    Args:
        frame: What should be an upright RGB picture, ``(height, width, 3) uint8`` in [0, 255].
            Read-only and non-contiguous arrays are fine.
        where: What the message calls the frame, such as ``"view 'agentview' at step 3"``.

    Returns:
        The same array, not copied.

    Raises:
        FrameError: If it is no array, has another dtype or layout, is empty, or is black all over.

    Example:
        >>> import numpy as np
        >>> check_frame(np.full((3, 64, 64), 9, np.uint8), "view 'front'")
        Traceback (most recent call last):
            ...
        procreward.errors.FrameError: `view 'front'` must be a (height, width, 3) uint8 RGB \
picture, got uint8 of shape (3, 64, 64), which is channels first; transpose it with \
`np.moveaxis(frame, 0, -1)`.
    """
    if not isinstance(frame, np.ndarray):
        raise FrameError(
            f"`{where}` must be a (height, width, 3) uint8 RGB picture, got "
            f"{type(frame).__name__}; convert it to a NumPy array."
        )
    defect = layout_defect(frame.shape, frame.dtype, _value_range(frame))
    if defect:
        raise FrameError(f"`{where}` must be a (height, width, 3) uint8 RGB picture, got {defect}")
    if not frame.any():
        raise FrameError(
            f"`{where}` must show something, got a frame that is black all over (every pixel is "
            "0). Such frames are rendered from another thread than the one that made the "
            "environment, or with rendering disabled; render on the environment's own thread."
        )
    return frame


def layout_defect(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], value_range: tuple[float, float] | None
) -> str:
    """Say what is wrong with an array's layout, or return ``""`` when it is a picture's.

    Args:
        shape: Shape of the array or of its observation space.
        dtype: Its dtype.
        value_range: Least and largest value if known, so that pictures in [0, 1] are named.

    Returns:
        The end of a sentence that starts with "got", with the fix; empty if nothing is wrong.
    """
    got = f"{dtype} of shape {shape}"
    problem = _shape_problem(shape)
    if problem:
        return f"{got}, {problem}"
    if dtype == np.uint8:
        return ""
    if np.issubdtype(dtype, np.floating):
        if value_range is not None and value_range[0] >= 0.0 and value_range[1] <= 1.0:
            return (
                f"{got} with values in [0, 1], which is a float picture; convert it with "
                "`np.round(255 * frame).astype(np.uint8)`."
            )
        return f"{got}; convert it to uint8 in [0, 255] with `np.round(...)` and `astype`."
    return f"{got}; convert it to uint8 in [0, 255] with `astype(np.uint8)`."


def _shape_problem(shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return "which has no pixels."
    if len(shape) == 2:
        return "which is a grey picture; repeat the channel with `np.repeat(x[..., None], 3, -1)`."
    if len(shape) == 4:
        return "which is several pictures; pass one of them."
    if len(shape) != 3:
        return "which is no picture."
    if shape[2] == 3:
        return ""
    if shape[0] == 3:
        return "which is channels first; transpose it with `np.moveaxis(frame, 0, -1)`."
    if shape[2] == 4:
        return "which has an alpha channel; drop it with `frame[..., :3]`."
    return f"which has {shape[2]} channels instead of 3."


def _value_range(frame: npt.NDArray[Any]) -> tuple[float, float] | None:
    if frame.size == 0 or not np.issubdtype(frame.dtype, np.floating):
        return None
    return float(frame.min()), float(frame.max())


class FrameBuffer:
    """The recent frames of one episode of one environment, as windows for a scorer.

    The window at step ``t`` holds the frames of steps ``t, t - s, t - 2s, ...`` for a stride of
    ``s`` steps, oldest first. If such a step was never pushed (a camera is rendered only when a
    scheduled query needs its frame, and an episode may end between two queries), the latest stored
    frame that is still at least one stride older than its successor stands in. Steps before the
    episode's first frame are filled with that frame when ``pad``, and left out otherwise.

    Frames are copied when pushed: vector environments and simulators reuse their buffers. What no
    later window can show is dropped, so at most ``(window_frames - 1) * frame_stride_steps + 1``
    frames are held per view.

    Call :meth:`clear` at a reset and never at the end of an episode: the final query still needs
    the old frames.

    Args:
        window_frames: Frames in a full window, at least 1.
        frame_stride_steps: Environment steps between neighbouring frames, at least 1.
        pad: Whether windows at the start of an episode are filled up with its first frame, so that
            every query has the same number of frames.

    Raises:
        ConfigError: If a number is below 1 or no integer.

    Example:
        >>> import numpy as np
        >>> buffer = FrameBuffer(3, frame_stride_steps=2)
        >>> for step in range(4):
        ...     buffer.push({"front": np.full((4, 4, 3), 10 + step, np.uint8)}, step)
        >>> frames, steps = buffer.window()
        >>> steps, frames["front"].shape, frames["front"][:, 0, 0, 0].tolist()
        ((0, 1, 3), (3, 4, 4, 3), [10, 11, 13])
    """

    def __init__(self, window_frames: int, *, frame_stride_steps: int = 1, pad: bool = True):
        check_int("window_frames", window_frames, least=1)
        check_int("frame_stride_steps", frame_stride_steps, least=1)
        self.window_frames = window_frames
        self.frame_stride_steps = frame_stride_steps
        self.pad = pad
        self._steps: list[int] = []
        self._frames: dict[int, dict[str, Frame]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        """Return the number of steps whose frames are held."""
        return len(self._steps)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views of this episode, empty before its first frame."""
        return tuple(self._shapes)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest frame, or None before the first."""
        return self._steps[-1] if self._steps else None

    def latest(self) -> dict[str, Frame]:
        """Return the newest frame of every view, read-only; empty before the first."""
        return dict(self._frames[self._steps[-1]]) if self._steps else {}

    def clear(self) -> None:
        """Forget everything: a new episode begins, possibly with other views and shapes."""
        self._steps.clear()
        self._frames.clear()
        self._shapes.clear()

    def push(self, frames: Mapping[str, Frame], step: int) -> None:
        """Store a copy of the frames of one step.

        Args:
            frames: View name to picture, ``(height, width, 3) uint8``, the same views with the
                same shapes all through an episode.
            step: Step of the episode, larger than that of the last push. Steps may be left out.

        Raises:
            FrameError: If a frame is not a picture (see :func:`check_frame`), a view is missing,
                new or changed its shape, or the step is not larger than the last one. The buffer
                is then unchanged.
        """
        if self._steps and step <= self._steps[-1]:
            raise FrameError(
                f"`step` must be larger than that of the last frame, {self._steps[-1]}, got "
                f"{step}; call clear() when an episode begins."
            )
        for view, frame in frames.items():
            check_frame(frame, f"view {view!r} at step {step}")
        self._check_views(frames, step)
        copies = {view: np.array(frame, order="C") for view, frame in frames.items()}
        for copy in copies.values():
            copy.flags.writeable = False
        if not self._shapes:
            self._shapes = {view: copy.shape for view, copy in copies.items()}
        self._steps.append(step)
        self._frames[step] = copies
        self._drop_unreachable()

    def window(self) -> tuple[dict[str, Frames], tuple[int, ...]]:
        """Cut the window that ends at the newest frame.

        Returns:
            View name to clip, ``(num_frames, height, width, 3) uint8``, oldest first, and the step
            of each frame. With ``pad`` there are always ``window_frames`` of them, and the first
            step is repeated as often as the first frame is.

        Raises:
            FrameError: If nothing was pushed since the last :meth:`clear`.
        """
        if not self._steps:
            raise FrameError("window() needs a frame, got none; push the reset frame first.")
        steps = self._reachable()
        if self.pad:
            steps = [self._steps[0]] * (self.window_frames - len(steps)) + steps
        clips = {view: np.stack([self._frames[s][view] for s in steps]) for view in self._shapes}
        return clips, tuple(steps)

    def _reachable(self) -> list[int]:
        """Steps of the window without padding, oldest first."""
        chosen = [self._steps[-1]]
        while len(chosen) < self.window_frames:
            index = bisect_right(self._steps, chosen[-1] - self.frame_stride_steps)
            if index == 0:
                break
            chosen.append(self._steps[index - 1])
        return chosen[::-1]

    def _drop_unreachable(self) -> None:
        # Each place of a later window holds a frame no older than the same place of this one, so a
        # full window's oldest frame is the oldest that will ever be shown again.
        steps = self._reachable()
        if len(steps) < self.window_frames:
            return
        keep = bisect_right(self._steps, steps[0] - 1)
        for step in self._steps[:keep]:
            del self._frames[step]
        del self._steps[:keep]

    def _check_views(self, frames: Mapping[str, Frame], step: int) -> None:
        if not frames:
            raise FrameError(f"`frames` at step {step} must have at least one view, got none.")
        if not self._shapes:
            return
        if set(frames) != set(self._shapes):
            raise FrameError(
                f"`frames` at step {step} must have the episode's views "
                f"{sorted(self._shapes)}, got {sorted(frames)}."
            )
        for view, frame in frames.items():
            if frame.shape != self._shapes[view]:
                raise FrameError(
                    f"`view {view!r}` must keep its shape {self._shapes[view]} during an episode, "
                    f"got {frame.shape} at step {step}."
                )
