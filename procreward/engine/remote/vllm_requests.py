"""What ``vllm.LLM.generate`` takes for a prompt, and how label likelihoods are read off it.

Nothing here imports vLLM.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from procreward.engine import Clip, Prompt
from procreward.engine.remote.outside import check_words, clips_of, fit_frames
from procreward.errors import ModelError

if TYPE_CHECKING:
    from procreward.engine.vision.preprocess import PreprocessConfig
    from procreward.types import Frames

__all__ = ["label_nll_of", "vllm_request", "vllm_text"]

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
_TEMPORAL = 2


def vllm_text(prompt: Prompt, default_system: str | None = None) -> str:
    """Write a prompt in Qwen's chat layout, with one placeholder for each picture or video.

    Args:
        prompt: The prompt.
        default_system: The system turn where the prompt has none, or None for no such turn.

    Returns:
        The text that vLLM tokenises and expands.

    Raises:
        InstructionError: If a text contains control tokens.
    """
    check_words(prompt)
    system = default_system if prompt.system is None else prompt.system
    text = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    text += "<|im_start|>user\n"
    for part in prompt.parts:
        if isinstance(part, str):
            text += part
        else:
            text += _VIDEO if part.video else _IMAGE * len(part.frames)
    if prompt.open_turn:
        return text
    return f"{text}<|im_end|>\n<|im_start|>assistant\n{prompt.assistant_prefix}"


def vllm_request(
    prompt: Prompt, config: PreprocessConfig, default_system: str | None = None
) -> dict[str, Any]:
    """Build what ``vllm.LLM.generate`` takes for one prompt.

    Args:
        prompt: The prompt.
        config: How frames are cut and resized.
        default_system: The system turn where the prompt has none, or None for no such turn.

    Returns:
        ``prompt``, and where there are clips ``multi_modal_data`` and, for frames with keys,
        ``multi_modal_uuids``.

    Raises:
        FrameError: If frames do not fit the model.
        InstructionError: If a text contains control tokens.
    """
    from PIL import Image

    data: dict[str, list[Any]] = {}
    ids: dict[str, list[str | None]] = {}
    for clip in clips_of(prompt):
        frames = fit_frames(clip.frames, config, video=clip.video)
        if clip.video:
            data.setdefault("video", []).append(_video(clip, frames))
            ids.setdefault("video", []).append(_video_id(clip, frames))
        else:
            # Pictures, since vLLM takes the first axis of an array for its colours.
            data.setdefault("image", []).extend(Image.fromarray(frame) for frame in frames)
            ids.setdefault("image", []).extend(_image_ids(clip, frames))
    request: dict[str, Any] = {"prompt": vllm_text(prompt, default_system)}
    if data:
        request["multi_modal_data"] = data
    if any(name is not None for names in ids.values() for name in names):
        request["multi_modal_uuids"] = ids
    return request


def label_nll_of(
    prompt_ids: Sequence[int],
    prompt_logprobs: Sequence[Mapping[int, Any] | None] | None,
    label: Sequence[int],
) -> float:
    """Add up the likelihoods of a label that ends a prompt.

    Args:
        prompt_ids: Token ids of the prompt as vLLM ran it, pictures expanded.
        prompt_logprobs: For each of them, its own and other tokens' log-probabilities.
        label: Token ids of the label.

    Returns:
        Negative log-likelihood in nats.

    Raises:
        ModelError: If the prompt does not end in the label, or a likelihood is missing.
    """
    count = len(label)
    ends_in_label = tuple(prompt_ids[len(prompt_ids) - count :]) == tuple(label)
    if prompt_logprobs is None or len(prompt_logprobs) != len(prompt_ids) or not ends_in_label:
        raise ModelError(
            "vLLM must give a log-probability for each token of the prompt, the label's last, got "
            f"{None if prompt_logprobs is None else len(prompt_logprobs)} for {len(prompt_ids)} "
            "tokens. Use `engine: fast` for label scoring."
        )
    total = 0.0
    for token, entry in zip(label, list(prompt_logprobs)[-count:], strict=True):
        value = math.nan if entry is None or token not in entry else float(entry[token].logprob)
        if math.isnan(value):
            raise ModelError(
                f"vLLM gave no log-probability for token {token} of a label. Use `engine: fast` "
                "for label scoring."
            )
        total -= value
    return total


def _image_ids(clip: Clip, frames: Frames) -> list[str | None]:
    if clip.keys is None:
        return [None] * len(frames)
    return [json.dumps([*key, *frames.shape[1:3]]) for key in clip.keys]


def _video_id(clip: Clip, frames: Frames) -> str | None:
    if clip.keys is None:
        return None
    whole = json.dumps([clip.keys, clip.frame_indices, clip.fps, frames.shape[1:3]])
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


def _video(clip: Clip, frames: Frames) -> tuple[Frames, dict[str, Any]]:
    """Frames and their true times, so that vLLM neither samples nor makes up any."""
    assert clip.frame_indices is not None  # Clip has checked both
    assert clip.fps is not None
    missing = -len(frames) % _TEMPORAL
    indices = [*clip.frame_indices, *[clip.frame_indices[-1]] * missing]
    total = indices[-1] + 1
    metadata = {
        "fps": clip.fps,
        "duration": total / clip.fps,
        "total_num_frames": total,
        "frames_indices": indices,
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return np.concatenate([frames, *[frames[-1:]] * missing]), metadata
