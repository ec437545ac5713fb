"""ProcVLM: progress from the latest frames of one third-person camera and the instruction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from procreward.checks import check_choice, check_int
from procreward.engine import Clip, Engine, Generation, Prompt
from procreward.errors import ConfigError, UnknownNameError
from procreward.scorers import check_query
from procreward.scorers.building import ENGINES, EngineName, build_engine, frame_keys, options_from
from procreward.scorers.procvlm_text import (
    DIRECT_PREFIX,
    PROMPT,
    STOP,
    procvlm_prompt,
    read_progress,
)
from procreward.types import Frames, Query, Score

if TYPE_CHECKING:
    from procreward.config import ScorerConfig

__all__ = ["ProcVLM", "ProcVLMOptions"]

_DIRECT_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcVLMOptions:
    """Options of :class:`ProcVLM`.

    Attributes:
        mode: ``"reasoning"``, the published procedure: the model lists what is left to do, then
            gives the number; or ``"direct"``: its last line is begun for it and only the number is
            generated, which is faster and not what it was trained on.
        max_new_tokens: Limit of an answer in tokens; a longer one is invalid (``"truncated"``).
        image_order: ``"images_first"`` as trained, or ``"text_first"`` as upstream's vLLM path.
        view: The view to look at; needed only when queries hold several.
        max_pixels: Largest area of a frame in pixels; a larger one is reduced. None keeps the
            checkpoint's own limit (16.8 million: thousands of tokens for a large frame).
        batch_size: Queries answered in one batch.
        engine: ``"auto"`` takes the engine for small models where it suits the model, else
            ``"plain"``; ``"reference"`` is transformers' own generation.
    """

    mode: Literal["reasoning", "direct"] = "reasoning"
    max_new_tokens: int = 256
    image_order: Literal["images_first", "text_first"] = "images_first"
    view: str | None = None
    max_pixels: int | None = 512 * 512
    batch_size: int = 16
    engine: EngineName = "auto"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("reasoning", "direct"))
        check_choice("image_order", self.image_order, ("images_first", "text_first"))
        check_choice("engine", self.engine, ENGINES)
        for name in ("max_new_tokens", "batch_size"):
            check_int(name, getattr(self, name), least=1)
        if self.max_pixels is not None:
            check_int("max_pixels", self.max_pixels, least=1024, fix="1024 is a frame of 32x32.")


class ProcVLM:
    """Scores progress as ProcVLM does: pictures, then the published prompt, then the answer's tag.

    Args:
        engine: What runs the model.
        options: How to ask.
        account: What :meth:`describe` says about the model.
    """

    def __init__(
        self,
        engine: Engine,
        options: ProcVLMOptions | None = None,
        *,
        account: Mapping[str, object] | None = None,
    ) -> None:
        self._engine = engine
        self._options = options or ProcVLMOptions()
        self._account = dict(account or {})

    @classmethod
    def from_config(cls, config: ScorerConfig) -> ProcVLM:
        """Load the model that a configuration names and build the scorer.

        Args:
            config: Name, model, adapter, precision and options.

        Returns:
            The scorer.

        Raises:
            ConfigError: If an option is wrong or no model is named.
            ModelError: If the model cannot be loaded.
        """
        options = options_from(ProcVLMOptions, "ProcVLM", config.options)
        engine, account = build_engine(config, options.engine, max_pixels=options.max_pixels)
        return cls(engine, options, account=account)

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Answer every query; see :meth:`procreward.types.Scorer.score`.

        Args:
            queries: Windows of one view with an instruction.

        Returns:
            One score each, in order; without progress when the answer held none.

        Raises:
            ConfigError: If a query holds several views and the option ``view`` is not set.
            FrameError: If a clip is malformed.
            InstructionError: If an instruction is empty.
        """
        prompts = [self._prompt(query) for query in queries]
        direct = self._options.mode == "direct"
        limit = self._options.max_new_tokens
        scores: list[Score] = []
        for start in range(0, len(prompts), self._options.batch_size):
            answers = self._engine.generate(
                prompts[start : start + self._options.batch_size],
                max_new_tokens=min(limit, _DIRECT_TOKENS) if direct else limit,
                stop=(STOP,),
            )
            scores += [self._read(answer) for answer in answers]
        return scores

    def describe(self) -> dict[str, object]:
        """Return a JSON-able account of what answers."""
        return {
            "name": "procvlm",
            **self._account,
            "mode": self._options.mode,
            "image_order": self._options.image_order,
            "max_new_tokens": self._options.max_new_tokens,
            "max_pixels": self._options.max_pixels,
            "view": self._options.view,
            "prompt_sha256": hashlib.sha256(PROMPT.encode()).hexdigest(),
        }

    def _prompt(self, query: Query) -> Prompt:
        check_query(query)
        view, frames = self._view(query)
        clip = Clip(frames=frames, keys=frame_keys(query, view))
        text = procvlm_prompt(query.instruction)
        first = self._options.image_order == "images_first"
        return Prompt(
            parts=(clip, text) if first else (text, clip),
            assistant_prefix=DIRECT_PREFIX if self._options.mode == "direct" else "",
        )

    def _view(self, query: Query) -> tuple[str, Frames]:
        name = self._options.view
        if name is not None:
            if name not in query.frames:
                raise UnknownNameError("view", name, query.frames)
            return name, query.frames[name]
        if len(query.frames) != 1:
            raise ConfigError(
                f"ProcVLM looks at one view, got {len(query.frames)}: "
                f"{', '.join(sorted(query.frames)) or 'none'}. Give the environment one view or "
                "set the scorer's option `view`."
            )
        return next(iter(query.frames.items()))

    def _read(self, answer: Generation) -> Score:
        text = answer.text
        if self._options.mode == "direct":
            text = DIRECT_PREFIX + text
        reading = read_progress(text, finished=answer.finished)
        details = {"tokens": float(len(answer.tokens))}
        if reading.clamped and reading.percent is not None:
            details["clamped"] = 1.0
            # Bounded, since a model may write four hundred digits and JSON knows no infinity.
            details["percent_as_written"] = max(min(reading.percent, 1e12), -1e12)
        if reading.source not in ("", "tag"):
            details[reading.source] = 1.0
        return Score(
            progress=reading.progress,
            text=text,
            reason=reading.reason,
            mode=self._options.mode,
            details=details,
        )
