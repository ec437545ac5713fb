"""Trains a small Qwen2.5-VL to answer as ProgressLM does, in about a minute and a half on one core.

Random weights write random text, which no reward model does; how much of an answer its predecessor
foretells is what a benchmark is about. So a small model learns to place a picture of Lift among the
key frames of a demonstration and to write ProgressLM's four tags. It does not become a good judge,
but its words and numbers follow the picture. The training is seeded and its result is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from procreward.bench.episodes import Recording
from procreward.bench.sizes import PROGRESS_TWIN
from procreward.bench.twins import (
    TwinSize,
    loaded_twin,
    make_tokenizer,
    qwen25_config,
    random_model,
    save_twin,
    train_tokenizer,
)
from procreward.engine import Clip, Prompt
from procreward.engine.reading.inputs import PreparedPrompt, PromptReader, pad_left
from procreward.engine.reading.prompt import Chat
from procreward.engine.vision.preprocess import preprocess_images
from procreward.scorers.demonstration import Demonstration
from procreward.scorers.progresslm_prompts import progresslm_prompt

__all__ = ["TrainSettings", "answer", "demonstration", "train_progress_twin"]

KEY_FRAMES = 8

_BINS = 21
_DIGIT_WEIGHT = 4.0

_SCENES = (
    "The gripper is open and far above the table, and the cube lies untouched",
    "The gripper is moving down towards the cube, which still lies on the table",
    "The gripper surrounds the cube, and its fingers begin to close",
    "The fingers hold the cube, and it is about to leave the table",
    "The cube hangs in the gripper well above the table, and the goal is reached",
)
_RELATIONS = (
    "The current state is clearly behind that reference",
    "The current state matches that reference",
    "The current state is a little ahead of that reference",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How the twin is trained.

    Attributes:
        look_steps: Steps in which every visual token learns to tell the progress by itself.
        look_batch: Pictures in such a step.
        short_steps: Steps on the picture and the answer alone, at the places they have in the whole
            prompt.
        short_batch: Pictures in such a step.
        long_steps: Steps on whole prompts.
        long_batch: Prompts in such a step.
        rate: Highest learning rate.
        size: Dimensions of the model.
        vocabulary: Tokens of its tokenizer, control tokens not counted.
    """

    look_steps: int = 80
    look_batch: int = 32
    short_steps: int = 60
    short_batch: int = 16
    long_steps: int = 60
    long_batch: int = 3
    rate: float = 2e-3
    size: TwinSize = PROGRESS_TWIN
    vocabulary: int = 900


def answer(progress: float) -> str:
    """Return what the twin learns to say about a picture.

    Args:
        progress: True progress in [0, 1].

    Example:
        >>> answer(0.4).splitlines()[-1]
        '<score>40%</score>'
    """
    ref = 1 + round(progress * (KEY_FRAMES - 1))
    percent = round(100 * (ref - 1) / (KEY_FRAMES - 1))
    gap = round(100 * progress) - percent
    scene = _SCENES[min(int(progress * len(_SCENES)), len(_SCENES) - 1)]
    relation = _RELATIONS[(gap > -3) + (gap > 2)]
    return (
        f"<ref_think>{scene}. Among the states of the demonstration, this is most like number "
        f"{ref}, where the same can be seen.</ref_think>\n<ref>{ref}</ref>\n<score_think>State "
        f"{ref} stands for {percent}% of the task. {relation}, so the estimate is moved "
        f"accordingly.</score_think>\n<score>{round(100 * progress)}%</score>"
    )


def demonstration(recording: Recording) -> Demonstration:
    """Take key frames out of a successful episode.

    Args:
        recording: The episode.

    Returns:
        Eight frames, whose true progress is as evenly spread as the episode's.
    """
    frames = recording.episode.frames["front"]
    last = int(np.argmax(recording.progress))
    wanted = np.linspace(0.0, float(recording.progress[last]), KEY_FRAMES)
    rows = [int(np.argmin(np.abs(recording.progress[: last + 1] - value))) for value in wanted]
    return Demonstration(frames=tuple(frames[row] for row in rows))


def train_progress_twin(
    recordings: Sequence[Recording],
    demo: Demonstration,
    folder: Path,
    settings: TrainSettings | None = None,
) -> Path:
    """Train the twin, or find it trained.

    Args:
        recordings: What it is trained on.
        demo: The demonstration in every prompt.
        folder: Where to write the model.
        settings: How.

    Returns:
        The folder.
    """
    if (folder / "preprocessor_config.json").exists():  # written last
        return folder
    settings = settings or TrainSettings()
    goal = recordings[0].episode.instruction
    tokenizer = make_tokenizer(
        train_tokenizer(_corpus(goal, demo, recordings[0]), settings.vocabulary)
    )
    config = qwen25_config(tokenizer, settings.size, window_size=112)
    model = random_model(config, seed=1)
    school = _School(model, tokenizer, recordings, demo, settings)
    with torch.random.fork_rng():
        school.run()
    return save_twin(folder, model, tokenizer, min_pixels=784)


def _corpus(goal: str, demo: Demonstration, recording: Recording) -> list[str]:
    clip = Clip(frames=recording.episode.frames["front"][:1])
    prompt = progresslm_prompt(goal, demo, clip)
    words = [part for part in prompt.parts if isinstance(part, str)]
    answers = [answer(percent / 100) for percent in range(0, 101, 5)]
    return [*words, prompt.system or "", *answers, "user\n", "assistant\n", "system\n"]


