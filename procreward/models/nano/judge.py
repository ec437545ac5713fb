"""Train nano's completion judge: a LoRA adapter over the shipped weights.

::

    python -m procreward.models.nano.judge --data data/nano --minutes 7

The adapter answers the completion judge's question with ``complete`` or ``not complete``. A window
is complete when the simulator's own success check holds in its last frame.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from procreward.engine.reading.prompt import Chat, ChatBuilder, Image
from procreward.engine.vision.preprocess import preprocess_images
from procreward.models.nano import WEIGHTS
from procreward.models.nano.architecture import (
    GRID,
    WINDOW_FRAMES,
    encode_frames,
    run_windows,
)
from procreward.models.nano.corpus import VALIDATION_SEEDS, Corpus, load_corpus, phrasings
from procreward.models.nano.metrics import balanced_accuracy
from procreward.models.nano.readout import IMAGE_CONFIG, centre_crop, episode_windows
from procreward.models.nano.sampling import augment
from procreward.scorers.completion_judge import LABELS, judge_prompt

__all__ = ["JudgeConfig", "main", "train_judge"]

_log = logging.getLogger(__name__)
_COMPLETE = 0
_NEAR_STEPS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """Settings of the judge's training.

    Attributes:
        data: Folder of rendered shards.
        base: Model folder.
        out: Folder of the adapter.
        minutes: Budget.
        windows: Windows per step.
        rank: Rank of the adapter.
        lr: Highest learning rate.
        threads: Threads of torch.
        seed: Seed of adapter and draws.
        limit: Shards per task at most, for trials.
    """

    data: Path = Path("data/nano")
    base: Path = WEIGHTS
    out: Path = WEIGHTS / "judge"
    minutes: float = 7.0
    windows: int = 48
    rank: int = 8
    lr: float = 2e-3
    threads: int = 2
    seed: int = 0
    limit: int | None = None


class JudgeSampler:
    """Draws labelled windows: half complete, half not, and many close to the change.

    Args:
        corpus: The episodes.
        seed: Seed of every draw.
    """

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._corpus = corpus
        near = np.zeros(len(corpus), dtype=bool)
        change = np.flatnonzero(corpus.success[1:] != corpus.success[:-1]) + 1
        for index in change[corpus.first[change] != change]:
            low = max(int(corpus.first[index]), int(index) - _NEAR_STEPS)
            near[low : min(int(corpus.last[index]), int(index) + _NEAR_STEPS) + 1] = True
        kinds = np.array(corpus.kinds)[corpus.episode]
        hard = near | np.isin(kinds, ("miss", "drop")) | (corpus.progress > 0.6)
        tasks = range(len(corpus.names))
        self._pools = [
            [
                [
                    np.flatnonzero((corpus.task == t) & (corpus.success == done) & part)
                    for part in (hard, np.ones_like(hard))
                ]
                for done in (True, False)
            ]
            for t in tasks
        ]

    def draw(
        self, count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return corpus indices ``(count, 4)``, instructed tasks and labels (0 = complete)."""
        corpus, rng = self._corpus, self.rng
        ends = np.empty(count, dtype=np.int64)
        for row in range(count):
            pools = self._pools[int(rng.integers(len(self._pools)))][int(rng.random() < 0.5)]
            pool = pools[0] if rng.random() < 0.6 and len(pools[0]) else pools[1]
            pool = pool if len(pool) else np.arange(len(corpus))
            ends[row] = pool[rng.integers(len(pool))]
        stride = rng.choice((1, 1, 2), size=count) * np.where(rng.random(count) < 0.1, -1, 1)
        stride[rng.random(count) < 0.05] = 0
        rows = ends[:, None] + stride[:, None] * np.arange(1 - WINDOW_FRAMES, 1)[None]
        rows = np.clip(rows, corpus.first[ends][:, None], corpus.last[ends][:, None])
        own = corpus.task[ends]
        other = (own + rng.integers(1, max(2, len(corpus.names)), size=count)) % len(corpus.names)
        task = np.where(rng.random(count) < 0.08, other, own)
        done = corpus.success[ends] & (task == own)
        return rows, task, np.where(done, _COMPLETE, 1 - _COMPLETE)


