"""What the engines share that hand a prompt to another program's preprocessing and chat template.

Such a program crops nothing, resizes by rules of its own and takes control tokens wherever they
stand in a text. So frames are cut and resized here, to a size that the program leaves alone, and
words are checked here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from procreward.engine import Clip, Prompt
from procreward.errors import InstructionError

if TYPE_CHECKING:
    from procreward.engine.vision.preprocess import PreprocessConfig
    from procreward.types import Frames

__all__ = ["VideoNotice", "check_words", "clips_of", "fit_frames"]

logger = logging.getLogger(__name__)

_CONTROL = re.compile(r"<\|[^\s<>|]+\|>")


def check_words(prompt: Prompt) -> None:
    """Refuse words that a chat template would take for the end of a turn or for a picture.

    Args:
        prompt: The prompt.

    Raises:
        InstructionError: If one of its texts contains a control token such as ``<|im_end|>``.
    """
    words = [part for part in prompt.parts if isinstance(part, str)]
    for text in ("".join(words), prompt.assistant_prefix, prompt.system or ""):
        if _CONTROL.search(text):
            raise InstructionError(
                f"A prompt text must not contain control tokens such as '<|im_end|>', got {text!r}."
            )


class VideoNotice:
    """Says once that video clips are shown as separate pictures, which is another prompt.

    Args:
        where: Who is shown them, for the message.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._said = False

    def look(self, clips: Iterable[Clip]) -> None:
        """Log a warning if there is a video among the clips and none was logged before.

        Args:
            clips: What is about to be shown.
        """
        if not self._said and any(clip.video for clip in clips):
            self._said = True
            logger.warning(
                "Video clips are shown to %s as separate pictures without times, which is another "
                "prompt than the model's own for videos.",
                self._where,
            )


def clips_of(prompt: Prompt) -> list[Clip]:
    """Return the clips of a prompt in their order."""
    return [part for part in prompt.parts if isinstance(part, Clip)]


def fit_frames(frames: Frames, config: PreprocessConfig, *, video: bool = False) -> Frames:
    """Crop and resize frames as our own preprocessing does, but leave them pictures.

    Args:
        frames: ``(num_frames, height, width, 3) uint8``.
        config: The model's settings.
        video: Whether the budget of a whole clip counts instead of that of an image.

    Returns:
        ``(num_frames, rows * patch, columns * patch, 3) uint8``: a size that Qwen-VL's published
        preprocessing, with the same settings, does not change again.

    Raises:
        FrameError: If the frames have another dtype, shape or size than the model expects.
    """
    import torch

    from procreward.engine.vision.preprocess import check_frames

    check_frames(frames, config)
    if video:
        _, rows, columns = config.video_grid(*frames.shape[:3])
    else:
        _, rows, columns = config.image_grid(frames.shape[1], frames.shape[2])
    size = (rows * config.patch, columns * config.patch)
    if config.crop is not None:
        top, left, high, wide = config.crop
        frames = frames[:, top : top + high, left : left + wide]
    if frames.shape[1:3] == size:
        return frames
    pixels = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    resized: Frames = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    return resized