class _School:
    """One training run."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        recordings: Sequence[Recording],
        demo: Demonstration,
        settings: TrainSettings,
    ) -> None:
        self._model = model
        self._settings = settings
        self._tokenizer = tokenizer
        self._loaded = loaded_twin(model, tokenizer, min_pixels=784)
        self._reader = PromptReader(self._loaded)
        self._demo = demo
        self._goal = recordings[0].episode.instruction
        self._frames = np.concatenate([one.episode.frames["front"] for one in recordings])
        self._progress = np.concatenate([one.progress for one in recordings])
        self._rng = np.random.default_rng(0)
        self._shares = self._even_shares()
        self._digits = tokenizer.convert_tokens_to_ids(list("0123456789"))

    def _even_shares(self) -> Any:
        """Chances of the frames such that every tenth of progress is drawn alike."""
        tenths = np.minimum((self._progress * 10).astype(int), 9)
        weights = 1.0 / np.bincount(tenths, minlength=10)[tenths]
        return weights / weights.sum()

    def run(self) -> None:
        """Train the model in place."""
        settings = self._settings
        self._model.train().requires_grad_(True)
        head = torch.nn.Linear(settings.size.hidden, _BINS)
        seeing = [*self._model.model.visual.parameters(), *head.parameters()]
        self._phase(seeing, settings.look_steps, lambda: self._look(head, settings.look_batch))
        every = list(self._model.parameters())
        short = settings.short_steps
        steps = iter(range(short + settings.long_steps))

        def read() -> torch.Tensor:
            long = next(steps) >= short
            return self._loss(settings.long_batch if long else settings.short_batch, whole=long)

        self._phase(every, short + settings.long_steps, read)
        self._model.eval().requires_grad_(False)

    def _phase(
        self, weights: list[torch.Tensor], steps: int, loss_of: Callable[[], torch.Tensor]
    ) -> None:
        """Take some steps; the learning rate rises, then falls."""
        optimizer = torch.optim.AdamW(weights, lr=self._settings.rate, weight_decay=0.01)
        for step in range(steps):
            rate = 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1.0, (step + 1) / 10)
            for group in optimizer.param_groups:
                group["lr"] = self._settings.rate * max(rate, 0.05)
            loss = loss_of()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()

    def _draw(self, count: int) -> Any:
        return self._rng.choice(len(self._frames), size=count, p=self._shares)

    def _look(self, head: torch.nn.Module, count: int) -> torch.Tensor:
        """Cross-entropy of the progress that every visual token tells by itself."""
        rows = self._draw(count)
        patches = preprocess_images(self._frames[rows], self._loaded.image_config)
        seen = self._model.model.visual(patches.pixel_values, grid_thw=patches.grid_thw)
        tokens = getattr(seen, "pooler_output", seen)
        logits = head(tokens).view(count, -1, _BINS).mean(1)
        bins = torch.from_numpy(np.rint(self._progress[rows] * (_BINS - 1)).astype(np.int64))
        return torch.nn.functional.cross_entropy(logits, bins)

    def _loss(self, count: int, *, whole: bool) -> torch.Tensor:
        """Cross-entropy of the answers to some pictures; digits count more."""
        rows = self._draw(count)
        prepared = [self._reader.read(self._prompt(self._frames[row])) for row in rows]
        answers = [self._answer(float(self._progress[row])) for row in rows]
        chats = [one.chat if whole else _picture_only(one.chat) for one in prepared]
        read = [chat.with_text(ids) for chat, ids in zip(chats, answers, strict=True)]
        batch = pad_left(read, self._loaded.end_ids[-1], self._loaded.device)
        patches = list(_patches(prepared, whole=whole))
        longest = max(map(len, answers))
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask
        logits = self._model(
            input_ids=batch.ids,
            attention_mask=mask,
            position_ids=batch.positions,
            mm_token_type_ids=batch.kinds,
            pixel_values=torch.cat([patch.pixel_values for patch in patches]),
            image_grid_thw=torch.cat([patch.grid_thw for patch in patches]),
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
        targets = batch.ids[:, -longest:].clone()
        for row, ids in enumerate(answers):
            targets[row, : longest - len(ids)] = -100
        weights = torch.ones(logits.shape[-1])
        weights[self._digits] = _DIGIT_WEIGHT
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), weight=weights
        )

    def _prompt(self, frame: Any) -> Prompt:
        return progresslm_prompt(self._goal, self._demo, Clip(frames=frame[None]))

    def _answer(self, progress: float) -> list[int]:
        ids: list[int] = self._tokenizer.encode(answer(progress), add_special_tokens=False)
        return [*ids, self._loaded.end_ids[0]]


def _picture_only(chat: Chat) -> Chat:
    """Keep the last picture and the head of the answer, where they are; drop all else."""
    visual = np.flatnonzero(chat.visual)
    first = visual[np.flatnonzero(np.diff(visual) > 1)[-1] + 1] - 1
    rows = np.r_[first : visual[-1] + 2, len(chat) - 4 : len(chat)]
    return Chat(
        ids=chat.ids[rows],
        positions=chat.positions[:, rows],
        kinds=chat.kinds[rows],
        next_position=chat.next_position,
    )


def _patches(prepared: Sequence[PreparedPrompt], *, whole: bool) -> Iterator[Any]:
    for one in prepared:
        yield from one.patches if whole else one.patches[-1:]
