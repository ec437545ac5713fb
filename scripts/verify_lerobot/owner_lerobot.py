"""LeRobot's own classes read the datasets of their version: ``owner_lerobot.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import lerobot
import numpy as np
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset

# Mean differences of a colour, 0 to 255: decoders round the conversion to RGB differently, by less
# than a picture differs from the next one, unless nothing moves.
CLOSE, SAME = 1.0, 0.05
CHUNK = 4


def main(folder: Path) -> None:
    """Compare what LeRobot reads with what was to be written."""
    names = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as stored:
            facts = {key: stored[key] for key in stored.files}
        if str(facts["version"]) == CODEBASE_VERSION:
            _compare(folder / path.stem, facts)
            names.append(path.stem)
            sidecar = folder / f"{path.stem}.parquet"
            if CODEBASE_VERSION == "v3.0" and sidecar.is_file():
                _weigh(sidecar, facts)
    assert len(names) >= 6, names
    sys.stdout.write(f"lerobot {lerobot.__version__}: LeRobotDataset reads {', '.join(names)}\n")


def _compare(root: Path, facts: dict[str, np.ndarray]) -> None:
    dataset = LeRobotDataset("verify/" + root.name, root=root, video_backend="pyav")
    lengths = facts["lengths"].tolist()
    assert (dataset.num_episodes, len(dataset)) == (len(lengths), sum(lengths)), root
    columns = {
        key.removeprefix("column."): values
        for key, values in facts.items()
        if key.startswith("column.")
    }
    assert ("success_prob" in dataset.features) == ("success_prob" in columns)
    pictures = {
        key.removeprefix("picture."): values
        for key, values in facts.items()
        if key.startswith("picture.")
    }
    assert sorted(pictures) == sorted(dataset.meta.camera_keys)
    number = 0
    for episode, length in enumerate(lengths):
        for step in range(length):
            item = dataset[number]
            place = tuple(int(item[key]) for key in ("episode_index", "frame_index", "index"))
            assert place == (episode, step, number), (root, place)
            assert item["task"] == str(facts["tasks"][episode]), (root, item["task"])
            for key, values in columns.items():
                got = item[key].numpy().reshape(())
                assert got.dtype == values.dtype, (root, key, got.dtype, values.dtype)
                assert np.array_equal(got, values[number], equal_nan=True), (root, key, number)
            for key, frames in pictures.items():
                got = item[key].numpy().transpose(1, 2, 0) * 255
                off = np.abs(got - frames[number]).mean()
                assert off < CLOSE, (root, key, number, off)
                after = (number + 1) % len(frames)
                assert np.abs(got - frames[after]).mean() > off - SAME, (root, key, number)
            number += 1
    for key, values in columns.items():
        _compare_stats(dataset.meta.stats[key], values, root)


def _compare_stats(stats: dict[str, np.ndarray], values: np.ndarray, root: Path) -> None:
    finite = values[np.isfinite(values)].astype(np.float64)
    expected = {"min": finite.min(), "max": finite.max(), "mean": finite.mean()}
    expected |= {"std": finite.std(), "count": len(finite)}
    for name, value in expected.items():
        assert stats[name].shape == (1,), (root, name, stats[name])
        assert np.isclose(float(stats[name][0]), float(value), atol=1e-6), (root, name)


def _weigh(sidecar: Path, facts: dict[str, np.ndarray]) -> None:
    """Let RA-BC weigh all frames, and compare with its paper's rule."""
    from lerobot.utils.rabc import RABCWeights

    progress, lengths = facts["column.progress"], facts["lengths"].tolist()
    ends = np.repeat(np.cumsum(lengths), lengths)
    ahead = np.minimum(np.arange(len(progress)) + CHUNK, ends - 1)
    gains = progress[ahead] - progress
    weigher = RABCWeights(sidecar, chunk_size=CHUNK, device="cpu")
    weights, stats = weigher.compute_batch_weights({"index": np.arange(len(progress))})
    assert np.isclose(float(weights.sum()), len(progress), rtol=1e-4)
    # 1.0 where nothing is known as well as where there is a gain.
    full = np.isnan(gains) | (gains > 0.01)
    assert stats["num_full_weight"] == full.sum(), (sidecar, stats, full.sum())
    assert np.array_equal(weights.numpy() == weights.numpy().max(), full), sidecar


if __name__ == "__main__":
    main(Path(sys.argv[1]))
