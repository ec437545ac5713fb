"""Minari's own side: ``owner_minari.py (write|read) FOLDER``.

``write`` makes datasets with Minari, ``read`` loads the relabelled ones by their id.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np

FOLDER = Path(sys.argv[2])
# Minari looks for it when it is asked for a dataset.
os.environ["MINARI_DATASETS_PATH"] = str(FOLDER / "minari")

import minari  # noqa: E402 - after the setting above
from minari.data_collector import EpisodeBuffer  # noqa: E402  after its folder is set

SIZE, LENGTHS = 48, (5, 8, 4)


def write() -> None:
    """Let Minari write datasets of a plain picture, a Tuple and a Dict with texts."""
    warnings.simplefilter("ignore")  # that it has no environment to recover
    picture = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    number = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    spaces = {
        "plain": picture,
        "tuple": gym.spaces.Tuple((number, picture)),
        "dict": gym.spaces.Dict({"camera": picture, "mission": gym.spaces.Text(40)}),
    }
    for name, space in spaces.items():
        for kind in ("hdf5", "arrow", "parquet"):
            for jpeg in (True, False):
                minari.create_dataset_from_buffers(
                    dataset_id=f"verify/{name}-{kind}-{'jpeg' if jpeg else 'raw'}-v0",
                    buffer=[_buffer(name, number, length) for number, length in enumerate(LENGTHS)],
                    observation_space=space,
                    action_space=number,
                    data_format=kind,
                    jpeg_encoding=jpeg,
                    author={"procreward"},
                    author_email={"nobody@example.org"},
                    code_permalink="https://example.org",
                    algorithm_name="drawn",
                    description="drawn",
                )


def _buffer(name: str, number: int, length: int) -> EpisodeBuffer:
    rng = np.random.default_rng(number)
    pictures = rng.integers(0, 256, (length + 1, SIZE, SIZE, 3), np.uint8)
    numbers = rng.uniform(-1, 1, (length + 1, 2))
    missions = [f"reach goal {number}"] * (length + 1)
    ends = np.arange(length) == length - 1
    observations = {
        "plain": pictures,
        "tuple": (numbers, pictures),
        "dict": {"camera": pictures, "mission": missions},
    }[name]
    return EpisodeBuffer(
        id=number,
        seed=number,
        options={"level": number},
        observations=observations,
        actions=rng.uniform(-1, 1, (length, 2)),
        rewards=rng.normal(size=length).tolist(),
        terminations=(ends & (number != 1)).tolist(),
        truncations=(ends & (number == 1)).tolist(),
        infos={"distance": rng.random(length + 1).tolist()} if name != "plain" else {},
    )


def read() -> None:
    """Compare what Minari reads with what was to be written."""
    warnings.simplefilter("error")
    expected = json.loads((FOLDER / "expected.json").read_text())
    expected = {name: episodes for name, episodes in expected.items() if "verify/" in name}
    local = minari.list_local_datasets()
    for name, episodes in expected.items():
        assert local[name]["procreward"] == {"scorer": "drawn"}
        after = minari.load_dataset(name)
        part = "-some" if len(episodes) < len(LENGTHS) else "-all"
        before = minari.load_dataset(name.replace(part, ""))
        assert after.id == name
        assert after.observation_space == before.observation_space
        assert after.total_episodes == len(after) == len(episodes)
        assert after.total_steps == sum(len(episode["rewards"]) for episode in episodes)
        for number, (found, wanted) in enumerate(zip(after, episodes, strict=True)):
            old = before[wanted["source"]]
            assert found.id == number
            assert found.rewards.tolist() == wanted["rewards"]
            infos = found.infos
            assert np.array_equal(infos["rewards_env"], np.append(0.0, old.rewards))
            progress = np.array(wanted["progress"], np.float32)
            assert np.array_equal(infos["procreward_progress"], progress)
            assert infos["procreward_complete"].tolist() == wanted["complete"]
            for key, values in (old.infos or {}).items():
                assert np.array_equal(infos[key], values), key
            for key in ("actions", "terminations", "truncations"):
                assert np.array_equal(getattr(found, key), getattr(old, key)), key
            _same(found.observations, old.observations)
        metadata = list(after.storage.get_episode_metadata(after.episode_indices))
        assert [one["id"] for one in metadata] == list(range(len(episodes)))
    sys.stdout.write(
        f"Minari {minari.__version__}: load_dataset reads {len(expected)} relabelled datasets\n"
    )


def _same(found: object, wanted: object) -> None:
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for key in wanted:
            _same(found[key], wanted[key])
    elif isinstance(wanted, tuple):
        for one, other in zip(found, wanted, strict=True):
            _same(one, other)
    else:
        assert np.array_equal(found, wanted)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]]()
