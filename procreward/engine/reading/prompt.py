r"""The Qwen-VL chat layout as token ids and positions, built without a processor class.

A system turn where there is one, one user turn, the head of the answer::

    <|im_start|>system\n SYSTEM <|im_end|>\n
    <|im_start|>user\n PARTS <|im_end|>\n<|im_start|>assistant\n PREFIX

(all in one line). An open user turn ends right behind its last part. An :class:`Image` is
``<|vision_start|>`` + one ``<|image_pad|>`` per merged token + ``<|vision_end|>`` and a
:class:`Video` is, per group of frames, its time in words followed by the same with
``<|video_pad|>``. Neighbouring texts are joined without a separator. Positions are the three rows
of multimodal rotary positions (time, row, column): text advances all three by one, a picture spans
its grid and then advances them by its longer side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from procreward.checks import check_choice
from procreward.errors import ArchitectureError, ConfigError, InstructionError

__all__ = ["Chat", "ChatBuilder", "Image", "Part", "Video", "VideoLayout", "build_chat"]

VideoLayout: TypeAlias = Literal["4.57", "5.x"]
"""How a video is written: as transformers 4.57 and vLLM do, or with transformers 5's outer pair."""

TEXT, IMAGE, VIDEO = 0, 1, 2
USER_HEAD, ASSISTANT_HEAD = "user\n", "assistant\n"

_CACHED_LAYOUTS = 256
_Key: TypeAlias = tuple[tuple["Part", ...], str, str | None, bool]


@dataclass(frozen=True, slots=True)
class Image:
    """A picture in a prompt.

    Attributes:
        rows: Height in merged tokens (patch rows / merge).
        columns: Width in merged tokens.
    """

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Video:
    """A clip in a prompt.

    Attributes:
        seconds: Time of each group of frames: the mean of the times of its first and last frame.
        rows: Height in merged tokens.
        columns: Width in merged tokens.
    """

    seconds: tuple[float, ...]
    rows: int
    columns: int

    @classmethod
    def from_frames(
        cls, frame_indices: Sequence[int], fps: float, rows: int, columns: int, *, temporal: int = 2
    ) -> Video:
        """Build from the frames' numbers in the source, as the published processor does.

        Args:
            frame_indices: Number of each frame in the source video; an odd last one is repeated.
            fps: Frames per second of the source, positive.
            rows: Height in merged tokens.
            columns: Width in merged tokens.
            temporal: Frames in a group.

        Returns:
            The part.

        Raises:
            ConfigError: If there are no frames or ``fps`` is not positive.
        """
        if not frame_indices or not fps > 0:
            raise ConfigError(
                "A video needs at least one frame and a positive `fps`, got "
                f"{len(frame_indices)} frames and fps={fps!r}."
            )
        indices = list(frame_indices)
        indices += [indices[-1]] * (-len(indices) % temporal)
        times = [index / fps for index in indices]
        groups = range(0, len(times), temporal)
        return cls(tuple((times[i] + times[i + temporal - 1]) / 2 for i in groups), rows, columns)


