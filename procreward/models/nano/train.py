"""Train nano from rendered episodes: the second of its two training steps.

::

    python -m procreward.models.nano.train --data data/nano --out runs/nano --threads 2

Phase *vision* teaches the vision tower to read the simulator's state from single frames; phase
*joint* teaches the whole model to answer. Each has a budget in minutes, and its learning rate
follows a cosine over that budget. A checkpoint is written every few minutes; the same command
continues from it. ``log.jsonl`` in the output folder records losses and held-out figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from procreward.errors import ConfigError
from procreward.models.nano.architecture import build_model
from procreward.models.nano.checkpoint import Progress, load_checkpoint, save_checkpoint
from procreward.models.nano.corpus import (
    VALIDATION_SEEDS,
    load_corpus,
    stage_vocabulary,
)
from procreward.models.nano.heads import StateHead, ValueHead
from procreward.models.nano.losses import Losses
from procreward.models.nano.prompts import PromptBank
from procreward.models.nano.sampling import Sampler
from procreward.models.nano.text import build_tokenizer
from procreward.models.nano.watch import measure

__all__ = ["TrainConfig", "main", "train"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        data: Folder of rendered shards.
        out: Folder of the run.
        minutes_vision: Budget of the first phase.
        minutes_joint: Budget of the second phase.
        frames: Frames per step of the first phase.
        chunks: Chunks of eight frames (five windows) per step of the second phase.
        lr_vision: Highest learning rate of the first phase.
        lr_joint: Highest learning rate of the second phase.
        vision_share: Learning rate of the vision tower in the second phase, relative to the rest.
        state_weight: Weight of the state loss in the second phase.
        weight_decay: AdamW's.
        ema: Decay of the averaged weights per step; these are what is exported.
        threads: Threads of torch.
        device: "cpu" or "cuda".
        bfloat16: Multiply matrices in bfloat16.
        seed: Seed of weights and draws.
        save_minutes: Minutes between checkpoints.
        watch_minutes: Minutes between held-out measurements.
        watch_episodes: Held-out episodes per task in a measurement.
        limit: Shards per task at most, for trials.
    """

    data: Path = Path("data/nano")
    out: Path = Path("runs/nano")
    minutes_vision: float = 10.0
    minutes_joint: float = 66.0
    frames: int = 128
    chunks: int = 16
    lr_vision: float = 2e-3
    lr_joint: float = 1.3e-3
    vision_share: float = 0.3
    state_weight: float = 0.5
    weight_decay: float = 0.02
    ema: float = 0.998
    threads: int = 2
    device: str = "cpu"
    bfloat16: bool = True
    seed: int = 0
    save_minutes: float = 3.0
    watch_minutes: float = 8.0
    watch_episodes: int = 12
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("minutes_vision", "minutes_joint", "save_minutes", "watch_minutes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` must be positive, got {getattr(self, name)}.")


class Averaged:
    """An exponential moving average of a model's weights.

    Args:
        model: The model to follow.
        decay: Share of the old average that a step keeps.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._decay = decay
        self._live: list[torch.Tensor] = list(model.parameters())
        self._mean = [p.detach().clone() for p in self._live]
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Follow the model by one step; early steps count more, so that the start is forgotten."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._mean, self._live, 1.0 - decay)

    def swap(self) -> None:
        """Exchange live and averaged weights; call again to undo."""
        for mean, live in zip(self._mean, self._live, strict=True):
            held = live.data
            live.data = mean
            mean.data = held

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"mean": list(self._mean), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average."""
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)
        self._steps = int(state["steps"])


