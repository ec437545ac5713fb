"""ProcVLM: progress from the latest frames of one third-person camera and the instruction.

Two things can be chosen apart from each other. The *mode* is what the model says before the number:
the steps that are left, as trained (``"reasoning"``), or nothing, because its last line is begun
for it (``"direct"``). The *readout* is how the number is taken: digit by digit from the text
(``"greedy"``, the published procedure) or as the expected value over all ways of writing it, with
its spread (``"expectation"``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from procreward.checks import check_choice, check_int, check_unit
from procreward.engine import Clip, Generation, NumberReading, Prompt
from procreward.scorers import check_query, only_view
from procreward.scorers.building import (
    EngineOptions,
    ModelScorer,
    clamped_details,
    frame_keys,
    options_from,
    stream_name,
)
from procreward.scorers.engines import build_engine
from procreward.scorers.procvlm_text import (
    DIRECT_COMPLETE,
    DIRECT_PREFIX,
    LEAD,
    NUMBER_COMPLETE,
    PROMPT,
    STOP,
    procvlm_prompt,
    read_progress,
)
from procreward.types import Query, Score

if TYPE_CHECKING:
    from procreward.config import ScorerConfig

__all__ = ["ProcVLM", "ProcVLMOptions"]

_DIRECT_TOKENS = 16
_READOUT_OF = {"reasoning": "greedy", "direct": "expectation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcVLMOptions(EngineOptions):
    """Options of :class:`ProcVLM`, beside those of every engine.

    ``mode="reasoning"`` with ``readout="greedy"`` is the published procedure. Every other pair is
    off it: ``"direct"`` is much faster, and not what the model was trained on.

    Attributes:
        mode: ``"reasoning"``: the model lists what is left to do, then comes to the number; or
            ``"direct"``: its last line is begun for it, so that only the number is left.
        readout: ``"greedy"``: the digits that the model writes; ``"expectation"``: the expected
            value of the number, with its standard deviation as ``Score.spread``; ``"auto"``:
            ``"greedy"`` with reasoning, ``"expectation"`` without.
        min_number_mass: Least probability in [0, 1] of a number behind the tag at which an
            expectation counts; below it the answer is invalid (``"no_number"``).
        max_new_tokens: Limit of an answer in tokens; a longer one is invalid (``"truncated"``).
        image_order: ``"images_first"`` as trained, or ``"text_first"`` as upstream's vLLM path.
        view: The view to look at; needed only when queries hold several.
        max_pixels: Largest area of a frame in pixels; a larger one is reduced. None keeps the
            checkpoint's own limit (16.8 million: thousands of tokens for a large frame).
    """

    mode: Literal["reasoning", "direct"] = "reasoning"
    readout: Literal["auto", "greedy", "expectation"] = "auto"
    min_number_mass: float = 0.5
    max_new_tokens: int = 256
    image_order: Literal["images_first", "text_first"] = "images_first"
    view: str | None = None
    max_pixels: int | None = 512 * 512

    def __post_init__(self) -> None:
        EngineOptions.__post_init__(self)  # super() does not know a class with slots
        check_choice("mode", self.mode, tuple(_READOUT_OF))
        check_choice("readout", self.readout, ("auto", "greedy", "expectation"))
        check_choice("image_order", self.image_order, ("images_first", "text_first"))
        check_unit("min_number_mass", self.min_number_mass, allow_zero=True)
        check_int("max_new_tokens", self.max_new_tokens, least=1)
        if self.max_pixels is not None:
            check_int("max_pixels", self.max_pixels, least=1024, fix="1024 is a frame of 32x32.")

    @property
    def expects(self) -> bool:
        """Whether the number is read as an expectation."""
        readout = _READOUT_OF[self.mode] if self.readout == "auto" else self.readout
        return readout == "expectation"

    @property
    def label(self) -> str:
        """What scores say about how they were read: the mode, and a readout that is not its own."""
        readout = "expectation" if self.expects else "greedy"
        return self.mode if readout == _READOUT_OF[self.mode] else f"{self.mode}+{readout}"


class ProcVLM(ModelScorer[ProcVLMOptions]):
    """Scores progress as ProcVLM does: pictures, then the published prompt, then the answer's tag.

    ``Score.mode`` is ``"reasoning"``, ``"reasoning+expectation"``, ``"direct"`` (an expectation) or
    ``"direct+greedy"``. ``Score.text`` is what the model wrote, the begun line included; with an
    expectation it ends at the tag, and the number is in ``Score.details["percent"]``; where the tag
    never comes, the words are read as they are when greedy.

    Args:
        engine: What runs the model.
        options: How to ask.
        account: What :meth:`describe` says about the model.
    """

    options_type = ProcVLMOptions

    @classmethod
    def from_config(cls, config: ScorerConfig) -> ProcVLM:
        """Load the model that a configuration names and build the scorer.

        Args:
            config: Name, model, adapter, precision and options.

        Returns:
            The scorer.

        Raises:
            ConfigError: If an option is wrong, no model is named, or the engine or the model cannot
                give the readout.
            ModelError: If the model cannot be loaded.
        """
        options = options_from(ProcVLMOptions, "ProcVLM", config.options)
        engine, account = build_engine(config, options, max_pixels=options.max_pixels)
        if options.expects:
            engine.read_number([], lead=LEAD, max_new_tokens=1)  # checks the digits' tokens
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
        return super().score(queries)

    def describe(self) -> dict[str, object]:
        """Return a JSON-able account of what answers."""
        return {
            "name": "procvlm",
            **self._account,
            "mode": self._options.mode,
            "readout": "expectation" if self._options.expects else "greedy",
            "min_number_mass": self._options.min_number_mass if self._options.expects else None,
            "image_order": self._options.image_order,
            "max_new_tokens": self._options.max_new_tokens,
            "max_pixels": self._options.max_pixels,
            "view": self._options.view,
            "prompt_sha256": hashlib.sha256(PROMPT.encode()).hexdigest(),
        }

    def _score_batch(self, queries: Sequence[Query]) -> list[Score]:
        prompts = self._prompts(queries)
        return self._expect(prompts) if self._options.expects else self._generate(prompts)

    def _prompts(self, queries: Sequence[Query]) -> list[Prompt]:
        return [self._prompt(query) for query in queries]

    def _prompt(self, query: Query) -> Prompt:
        check_query(query)
        view = only_view(query, "ProcVLM", self._options.view)
        clip = Clip(frames=query.frames[view], keys=frame_keys(query, view))
        text = procvlm_prompt(query.instruction)
        first = self._options.image_order == "images_first"
        return Prompt(
            parts=(clip, text) if first else (text, clip),
            assistant_prefix=DIRECT_PREFIX if self._direct else "",
            stream=stream_name(query, view),
        )

    @property
    def _direct(self) -> bool:
        return self._options.mode == "direct"

    def _generate(self, prompts: Sequence[Prompt]) -> list[Score]:
        limit = self._options.max_new_tokens
        answers = self._engine.generate(
            prompts,
            max_new_tokens=min(limit, _DIRECT_TOKENS) if self._direct else limit,
            stop=(STOP, DIRECT_COMPLETE if self._direct else NUMBER_COMPLETE),
        )
        return [self._read(answer) for answer in answers]

    def _read(self, answer: Generation) -> Score:
        if answer.error:
            return Score(reason=answer.error, mode=self._options.label)
        text = DIRECT_PREFIX + answer.text if self._direct else answer.text
        return self._written(text, finished=answer.finished, tokens=len(answer.tokens))

    def _written(self, text: str, *, finished: bool, tokens: int) -> Score:
        """Read the number that stands in the text."""
        reading = read_progress(text, finished=finished)
        details = {
            "tokens": float(tokens),
            **clamped_details(reading.percent, clamped=reading.clamped),
        }
        if reading.source not in ("", "tag"):
            details[reading.source] = 1.0
        return Score(
            progress=reading.progress,
            text=text,
            reason=reading.reason,
            mode=self._options.label,
            details=details,
        )

    def _expect(self, prompts: Sequence[Prompt]) -> list[Score]:
        readings = self._engine.read_number(
            prompts, lead=LEAD, max_new_tokens=self._options.max_new_tokens
        )
        return [self._expected(reading) for reading in readings]

    def _expected(self, reading: NumberReading) -> Score:
        """Read the number that the probabilities give."""
        text = DIRECT_PREFIX if self._direct else reading.text
        if not self._direct and LEAD not in text:
            # Nowhere to expect a number, but the words may still say it, as they may when greedy.
            finished = reading.finished or reading.tokens < self._options.max_new_tokens
            return self._written(text, finished=finished, tokens=reading.tokens)
        details = {"tokens": float(reading.tokens), "number_mass": reading.mass}
        if reading.value is None or reading.mass < self._options.min_number_mass:
            return Score(text=text, reason="no_number", mode=self._options.label, details=details)
        return Score(
            progress=min(max(reading.value / 100.0, 0.0), 1.0),
            spread=reading.spread / 100.0,
            text=text,
            mode=self._options.label,
            details={**details, "percent": reading.value},
        )
