"""Write the sample datasets: ``python -m scripts.sample_data --out data/sample``."""

from __future__ import annotations

import argparse
import importlib
import logging
import shutil
from pathlib import Path

from tqdm import tqdm

from scripts.sample_data.episodes import PLAYED, record_episodes

# What is written -> "module:function"; the function takes the episodes and the new path.
TARGETS = {
    "lerobot-v2.1": "scripts.sample_data.lerobot:write_v21",
    "lerobot-v3.0": "scripts.sample_data.lerobot:write_v30",
    "robomimic.hdf5": "scripts.sample_data.robomimic:write_robomimic",
    "minari/sample-v0": "scripts.sample_data.minari:write_minari",
    "videos": "scripts.sample_data.videos:write_videos",
}

_log = logging.getLogger("sample_data")


def main() -> None:
    """Play the episodes once and write them in every format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/sample"))
    parser.add_argument("--only", nargs="*", choices=sorted(TARGETS), default=list(TARGETS))
    parser.add_argument("--size", type=int, default=128, help="pixels of a picture's side")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tqdm(unit="step", desc=f"{len(PLAYED)} episodes") as bar:
        episodes = record_episodes(size=arguments.size, on_step=bar.update)
    for name in arguments.only:
        module, _, function = TARGETS[name].partition(":")
        path = arguments.out / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        getattr(importlib.import_module(module), function)(episodes, path)
        _log.info("%s", path)


if __name__ == "__main__":
    main()
