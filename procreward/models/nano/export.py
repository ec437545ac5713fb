"""Turn a training run into the folder that is shipped: weights, tokenizer, settings.

::

    python -m procreward.models.nano.export --run runs/nano --out procreward/models/nano/weights
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from procreward.errors import ModelNotFoundError
from procreward.models.nano import WEIGHTS
from procreward.models.nano.architecture import CROP, FRAME_SIZE, WINDOW_FRAMES, build_model
from procreward.models.nano.render import FRAME_STRIDE

__all__ = ["export", "main", "write_model"]

_log = logging.getLogger(__name__)


def export(run: Path, out: Path) -> None:
    """Write the averaged weights of a run as a model folder.

    Args:
        run: Folder with ``checkpoint.pt`` and ``tokenizer``.
        out: Folder to write; existing files of the same names are replaced.

    Raises:
        ModelNotFoundError: If the run has no checkpoint.
    """
    from transformers import AutoTokenizer

    path = run / "checkpoint.pt"
    if not path.is_file():
        raise ModelNotFoundError(
            f"`{run}` must be a training run with checkpoint.pt, but there is none; run "
            "`python -m procreward.models.nano.train` first."
        )
    tokenizer = AutoTokenizer.from_pretrained(str(run / "tokenizer"))
    model = build_model(tokenizer, seed=0)
    mean = torch.load(path, weights_only=True)["modules"]["average"]["mean"]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), mean, strict=True):
            parameter.copy_(value)
    write_model(model, tokenizer, out)


def write_model(model: Any, tokenizer: Any, out: Path) -> None:
    """Write model, tokenizer and preprocessing settings; weights in half precision."""
    from transformers import GenerationConfig

    out.mkdir(parents=True, exist_ok=True)
    # The engine decodes greedily by its own loop; nothing of the generation settings is needed.
    model.generation_config = GenerationConfig()
    model.half().save_pretrained(str(out), safe_serialization=True)
    (out / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(str(out))
    _amend(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 32 * 32, "longest_edge": 512 * 512},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    _amend(out / "preprocessor_config.json", settings)
    own = {
        "frame_size": list(FRAME_SIZE),
        "crop": list(CROP),
        "window_frames": WINDOW_FRAMES,
        "frame_stride_steps": FRAME_STRIDE,
    }
    _amend(out / "procreward.json", own)
    # transformers writes weights readable by their owner only; packages need them readable.
    (out / "model.safetensors").chmod(0o644)
    size = (out / "model.safetensors").stat().st_size / 1e6
    _log.info("wrote %s: weights %.2f MB", out, size)


def _amend(path: Path, values: dict[str, Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps(content | values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Export a training run as a model folder.")
    parser.add_argument("--run", type=Path, default=Path("runs/nano"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(args.run, args.out)


if __name__ == "__main__":
    main()
