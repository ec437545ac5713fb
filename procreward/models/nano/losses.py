"""The loss of one training step, for both phases."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from procreward.engine.vision.preprocess import preprocess_images
from procreward.models.nano.architecture import encode_frames, run_windows
from procreward.models.nano.corpus import Corpus, phrasings
from procreward.models.nano.heads import StateHead, ValueHead, state_loss
from procreward.models.nano.prompts import PromptBank, Sequences
from procreward.models.nano.readout import IMAGE_CONFIG
from procreward.models.nano.sampling import Batch, Sampler, augment

__all__ = ["Losses"]

_JITTER = 1.0
_OWN_WORDING = 0.35
_DIRECT = 0.5
_VALUE_WEIGHT = 5.0


class Losses:
    """Computes losses from a corpus.

    Args:
        corpus: Training episodes.
        sampler: Draws from it.
        bank: Prompts.
        bfloat16: Multiply matrices in bfloat16.
        device: Where the model lives.
    """

    def __init__(
        self, corpus: Corpus, sampler: Sampler, bank: PromptBank, *, bfloat16: bool, device: str
    ) -> None:
        self._corpus = corpus
        self._sampler = sampler
        self._bank = bank
        self._bfloat16 = bfloat16
        self._device = device
        self._wordings = [phrasings(corpus, task) for task in range(len(corpus.names))]

    def vision(self, model: Any, head: StateHead, frames: int) -> dict[str, torch.Tensor]:
        """Return the loss of reading the state from single frames."""
        rows = self._sampler.draw_frames(frames)
        with self._autocast():
            features = encode_frames(model, self._pixels(rows, groups=frames))
            predicted = head(features.tokens, torch.from_numpy(self._corpus.task[rows]))
        loss = state_loss(predicted, self._targets(rows))
        with torch.no_grad():
            # The standardised progress error orders frames by difficulty well enough.
            error = (predicted[:, 14] - self._targets(rows)[:, 14]).abs()
        self._sampler.note_errors(rows, error.float().cpu().numpy())
        return {"loss": loss, "progress_error": error.mean()}

    def joint(
        self,
        model: Any,
        head: StateHead,
        value: ValueHead,
        *,
        chunks: int,
        state_weight: float,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of answering, of the value head and of reading the state."""
        batch = self._sampler.draw_batch(chunks)
        sequences, labels = self._sequences(batch)
        target = torch.from_numpy(labels).to(self._device)
        windows = torch.from_numpy(batch.windows).to(self._device)
        ids, positions = sequences.ids.to(self._device), sequences.positions.to(self._device)
        with self._autocast():
            features = encode_frames(model, self._pixels(batch.frames, groups=chunks))
            state = head(features.tokens, torch.from_numpy(self._corpus.task[batch.frames]))
            hidden = run_windows(model, features, windows, ids, positions)
            text = _text_loss(model, hidden, ids, sequences.weights.to(self._device))
            read = value(hidden[torch.arange(len(ids)), sequences.value_at])
        value_loss = (read - target).abs().mean()
        state_part = state_loss(state, self._targets(batch.frames))
        loss = text + _VALUE_WEIGHT * value_loss + state_weight * state_part
        own = batch.instructed == self._corpus.task[batch.focus]
        error = (read - target).detach().abs().float().cpu().numpy()
        self._sampler.note_errors(batch.focus[own], error[own])
        return {"loss": loss, "text": text, "value": value_loss, "state": state_part}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._bfloat16)

    def _pixels(self, rows: np.ndarray[Any, np.dtype[np.int64]], *, groups: int) -> torch.Tensor:
        images = augment(self._corpus.images[rows], groups, self._sampler.rng)
        return preprocess_images(images, IMAGE_CONFIG).pixel_values.to(self._device)

    def _targets(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(self._corpus.aux[rows]).to(self._device)

    def _sequences(self, batch: Batch) -> tuple[Sequences, np.ndarray[Any, np.dtype[np.float32]]]:
        rng, corpus = self._sampler.rng, self._corpus
        chats, replies, labels = [], [], []
        for row, task in zip(batch.focus.tolist(), batch.instructed.tolist(), strict=True):
            wordings = self._wordings[task]
            own = rng.random() < _OWN_WORDING
            chats.append(self._bank.chat(wordings[0 if own else rng.integers(len(wordings))]))
            right = task == corpus.task[row]
            stage = int(corpus.stage[row]) if right else 0
            percent = 100.0 * float(corpus.progress[row]) if right else 0.0
            labels.append(percent / 100.0)
            if 0.0 < percent < 100.0:
                percent = float(np.clip(percent + rng.normal(0.0, _JITTER), 0.0, 99.0))
            direct = bool(rng.random() < _DIRECT)
            stages = corpus.stage_names[task]
            replies.append(self._bank.reply(stages, stage, round(percent), direct=direct))
        return self._bank.pad(chats, replies), np.array(labels, dtype=np.float32)


def _text_loss(
    model: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    # Only positions that predict an answer's token reach the (costly) output layer.
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][counted]).float()
    each = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    weight = weights[:, 1:][counted]
    return (each * weight).sum() / weight.sum()
