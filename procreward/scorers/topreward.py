"""TOPReward: how likely the model thinks it that the clip shows the task completed.

A language model that was never trained for it is shown a clip and the sentence that the clip
completes the task, and is asked whether that is true. The reward is the log-likelihood of ``True``
as the next word. The published wording is used to the letter: it states completion instead of
asking for it, the user's turn is left open, and so the word has a space in front.

What differs from the published procedure, and why:

* **Every query has the same number of frames and the same timestamps.** Upstream shows the episode
  so far, so that later queries are longer, and its control with the first frame repeated to that
  length rises as well: the score then counts frames. Here a clip without movement has one score.
* **No stretching of an episode's values to [0, 1].** It needs the last value before the first is
  known, changes the reward of a step by what comes after it, and gives a failed episode a full 1.
  Instead a value becomes progress by itself: by the log-odds of ``True`` against ``False``, by
  the probability of ``True``, or by bounds that are set beforehand.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from procreward.checks import check, check_choice, check_frame_size, check_int, is_number
from procreward.engine import Clip, Prompt
from procreward.scorers import check_query, only_view
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

__all__ = ["PROMPT", "Readout", "TOPReward", "TOPRewardOptions", "topreward_prompt"]

PROMPT = (
    "The above video shows a robot manipulation trajectory that completes the following task: "
    "{instruction} Decide whether the above statement is True or not. The answer is:"
)
"""The published words; ``{instruction}`` stands for the task."""

Readout: TypeAlias = Literal["log_odds", "probability", "bounded"]
"""How the likelihoods become progress; see :class:`TOPRewardOptions`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TOPRewardOptions(EngineOptions):
    """Options of :class:`TOPReward`.

    Attributes:
        num_frames: Frames the model is shown in every query. A shorter clip is filled up by
            repeating its first frame (``Score.details["padded_frames"]``), a longer one thinned.
        sampling: How a longer clip is thinned: ``"uniform"``, evenly with its first and last
            frame, so that the model still sees how the episode began, or ``"last"``.
        fps: Frame rate the model is told, whatever the true one; frames count from 0. Upstream
            shows two frames per second of video.
        layout: ``"video"``, one clip with timestamps, or ``"images"``, separate pictures.
        video_layout: How a video is written: as transformers ``"4.57"`` or ``"5.x"`` does.
        chat_template: Whether the user's turn is closed and ``True`` is the assistant's answer.
            Upstream reports much worse rankings with it.
        readout: What progress is: ``"log_odds"``, P(True) / (P(True) + P(False));
            ``"probability"``, P(True); or ``"bounded"``, log P(True) between the bounds.
        bounds: For ``"bounded"``: log P(True) in nats that is progress 0 and 1. Values outside
            count as the nearest bound.
        view: The view to look at; needed only when queries hold several.
        frame_size: ``(width, height)`` every frame must have, or None for what the checkpoint
            demands.
    """

    num_frames: int = 16
    sampling: Sampling = "uniform"
    fps: float = 2.0
    layout: Literal["video", "images"] = "video"
    video_layout: Literal["4.57", "5.x"] = "4.57"
    chat_template: bool = False
    readout: Readout = "log_odds"
    bounds: tuple[float, float] = (-10.0, 0.0)
    view: str | None = None
    frame_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        EngineOptions.__post_init__(self)
        check_int("num_frames", self.num_frames, least=1)
        check_choice("sampling", self.sampling, SAMPLINGS)
        check(is_number(self.fps) and self.fps > 0, "fps", "above 0", self.fps)
        check_choice("layout", self.layout, ("video", "images"))
        check_choice("video_layout", self.video_layout, ("4.57", "5.x"))
        check(isinstance(self.chat_template, bool), "chat_template", "a bool", self.chat_template)
        check_choice("readout", self.readout, get_args(Readout))
        ok = isinstance(self.bounds, Sequence) and len(self.bounds) == 2
        ok = ok and all(map(is_number, self.bounds)) and self.bounds[0] < self.bounds[1]
        check(ok, "bounds", "(low, high) in nats with low < high", self.bounds)
        object.__setattr__(self, "bounds", (float(self.bounds[0]), float(self.bounds[1])))
        if self.frame_size is not None:
            size = check_frame_size("frame_size", self.frame_size)
            object.__setattr__(self, "frame_size", size)

    @property
    def labels(self) -> tuple[str, str]:
        """The words whose likelihoods are compared, as they follow the prompt."""
        return ("True", "False") if self.chat_template else (" True", " False")