Part: TypeAlias = Image | Video | str
"""A piece of the user's turn."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chat:
    """A tokenised prompt.

    Attributes:
        ids: ``(length,) int64`` token ids, with one pad token per visual token.
        positions: ``(3, length) int64`` multimodal rotary positions.
        kinds: ``(length,) int64``: 0 text, 1 image, 2 video.
        next_position: Position of the first token that follows.
    """

    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    next_position: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def visual(self) -> npt.NDArray[np.bool_]:
        """``(length,) bool``: which tokens are visual."""
        mask: npt.NDArray[np.bool_] = self.kinds != TEXT
        return mask

    def with_text(self, ids: Sequence[int]) -> Chat:
        """Return this prompt followed by text tokens, such as an answer.

        Args:
            ids: Token ids of plain text.

        Returns:
            A new, longer prompt.
        """
        count = len(ids)
        steps = np.arange(self.next_position, self.next_position + count, dtype=np.int64)
        return Chat(
            ids=np.concatenate((self.ids, np.asarray(ids, dtype=np.int64))),
            positions=np.concatenate((self.positions, np.broadcast_to(steps, (3, count))), axis=1),
            kinds=np.concatenate((self.kinds, np.zeros(count, dtype=np.int64))),
            next_position=self.next_position + count,
        )


class ChatBuilder:
    """Builds chats for one tokenizer and remembers the latest layouts.

    Args:
        tokenizer: A transformers tokenizer with Qwen's control tokens.
        video_layout: How videos are written.
        default_system: The system turn that the model's chat template writes when none is given,
            or None when it writes none.

    Raises:
        ArchitectureError: If the tokenizer lacks one of the control tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        video_layout: VideoLayout = "4.57",
        default_system: str | None = None,
    ) -> None:
        check_choice("video_layout", video_layout, get_args(VideoLayout))
        self._tokenizer = tokenizer
        self._video_layout = video_layout
        self._default_system = default_system
        self._cache: OrderedDict[_Key, Chat] = OrderedDict()
        vocabulary = tokenizer.get_vocab()
        names = ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
        missing = [name for name in names if f"<|{name}|>" not in vocabulary]
        if missing:
            raise ArchitectureError(
                f"The tokenizer must have Qwen-VL's control tokens, but lacks {missing}. "
                "Use the tokenizer that belongs to the model."
            )
        self._control = {name: int(vocabulary[f"<|{name}|>"]) for name in names}
        self._control_ids = frozenset(
            {int(i) for i in tokenizer.all_special_ids} | set(self._control.values())
        )

    def build(
        self,
        parts: Sequence[Part],
        *,
        assistant_prefix: str = "",
        system: str | None = None,
        open_turn: bool = False,
    ) -> Chat:
        """Build one prompt, or return it as it was built before.

        Args:
            parts: Pictures, clips and texts in their order.
            assistant_prefix: Words put in the assistant's mouth before it goes on.
            system: The system turn; None for the builder's default.
            open_turn: Whether to end behind the last part: no end token, no assistant turn.

        Returns:
            The prompt.

        Raises:
            InstructionError: If a text contains a control token.
            ConfigError: If an open turn comes with an ``assistant_prefix``.
        """
        if open_turn and assistant_prefix:
            raise ConfigError(
                "`assistant_prefix` must be empty when the user's turn is left open, got "
                f"{assistant_prefix!r}. Put the words into `parts`."
            )
        system = self._default_system if system is None else system
        key = (tuple(parts), assistant_prefix, system, open_turn)
        chat = self._cache.get(key)
        if chat is None:
            chat = self._build(*key)
            self._cache[key] = chat
            if len(self._cache) > _CACHED_LAYOUTS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(key)
        return chat

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text.

        Args:
            text: Text without control tokens.

        Returns:
            Token ids.

        Raises:
            InstructionError: If the text contains a control token such as ``<|im_end|>``.
        """
        if not text:
            return []
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        if not self._control_ids.isdisjoint(ids):
            raise InstructionError(
                f"A prompt text must not contain control tokens such as '<|im_end|>', got {text!r}."
            )
        return ids

    def _build(
        self, parts: tuple[Part, ...], assistant_prefix: str, system: str | None, open_turn: bool
    ) -> Chat:
        writer = _Writer(self)
        if system is not None:
            writer.control("im_start")
            writer.text("system\n" + system)
            writer.control("im_end")
            writer.text("\n")
        writer.control("im_start")
        writer.text(USER_HEAD)
        for part in parts:
            if isinstance(part, str):
                writer.text(part)
            elif isinstance(part, Image):
                writer.block("image_pad", IMAGE, part.rows, part.columns)
            else:
                self._write_video(writer, part)
        if not open_turn:
            writer.control("im_end")
            writer.text("\n")
            writer.control("im_start")
            writer.text(ASSISTANT_HEAD + assistant_prefix)
        return writer.finish()

    def _write_video(self, writer: _Writer, video: Video) -> None:
        outer = self._video_layout == "5.x"
        if outer:
            writer.control("vision_start")
        for seconds in video.seconds:
            writer.text(f"<{seconds:.1f} seconds>")
            writer.block("video_pad", VIDEO, video.rows, video.columns)
        if outer:
            writer.control("vision_end")

    def control_id(self, name: str) -> int:
        """Return the id of ``<|name|>``."""
        return self._control[name]


class _Writer:
    """Collects tokens and their positions; texts are joined before they are tokenised."""

    def __init__(self, builder: ChatBuilder) -> None:
        self._builder = builder
        self._ids: list[int] = []
        self._kinds: list[int] = []
        self._positions: list[npt.NDArray[np.int64]] = []
        self._pending = ""
        self._next = 0

    def text(self, text: str) -> None:
        self._pending += text

    def control(self, name: str) -> None:
        self._flush()
        self._plain([self._builder.control_id(name)])

    def block(self, pad: str, kind: int, rows: int, columns: int) -> None:
        self.control("vision_start")
        count = rows * columns
        self._ids += [self._builder.control_id(pad)] * count
        self._kinds += [kind] * count
        row, column = np.divmod(np.arange(count, dtype=np.int64), columns)
        self._positions.append(np.stack((np.zeros_like(row), row, column)) + self._next)
        self._next += max(rows, columns)
        self.control("vision_end")

    def finish(self) -> Chat:
        self._flush()
        arrays = (
            np.asarray(self._ids, dtype=np.int64),
            np.concatenate(self._positions, axis=1),
            np.asarray(self._kinds, dtype=np.int64),
        )
        for array in arrays:
            array.setflags(write=False)  # shared by everyone who asks for the same layout
        ids, positions, kinds = arrays
        return Chat(ids=ids, positions=positions, kinds=kinds, next_position=self._next)

    def _flush(self) -> None:
        if self._pending:
            text, self._pending = self._pending, ""
            self._plain(self._builder.encode(text))

    def _plain(self, ids: Sequence[int]) -> None:
        self._ids += ids
        self._kinds += [TEXT] * len(ids)
        steps = np.arange(self._next, self._next + len(ids), dtype=np.int64)
        self._positions.append(np.broadcast_to(steps, (3, len(ids))))
        self._next += len(ids)


def build_chat(
    tokenizer: Any,
    parts: Sequence[Part],
    *,
    assistant_prefix: str = "",
    system: str | None = None,
    open_turn: bool = False,
    video_layout: VideoLayout = "4.57",
) -> Chat:
    """Tokenise a user turn and the head of the assistant's answer.

    Use a :class:`ChatBuilder` where prompts repeat: it remembers layouts.

    Args:
        tokenizer: A transformers tokenizer with Qwen's control tokens.
        parts: Pictures, clips and texts in their order.
        assistant_prefix: Words put in the assistant's mouth before it goes on.
        system: The system turn, or None for none.
        open_turn: Whether to end behind the last part: no end token, no assistant turn.
        video_layout: How videos are written.

    Returns:
        The prompt.

    Raises:
        ArchitectureError: If the tokenizer lacks one of the control tokens.
        InstructionError: If a text contains a control token.
        ConfigError: If an open turn comes with an ``assistant_prefix``.
    """
    builder = ChatBuilder(tokenizer, video_layout=video_layout)
    return builder.build(
        parts, assistant_prefix=assistant_prefix, system=system, open_turn=open_turn
    )