class JudgeTrainer:
    """Owns the adapter and its training.

    Args:
        config: Settings.
    """

    def __init__(self, config: JudgeConfig) -> None:
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

        self.config = config
        self.corpus = load_corpus(config.data, seeds=range(900_000), limit=config.limit)
        self.tokenizer = AutoTokenizer.from_pretrained(str(config.base))
        base = Qwen3VLForConditionalGeneration.from_pretrained(
            str(config.base), dtype=torch.float32, attn_implementation="eager"
        )
        self.peft = _wrap(base, config.rank)
        self.model = self.peft.get_base_model()
        self._builder = ChatBuilder(self.tokenizer)
        self._images = [Image(GRID[1] // 2, GRID[2] // 2)] * WINDOW_FRAMES
        end = [self._builder.control_id("im_end"), *self._builder.encode("\n")]
        self._labels = [[*self._builder.encode(label), *end] for label in LABELS]
        self._wordings = [phrasings(self.corpus, t) for t in range(len(self.corpus.names))]
        self.sampler = JudgeSampler(self.corpus, config.seed)

    def run(self) -> None:
        """Train for the budget, then write the adapter and its held-out figures."""
        parameters = [p for p in self.peft.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.01)
        budget, began, step, total = 60 * self.config.minutes, time.monotonic(), 0, 0.0
        while (spent := time.monotonic() - began) < budget:
            share = spent / budget
            rate = self.config.lr * min(1.0, 0.1 + share / 0.03)
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1.02 + math.cos(math.pi * share))
            loss = self._loss()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step, total = step + 1, total + float(loss.detach())
            if step % 50 == 0:
                _log.info("step %d, %.0f s, loss %.4f", step, spent, total / 50)
                total = 0.0
        self.save()
        _log.info("held out: %s", json.dumps(self.measure()))

    def save(self) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json``."""
        self.peft.save_pretrained(str(self.config.out), safe_serialization=True)
        (self.config.out / "README.md").unlink(missing_ok=True)
        (self.config.out / "adapter_model.safetensors").chmod(0o644)
        path = self.config.out / "adapter_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["base_model_name_or_path"] = "nano"
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @torch.no_grad()
    def measure(self, per_task: int = 16) -> dict[str, float]:
        """Return the balanced accuracy per task on held-out episodes."""
        held_out = load_corpus(self.config.data, seeds=VALIDATION_SEEDS)
        self.model.eval()
        results: dict[str, float] = {}
        for number, name in enumerate(held_out.names):
            spans = [s for s in held_out.episodes() if held_out.task[s[0]] == number][:per_task]
            guesses, truths = [], []
            for first, last in spans:
                images = centre_crop(held_out.images[first : last + 1])
                windows = torch.from_numpy(episode_windows(len(images)))
                chat = self._chat(held_out.instructions[number])
                guesses.append(self._complete(images, windows, chat))
                truths.append(held_out.success[first : last + 1])
            accuracy = balanced_accuracy(np.concatenate(guesses), np.concatenate(truths))
            results[name] = round(accuracy, 4)
        self.model.train()
        return results

    def _chat(self, instruction: str) -> Chat:
        return self._builder.build([*self._images, judge_prompt(instruction)])

    def _complete(
        self, images: npt.NDArray[np.uint8], windows: torch.Tensor, chat: Chat
    ) -> npt.NDArray[np.bool_]:
        features = encode_frames(self.model, preprocess_images(images, IMAGE_CONFIG).pixel_values)
        ids = torch.from_numpy(np.tile(chat.ids, (len(windows), 1)))
        positions = torch.from_numpy(np.tile(chat.positions[:, None], (1, len(windows), 1)))
        hidden = run_windows(self.model, features, windows, ids, positions)
        logits = self.model.lm_head(hidden[:, -1])
        first = [label[0] for label in self._labels]
        result: npt.NDArray[np.bool_] = (logits[:, first].argmax(-1) == _COMPLETE).numpy()
        return result

    def _loss(self) -> torch.Tensor:
        rows, tasks, labels = self.sampler.draw(self.config.windows)
        wordings = [self._wordings[int(t)] for t in tasks]
        rng = self.sampler.rng
        picks = [w[0 if rng.random() < 0.35 else int(rng.integers(len(w)))] for w in wordings]
        chats = [
            self._chat(text).with_text(self._labels[int(label)])
            for text, label in zip(picks, labels, strict=True)
        ]
        length = max(len(chat) for chat in chats)
        ids = torch.full((len(chats), length), int(self.tokenizer.pad_token_id))
        positions = torch.zeros((3, len(chats), length), dtype=torch.int64)
        answers = torch.zeros((len(chats), length), dtype=torch.bool)
        for row, (chat, label) in enumerate(zip(chats, labels, strict=True)):
            ids[row, : len(chat)] = torch.from_numpy(chat.ids)
            positions[:, row, : len(chat)] = torch.from_numpy(chat.positions)
            answers[row, len(chat) - len(self._labels[int(label)]) : len(chat)] = True
        images = augment(self.corpus.images[rows.reshape(-1)], len(rows), rng)
        with torch.autocast("cpu", torch.bfloat16):
            pixels = preprocess_images(images, IMAGE_CONFIG).pixel_values
            features = encode_frames(self.model, pixels)
            windows = torch.arange(rows.size).view(rows.shape)
            hidden = run_windows(self.model, features, windows, ids, positions)
            logits = self.model.lm_head(hidden[:, :-1][answers[:, 1:]]).float()
        return F.cross_entropy(logits, ids[:, 1:][answers[:, 1:]])


def _wrap(base: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    language = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    # Plain vision layers too: what decides completion may be too small for the base's own use.
    vision = r"attn\.qkv|attn\.proj|linear_fc1|linear_fc2"
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=rf".*(language_model.*\.({language})|visual\..*({vision}))",
        task_type=None,
    )
    with warnings.catch_warnings():
        # peft asks transformers for an attribute under its former name.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        return get_peft_model(base, config)


def train_judge(config: JudgeConfig) -> None:
    """Train the adapter and write it to ``config.out``."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    JudgeTrainer(config).run()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train nano's completion judge.")
    defaults = JudgeConfig()
    for name in JudgeConfig.__slots__:
        value = getattr(defaults, name)
        kind = int if value is None else type(value)
        parser.add_argument(f"--{name}", type=kind, default=value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_judge(JudgeConfig(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