class TOPReward(ModelScorer[TOPRewardOptions]):
    """Scores progress by the likelihood that the clip is said to complete the task.

    Args:
        engine: What runs the model.
        options: How to ask.
        account: What :meth:`describe` says about the model.
    """

    options_type = TOPRewardOptions

    @classmethod
    def from_config(cls, config: ScorerConfig) -> TOPReward:
        """Load the model that a configuration names and build the scorer.

        Args:
            config: Name, model, precision and options.

        Returns:
            The scorer.

        Raises:
            ConfigError: If an option is wrong, no model is named, or the engine gives no
                likelihoods.
            ModelError: If the model cannot be loaded.
        """
        options = options_from(TOPRewardOptions, "TOPReward", config.options)
        engine, account = build_engine(
            config,
            options,
            frame_size=options.frame_size,
            video_layout=options.video_layout,
        )
        engine.label_nll([], options.labels, end_tokens="none")  # checks the labels' tokens
        return cls(engine, options, account=account)

    def score(self, queries: Sequence[Query]) -> list[Score]:
        """Answer every query; see :meth:`procreward.types.Scorer.score`.

        Args:
            queries: Windows of one view with an instruction.

        Returns:
            One score each, in order, with ``progress`` and ``success_prob``; the details are
            ``log_true``, ``log_false`` and ``log_odds`` in nats, ``frames`` and ``padded_frames``.

        Raises:
            ConfigError: If a query holds several views and the option ``view`` is not set.
            FrameError: If a clip is malformed.
            InstructionError: If an instruction is empty.
            UnknownNameError: If the configured view is not in a query.
        """
        return super().score(queries)

    def describe(self) -> dict[str, object]:
        """Return a JSON-able account of what answers."""
        options = self._options
        return {
            "name": "topreward",
            **self._account,
            "num_frames": options.num_frames,
            "sampling": options.sampling,
            "fps": options.fps,
            "layout": options.layout,
            "video_layout": options.video_layout,
            "chat_template": options.chat_template,
            "readout": options.readout,
            "bounds": list(options.bounds),
            "view": options.view,
            "labels": list(options.labels),
            "prompt_sha256": hashlib.sha256(PROMPT.encode()).hexdigest(),
        }

    def _score_batch(self, queries: Sequence[Query]) -> list[Score]:
        fixed = [self._fixed(query) for query in queries]
        prompts = [self._prompt(query) for query in fixed]
        answer = self._engine.label_nll(prompts, self._options.labels, end_tokens="none")
        return [
            self._read(-float(true), -float(false), padded_frames(query))
            for query, (true, false) in zip(fixed, answer.nll, strict=True)
        ]

    def _prompts(self, queries: Sequence[Query]) -> list[Prompt]:
        return [self._prompt(self._fixed(query)) for query in queries]

    def _fixed(self, query: Query) -> Query:
        check_query(query)
        return fixed_length(query, self._options.num_frames, self._options.sampling)

    def _prompt(self, query: Query) -> Prompt:
        view = only_view(query, "TOPReward", self._options.view)
        return Prompt(
            parts=(self._clip(query, view), topreward_prompt(query.instruction)),
            open_turn=not self._options.chat_template,
        )

    def _clip(self, query: Query, view: str) -> Clip:
        frames, keys = query.frames[view], frame_keys(query, view)
        if self._options.layout == "images":
            return Clip(frames=frames, keys=keys)
        # Not the true times: they would tell how far an episode is.
        indices = tuple(range(len(frames)))
        return Clip(
            frames=frames, video=True, frame_indices=indices, fps=self._options.fps, keys=keys
        )

    def _read(self, log_true: float, log_false: float, padded: int) -> Score:
        log_odds = log_true - log_false
        details = {
            "log_true": log_true,
            "log_false": log_false,
            "log_odds": log_odds,
            "frames": float(self._options.num_frames),
            "padded_frames": float(padded),
        }
        progress = success_prob = sigmoid(log_odds)
        if self._options.readout == "probability":
            progress = math.exp(min(log_true, 0.0))
        elif self._options.readout == "bounded":
            low, high = self._options.bounds
            if not low <= log_true <= high:
                details["clamped"] = 1.0
            progress = (min(max(log_true, low), high) - low) / (high - low)
        return Score(
            progress=progress,
            success_prob=success_prob,
            text="True" if log_odds >= 0 else "False",
            mode=self._options.readout,
            details=details,
        )


def topreward_prompt(instruction: str) -> str:
    """Return the words that follow the clip.

    Args:
        instruction: The task; braces in it are left alone. Upstream puts nothing between it and
            the next sentence, so it had better end in a full stop.

    Returns:
        The text up to where ``True`` stands.
    """
    return PROMPT.replace("{instruction}", instruction)
