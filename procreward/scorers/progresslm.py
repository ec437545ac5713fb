"""ProgressLM: progress from one picture, by comparison with a demonstration.

The model sees a demonstration (steps in words, or key frames with their progress) and one picture,
names the step or key frame that is closest and estimates the progress. It has no history: only the
last frame of a query's window is looked at. It may answer that the picture cannot be placed
(``n/a``); such a score has no progress and the reason ``"n/a"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from procreward.checks import check, check_choice, check_int
from procreward.config import JSON
from procreward.engine import Clip, Engine, Generation, Prompt
from procreward.errors import ConfigError
from procreward.scorers import check_query, only_view
from procreward.scorers.building import (
    EngineOptions,
    ModelScorer,
    clamped_details,
    frame_keys,
    options_from,
    stream_name,
)
from procreward.scorers.demonstration import (
    DEFAULT_DEMO_FRAMES,
    Demonstration,
    Demonstrations,
    load_demonstrations,
)
from procreward.scorers.engines import build_engine
from procreward.scorers.progresslm_prompts import (
    FAMILIES,
    LAYOUTS,
    PICTURE_WORD,
    Family,
    Layout,
    progresslm_prompt,
    prompt_sha256,
)
from procreward.scorers.progresslm_text import (
    NOTHINK_STOP,
    THINK_STOP,
    read_nothink,
    read_think,
)
from procreward.types import Query, Score

if TYPE_CHECKING:
    from procreward.config import ScorerConfig

__all__ = ["ProgressLM", "ProgressLMOptions"]

_NOTHINK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressLMOptions(EngineOptions):
    """Options of :class:`ProgressLM`.

    Attributes:
        demo: The demonstration, or one per instruction; see
            :func:`procreward.scorers.demonstration.load_demonstrations`. Relative paths start at
            the working directory. Needed by :meth:`ProgressLM.from_config`.
        demo_frames: Key frames taken from a video, evenly, first and last included.
        think: Whether the model reasons before its number, as it was trained. Without reasoning it
            is faster, and a visual demonstration's question never names the task.
        layout: ``"eval"``, which the published figures come from, or ``"train"``, that of the
            reinforcement-learning data, in which every picture stands beside its percentage.
        prompt_family: Whose wording without reasoning: ``"qwen2.5"``, ``"qwen3"``, or ``"auto"`` by
            the model (``"qwen3"`` for models of other makers). With reasoning both are the same.
        picture_word: The word for a key frame in the line of percentages of the layout ``"eval"``.
            The published one is a control token to some models of other makers (LLaVA), which
            need another word, such as ``"picture"``.
        view: The view to look at; needed only when queries hold several.
        max_new_tokens: Limit of an answer in tokens; a longer one is invalid (``"truncated"``).
            Upstream allows 40 000 with sampling; a greedy answer takes a few hundred, and one that
            has not ended at 1024 mostly repeats itself. Without reasoning at most 16 are used.
        min_pixels: Smallest area of a picture in pixels; a smaller one is enlarged. None keeps the
            checkpoint's own. The published figures come from 1 003 520 (about 1280 tokens for a
            picture of 640x480 instead of 400); the reinforcement-learning data was not enlarged.
        max_pixels: Largest area of a picture in pixels; a larger one is reduced. None keeps the
            checkpoint's own. The published figures come from 4 014 080.
    """

    demo: JSON = None
    demo_frames: int = DEFAULT_DEMO_FRAMES
    think: bool = True
    layout: Layout = "eval"
    prompt_family: Literal["auto", "qwen2.5", "qwen3"] = "auto"
    picture_word: str = PICTURE_WORD
    view: str | None = None
    max_new_tokens: int = 1024
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        # `super()` without arguments fails in a dataclass with slots, which is a new class.
        EngineOptions.__post_init__(self)
        check_int("demo_frames", self.demo_frames, least=2)
        check(isinstance(self.think, bool), "think", "true or false", self.think)
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("prompt_family", self.prompt_family, ("auto", *FAMILIES))
        ok = isinstance(self.picture_word, str) and self.picture_word != ""
        check(ok, "picture_word", "a non-empty string", self.picture_word)
        check_int("max_new_tokens", self.max_new_tokens, least=1)
        for name in ("min_pixels", "max_pixels"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), least=1024, fix="1024 is 32x32.")
        if (self.min_pixels or 0) > (self.max_pixels or self.min_pixels or 0):
            raise ConfigError(
                f"`min_pixels` must not exceed `max_pixels`, got {self.min_pixels} and "
                f"{self.max_pixels}."
            )
        if self.layout == "train" and not self.think:
            raise ConfigError(
                "`layout` must be 'eval' where `think` is false, got 'train': the training data "
                "always reasons."
            )


class ProgressLM(ModelScorer[ProgressLMOptions]):
    """Scores progress as ProgressLM does: a demonstration, one picture, four tags.

    Args:
        engine: What runs the model.
        demos: What pictures are compared with: one demonstration, or one per instruction.
        options: How to ask; its ``demo`` is not looked at here.
        account: What :meth:`describe` says about the model; its ``"family"`` and ``"model"`` decide
            the ``prompt_family`` ``"auto"``.
    """

    options_type = ProgressLMOptions

    def __init__(
        self,
        engine: Engine,
        demos: Demonstrations | Demonstration,
        options: ProgressLMOptions | None = None,
        *,
        account: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(engine, options, account=account)
        self._demos = Demonstrations(common=demos) if isinstance(demos, Demonstration) else demos
        self._family: Family = _family(self._options.prompt_family, self._account)

    @classmethod
    def from_config(cls, config: ScorerConfig) -> ProgressLM:
        """Read the demonstration, load the model that a configuration names, build the scorer.

        Args:
            config: Name, model, adapter, precision and options.

        Returns:
            The scorer.

        Raises:
            ConfigError: If an option is wrong, or no demonstration or model is named.
            FrameError: If a picture or video of the demonstration cannot be read.
            ModelError: If the model cannot be loaded.
        """
        options = options_from(ProgressLMOptions, "ProgressLM", config.options)
        if options.demo is None:
            raise ConfigError(
                f"The scorer {config.name!r} needs a demonstration, got none. Set its option "
                "`demo` to a list of steps, or to a folder of key frames, a video or a YAML file."
            )
        demos = load_demonstrations(options.demo, demo_frames=options.demo_frames)
        engine, account = build_engine(
            config, options, min_pixels=options.min_pixels, max_pixels=options.max_pixels
        )
        return cls(engine, demos, options, account=account)

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Answer every query; see :meth:`procreward.types.Scorer.score`.

        Args:
            queries: Windows of one view with an instruction; the last frame is judged.

        Returns:
            One score each, in order; without progress when the answer held none.

        Raises:
            ConfigError: If an instruction has no demonstration, or a query holds several views and
                the option ``view`` is not set.
            FrameError: If a clip is malformed.
            InstructionError: If an instruction is empty.
        """
        return super().score(queries)

    def describe(self) -> dict[str, object]:
        """Return a JSON-able account of what answers."""
        options = self._options
        return {
            "name": "progresslm",
            **self._account,
            "mode": self._mode,
            "think": options.think,
            "layout": options.layout,
            "prompt_family": self._family,
            "picture_word": options.picture_word,
            "max_new_tokens": self._token_limit,
            "min_pixels": options.min_pixels,
            "max_pixels": options.max_pixels,
            "view": options.view,
            "demo": self._demos.describe(),
            "prompt_sha256": prompt_sha256(
                think=options.think, layout=options.layout, family=self._family
            ),
        }

    @property
    def _mode(self) -> str:
        return "think" if self._options.think else "nothink"

    @property
    def _token_limit(self) -> int:
        limit = self._options.max_new_tokens
        return limit if self._options.think else min(limit, _NOTHINK_TOKENS)

    def _score_batch(self, queries: Sequence[Query]) -> list[Score]:
        answers = self._engine.generate(
            self._prompts(queries),
            max_new_tokens=self._token_limit,
            stop=THINK_STOP if self._options.think else NOTHINK_STOP,
        )
        return [self._read(answer) for answer in answers]

    def _prompts(self, queries: Sequence[Query]) -> list[Prompt]:
        return [self._prompt(query) for query in queries]

    def _prompt(self, query: Query) -> Prompt:
        check_query(query)
        view = only_view(query, "ProgressLM", self._options.view)
        keys = frame_keys(query, view)
        state = Clip(frames=query.frames[view][-1:], keys=None if keys is None else keys[-1:])
        return progresslm_prompt(
            query.instruction,
            self._demos.find(query.instruction),
            state,
            think=self._options.think,
            layout=self._options.layout,
            family=self._family,
            picture_word=self._options.picture_word,
            stream=stream_name(query, view),
        )

    def _read(self, answer: Generation) -> Score:
        if answer.error:
            return Score(reason=answer.error, mode=self._mode)
        read = read_think if self._options.think else read_nothink
        reading = read(answer.text, finished=answer.finished)
        details = {
            "tokens": float(len(answer.tokens)),
            **clamped_details(reading.percent, clamped=reading.clamped),
        }
        if reading.ref is not None:
            details["ref"] = reading.ref
        if reading.source == "any_number":
            details["any_number"] = 1.0
        return Score(
            progress=reading.progress,
            text=answer.text,
            reason=reading.reason,
            mode=self._mode,
            details=details,
        )


def _family(asked: Literal["auto", "qwen2.5", "qwen3"], account: Mapping[str, object]) -> Family:
    if asked != "auto":
        return asked
    family = account.get("family")
    if isinstance(family, str):
        return "qwen2.5" if family.startswith("qwen2") else "qwen3"
    # A server says no more of its model than the name.
    name = str(account.get("model", "")).lower()
    return "qwen2.5" if any(word in name for word in ("qwen2", "progresslm")) else "qwen3"