class Run:
    """One training run with everything it owns.

    Args:
        config: Settings.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        config.out.mkdir(parents=True, exist_ok=True)
        self.corpus = load_corpus(config.data, seeds=range(900_000), limit=config.limit)
        self.held_out = load_corpus(config.data, seeds=VALIDATION_SEEDS)
        self.tokenizer = self._tokenizer()
        self.bank = PromptBank(self.tokenizer)
        self.model = build_model(self.tokenizer, seed=config.seed).to(config.device)
        # The fused kernel's backward pass is slow for so short sequences on a CPU.
        self.model.set_attn_implementation("eager")
        tasks = len(self.corpus.names)
        self.head = StateHead(tasks).to(config.device)
        self.value = ValueHead().to(config.device)
        self.average = Averaged(self.model, config.ema)
        self.sampler = Sampler(self.corpus, config.seed)
        self.losses = Losses(
            self.corpus, self.sampler, self.bank, bfloat16=config.bfloat16, device=config.device
        )
        self.progress = Progress()
        self.optimizer = self._optimizer()
        self._resume()

    # -- set-up -------------------------------------------------------------------------------

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        folder = self.config.out / "tokenizer"
        if not (folder / "tokenizer.json").exists():
            stages = stage_vocabulary(self.config.data)
            build_tokenizer(stages, self.corpus.instructions).save_pretrained(str(folder))
        return AutoTokenizer.from_pretrained(str(folder))

    def _modules(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "head": self.head,
            "value": self.value,
            "average": self.average,
            "optimizer": self.optimizer,
        }

    def _optimizer(self) -> torch.optim.AdamW:
        tower = self.model.model.visual
        joint = self.progress.phase != "vision"
        inside = {id(p) for p in tower.parameters()}
        rest = [p for p in self.model.parameters() if id(p) not in inside]
        scale = self.config.vision_share if joint else 1.0
        groups = [{"params": list(tower.parameters()), "scale": scale}]
        groups += [{"params": list(self.head.parameters()), "scale": 1.0}]
        if joint:
            groups += [{"params": [*rest, *self.value.parameters()], "scale": 1.0}]
        return torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.98), weight_decay=self.config.weight_decay
        )

    @property
    def _path(self) -> Path:
        return self.config.out / "checkpoint.pt"

    def _resume(self) -> None:
        if not self._path.exists():
            return
        modules = {k: v for k, v in self._modules().items() if k != "optimizer"}
        self.progress = load_checkpoint(self._path, modules, self.sampler.rng)
        self.optimizer = self._optimizer()
        scales = [group["scale"] for group in self.optimizer.param_groups]
        load_checkpoint(self._path, {"optimizer": self.optimizer}, self.sampler.rng)
        # The settings of this command count, not those that the checkpoint was written under.
        for group, scale in zip(self.optimizer.param_groups, scales, strict=True):
            group["scale"] = scale
        _log.info("going on from %s", self.progress)

    # -- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Go through what is left of both phases."""
        if self.progress.phase == "vision":
            self._phase(self.config.minutes_vision, self.config.lr_vision, self._vision_step)
            self.progress.enter("joint")
            self.optimizer = self._optimizer()
        if self.progress.phase == "joint":
            self._phase(self.config.minutes_joint, self.config.lr_joint, self._joint_step)
            self.progress.enter("done")
            self._save()
            self._watch(per_task=None)

    def _vision_step(self) -> dict[str, torch.Tensor]:
        return self.losses.vision(self.model, self.head, self.config.frames)

    def _joint_step(self) -> dict[str, torch.Tensor]:
        return self.losses.joint(
            self.model,
            self.head,
            self.value,
            chunks=self.config.chunks,
            state_weight=self.config.state_weight,
        )

    def _phase(
        self, minutes: float, lr: float, step: Callable[[], dict[str, torch.Tensor]]
    ) -> None:
        budget = 60.0 * minutes
        saved = watched = time.monotonic()
        sums: dict[str, float] = {}
        while self.progress.seconds < budget:
            began = time.monotonic()
            rate = lr * _schedule(self.progress.seconds / budget)
            parts = self._update(step, rate)
            self.progress.step += 1
            self.progress.seconds += time.monotonic() - began
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value
            if self.progress.step % 50 == 0:
                self._note({name: round(s / 50, 4) for name, s in sums.items()})
                sums = {}
            now = time.monotonic()
            if now - saved > 60 * self.config.save_minutes:
                self._save()
                saved = now
            if self.progress.phase == "joint" and now - watched > 60 * self.config.watch_minutes:
                self._watch(per_task=self.config.watch_episodes)
                watched = time.monotonic()

    def _update(self, step: Callable[[], dict[str, torch.Tensor]], rate: float) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        parts = step()
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()  # type: ignore[no-untyped-call]  # untyped in torch
        trained: Iterable[torch.Tensor] = (
            p for group in self.optimizer.param_groups for p in group["params"]
        )
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.average.update()
        return {name: float(value.detach()) for name, value in parts.items()} | {
            "grad": float(norm)
        }

    def _save(self) -> None:
        save_checkpoint(self._path, self._modules(), self.progress, self.sampler.rng)

    def _watch(self, per_task: int | None) -> None:
        began = time.monotonic()
        self.average.swap()
        self.model.eval()
        figures = measure(self.model, self.bank, self.held_out, per_task=per_task)
        self.model.train()
        self.average.swap()
        self._note({f"held_out/{key}": value for key, value in figures.items()})
        _log.info("measured in %.0f s", time.monotonic() - began)

    def _note(self, figures: dict[str, float]) -> None:
        entry = asdict(self.progress) | figures
        entry["seconds"] = round(self.progress.seconds, 1)
        with (self.config.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        short = {k: v for k, v in figures.items() if k.count("_") <= 1}
        _log.info("%s %d %.0fs %s", *list(asdict(self.progress).values()), short)


def train(config: TrainConfig) -> None:
    """Train, or go on training, in ``config.out``."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    Run(config).run()


def _schedule(share: float) -> float:
    """Return the learning rate's factor: a short rise, then a cosine down to 2 %."""
    rise = min(1.0, share / 0.02 + 0.02)
    return rise * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share))))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train nano from rendered episodes.")
    defaults = TrainConfig()
    for name, value in asdict(defaults).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value)
        else:
            kind = int if value is None else type(value)
            parser.add_argument(flag, type=kind, default=value)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(TrainConfig(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
