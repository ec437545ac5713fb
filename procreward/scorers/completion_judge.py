"""A completion judge: is the instruction done, by the likelihood of two labels.

The question and the scoring rule are those of the RoboCasa completion judge (a LoRA on
Qwen3-VL-4B): per view the negative log-likelihood of each label divided by its number of tokens,
averaged over the views; the smaller one wins. Dividing by the length favours the longer label:
seen by one view, ``complete`` wins only from a probability of 0.550 on if the tokens of the chat
template count to a label, of 0.570 with the end token alone and of 0.618 with neither. So the plain
log-odds are read as well and give ``Score.success_prob``.

Nothing is resampled on the way to the model: it sees the frames it is given, told with their true
times, counted from the clip's first frame.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from procreward.checks import check, check_choice, check_frame_size, check_int, is_number
from procreward.engine import Clip, EndTokens, LabelNLL, Prompt
from procreward.errors import ConfigError, UnknownNameError
from procreward.scorers import check_query
from procreward.scorers.building import EngineOptions, ModelScorer, frame_keys, options_from
from procreward.scorers.engines import build_engine
from procreward.scorers.likelihood import (
    SAMPLINGS,
    Sampling,
    fixed_length,
    padded_frames,
    sigmoid,
)
from procreward.types import Query, Score

if TYPE_CHECKING:
    from procreward.config import ScorerConfig

__all__ = ["PROMPT", "CompletionJudge", "JudgeOptions", "judge_prompt"]

PROMPT = (
    "Instruction: {instruction}\n"
    "Question: At the final moment shown in the video, is the instruction already completed?\n"
    "Answer exactly one label: not complete or complete."
)
"""The question the adapter was trained on; ``{instruction}`` stands for the subtask."""

LABELS = ("complete", "not complete")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions(EngineOptions):
    """Options of :class:`CompletionJudge`.

    Attributes:
        views: The views to look at, with their weights; a sequence weighs all alike; None takes
            every view of the query, all alike.
        layout: ``"video"``, one clip with timestamps as the RoboCasa adapter was trained, or
            ``"images"``, separate pictures.
        media_order: ``"media_first"``, or ``"text_first"``.
        end_tokens: What counts to a label besides its words: ``"template"`` (end token and line
            break, which the adapter's published example points to), ``"eos"`` or ``"none"``.
        rule: What decides ``Score.complete``: ``"normalised"``, the published rule, or
            ``"log_odds"``.
        log_odds_threshold: With the rule ``"log_odds"``, log-odds from which on it is complete.
        fps: For a video, frames per second of the source; None takes the query's.
        num_frames: Frames the model is shown in every query (the RoboCasa adapter: 64), or None
            for as many as a query holds. A shorter clip is filled up by repeating its first frame,
            which keeps its time; ``Score.details["padded_frames"]`` says how often.
        sampling: What is shown of a clip with more frames than ``num_frames``: ``"last"``, its
            newest frames, or ``"uniform"``, evenly spread ones with its first and last.
        frame_size: ``(width, height)`` every frame must have (the RoboCasa adapter: 224x224), or
            None for what the checkpoint demands. Frames are never resampled silently.
        video_layout: How a video is written: as transformers ``"4.57"`` or ``"5.x"`` does.
        allow_eye_in_hand: Whether wrist cameras may be used. In the published check a wrist camera
            was right in 5 of 16 cases.
    """

    views: Mapping[str, float] | Sequence[str] | None = None
    layout: Literal["video", "images"] = "video"
    media_order: Literal["media_first", "text_first"] = "media_first"
    end_tokens: EndTokens = "template"
    rule: Literal["normalised", "log_odds"] = "normalised"
    log_odds_threshold: float = 0.0
    fps: float | None = None
    num_frames: int | None = None
    sampling: Sampling = "last"
    frame_size: tuple[int, int] | None = None
    video_layout: Literal["4.57", "5.x"] = "4.57"
    allow_eye_in_hand: bool = False

    def __post_init__(self) -> None:
        EngineOptions.__post_init__(self)
        check_choice("layout", self.layout, ("video", "images"))
        check_choice("media_order", self.media_order, ("media_first", "text_first"))
        check_choice("end_tokens", self.end_tokens, ("template", "eos", "none"))
        check_choice("rule", self.rule, ("normalised", "log_odds"))
        check_choice("video_layout", self.video_layout, ("4.57", "5.x"))
        check_choice("sampling", self.sampling, SAMPLINGS)
        threshold = self.log_odds_threshold
        check(is_number(threshold), "log_odds_threshold", "a finite number", threshold)
        ok = self.fps is None or (is_number(self.fps) and self.fps > 0)
        check(ok, "fps", "above 0 or None", self.fps)
        if self.num_frames is not None:
            check_int("num_frames", self.num_frames, least=1)
        if self.frame_size is not None:
            size = check_frame_size("frame_size", self.frame_size)
            object.__setattr__(self, "frame_size", size)
        if self.views is not None:
            object.__setattr__(self, "views", _weights(self.views))
            self.check_views(self.views)

    def check_views(self, names: Mapping[str, float] | Sequence[str]) -> None:
        """Refuse wrist cameras unless they are allowed.

        Args:
            names: Names of views.

        Raises:
            ConfigError: If one is a wrist camera and ``allow_eye_in_hand`` is not set.
        """
        wrist = [name for name in names if "eye_in_hand" in name.lower()]
        if wrist and not self.allow_eye_in_hand:
            raise ConfigError(
                f"The judge must not look through a wrist camera, got {', '.join(wrist)}: it was "
                "right in 5 of 16 published cases. Use external views, or set "
                "`allow_eye_in_hand=True`."
            )


class CompletionJudge(ModelScorer[JudgeOptions]):
    """Judges completion by the likelihood of ``complete`` against ``not complete``.

    Args:
        engine: What runs the model.
        options: How to ask.
        account: What :meth:`describe` says about the model.
    """

    options_type = JudgeOptions

    @classmethod
    def from_config(cls, config: ScorerConfig) -> CompletionJudge:
        """Load the model that a configuration names and build the judge.

        Args:
            config: Name, model, adapter, precision and options.

        Returns:
            The judge.

        Raises:
            ConfigError: If an option is wrong, no model is named, or the model's tokenizer cannot
                tell the labels apart.
            ModelError: If the model cannot be loaded.
        """
        options = options_from(JudgeOptions, "completion judge", config.options)
        engine, account = build_engine(
            config,
            options,
            frame_size=options.frame_size,
            video_layout=options.video_layout,
        )
        engine.label_nll([], LABELS, end_tokens=options.end_tokens)  # checks the labels' tokens
        return cls(engine, options, account=account)

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Judge every query; see :meth:`procreward.types.Scorer.score`.

        Args:
            queries: Windows of one or more views with an instruction.

        Returns:
            One score each, in order, with ``complete`` and ``success_prob`` but no progress. The
            details are the labels' normalised scores (``score_complete``, ``score_not_complete``:
            smaller is likelier), ``log_odds`` in nats, ``frames``, ``padded_frames`` and per view
            the likelihoods of both labels.

        Raises:
            ConfigError: If a view may not be used, or a video has no frame rate.
            FrameError: If a clip is malformed or its frames have another size than demanded.
            InstructionError: If an instruction is empty.
            UnknownNameError: If a configured view is not in a query.
        """
        return super().score(queries)

    def describe(self) -> dict[str, object]:
        """Return a JSON-able account of what answers."""
        views = self._options.views
        return {
            "name": "completion_judge",
            **self._account,
            "views": dict(_weights(views)) if views is not None else None,
            "layout": self._options.layout,
            "media_order": self._options.media_order,
            "video_layout": self._options.video_layout,
            "num_frames": self._options.num_frames,
            "sampling": self._options.sampling,
            "end_tokens": self._options.end_tokens,
            "rule": self._options.rule,
            "log_odds_threshold": self._options.log_odds_threshold,
            "labels": list(LABELS),
            "prompt_sha256": hashlib.sha256(PROMPT.encode()).hexdigest(),
        }

    def _score_batch(self, queries: Sequence[Query]) -> list[Score]:
        fixed = [self._fixed(query) for query in queries]
        weights = [self._views(query) for query in fixed]
        prompts = [
            self._prompt(query, view)
            for query, chosen in zip(fixed, weights, strict=True)
            for view in chosen
        ]
        answer = self._engine.label_nll(prompts, LABELS, end_tokens=self._options.end_tokens)
        scores, start = [], 0
        for query, chosen in zip(fixed, weights, strict=True):
            nll = answer.nll[start : start + len(chosen)]
            start += len(chosen)
            scores.append(self._judge(query, nll, answer, chosen))
        return scores

    def _prompts(self, queries: Sequence[Query]) -> list[Prompt]:
        fixed = [self._fixed(query) for query in queries]
        return [self._prompt(query, view) for query in fixed for view in self._views(query)]

    def _fixed(self, query: Query) -> Query:
        check_query(query)
        count = self._options.num_frames
        return query if count is None else fixed_length(query, count, self._options.sampling)

    def _views(self, query: Query) -> dict[str, float]:
        chosen = _weights(self._options.views if self._options.views else list(query.frames))
        for name in chosen:
            if name not in query.frames:
                raise UnknownNameError("view", name, query.frames)
        self._options.check_views(chosen)
        return chosen

    def _prompt(self, query: Query, view: str) -> Prompt:
        clip, text = self._clip(query, view), judge_prompt(query.instruction)
        first = self._options.media_order == "media_first"
        return Prompt(parts=(clip, text) if first else (text, clip))

    def _clip(self, query: Query, view: str) -> Clip:
        frames, keys = query.frames[view], frame_keys(query, view)
        if self._options.layout == "images":
            return Clip(frames=frames, keys=keys)
        # Times count from the clip's first frame, as they did in training.
        indices = tuple(step - query.frame_steps[0] for step in query.frame_steps)
        fps = self._options.fps if self._options.fps is not None else query.fps
        return Clip(frames=frames, video=True, frame_indices=indices, fps=fps, keys=keys)

    def _judge(
        self,
        query: Query,
        nll: npt.NDArray[np.float64],
        answer: LabelNLL,
        weights: Mapping[str, float],
    ) -> Score:
        share = np.asarray(list(weights.values()))
        lengths = np.asarray([len(tokens) for tokens in answer.tokens])
        normalised = share @ (nll / lengths)
        log_odds = float(share @ (nll[:, 1] - nll[:, 0]))
        if self._options.rule == "normalised":
            complete = bool(normalised[0] < normalised[1])
        else:
            complete = log_odds >= self._options.log_odds_threshold
        details = {
            "score_complete": float(normalised[0]),
            "score_not_complete": float(normalised[1]),
            "log_odds": log_odds,
            "frames": float(len(query.frame_steps)),
            "padded_frames": float(padded_frames(query)),
        }
        for name, (yes, no) in zip(weights, nll, strict=True):
            details[f"nll_complete/{name}"] = float(yes)
            details[f"nll_not_complete/{name}"] = float(no)
        return Score(
            success_prob=sigmoid(log_odds),
            complete=complete,
            text=LABELS[0] if complete else LABELS[1],
            mode=self._options.rule,
            details=details,
        )


def judge_prompt(instruction: str) -> str:
    """Return the question for one instruction.

    Args:
        instruction: The subtask; braces in it are left alone.

    Returns:
        The text that follows the clip.
    """
    return PROMPT.replace("{instruction}", instruction)


def _weights(views: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Weights that sum to one, in the order given."""
    if isinstance(views, str):
        views = [views]
    raw = dict(views) if isinstance(views, Mapping) else dict.fromkeys(views, 1.0)
    total = math.fsum(raw.values())
    if not raw or min(raw.values()) < 0 or not (math.isfinite(total) and total > 0):
        raise ConfigError(
            "`views` must name at least one view, with weights of at least 0 that are not all 0, "
            f"got {raw!r}."
        )
    return {name: weight / total for name, weight in raw.items()}
