"""Episodes as a robomimic HDF5 file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from scripts.sample_data.episodes import SampleEpisode

__all__ = ["write_robomimic"]


def write_robomimic(
    episodes: Sequence[SampleEpisode],
    path: Path,
    *,
    pictures: bool = True,
    next_obs: bool = True,
) -> None:
    """Write a file as robomimic's ``dataset_states_to_obs.py`` leaves it.

    ``dones`` marks successful states and the end of each demo (``done_mode`` 2). The filter key
    ``valid`` holds the last demo and ``train`` the others.

    Args:
        episodes: What to write; the first one is ``demo_0``.
        path: The new file.
        pictures: Whether ``obs`` holds pictures; without them, the states tell what was seen.
        next_obs: Whether the observations after each action are there too.
    """
    names = [f"demo_{number}" for number in range(len(episodes))]
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(episode.length for episode in episodes)
        data.attrs["env_args"] = episodes[0].env_args
        for name, episode in zip(names, episodes, strict=True):
            _write_demo(data.create_group(name), episode, pictures, next_obs)
        masks = file.create_group("mask")
        for key, members in (("train", names[:-1]), ("valid", names[-1:])):
            masks.create_dataset(key, data=np.array(members, "S"), track_times=False)


def _write_demo(demo: h5py.Group, episode: SampleEpisode, pictures: bool, next_obs: bool) -> None:
    length = episode.length
    demo.attrs["num_samples"] = length
    demo.attrs["ep_meta"] = json.dumps({"lang": episode.instruction})
    if episode.model_xml:
        demo.attrs["model_file"] = episode.model_xml
    dones = episode.success[1:].astype(np.int64)
    dones[-1] = 1
    arrays: dict[str, np.ndarray] = {
        "actions": episode.actions.astype(np.float64),
        "rewards": episode.rewards,
        "dones": dones,
        "states": episode.sim_states[:length],
    }
    seen = {"proprio": episode.observations}
    if pictures:
        seen |= {f"{view}_image": frames for view, frames in episode.frames.items()}
    for key, values in seen.items():
        arrays[f"obs/{key}"] = values[:length]
        if next_obs:
            arrays[f"next_obs/{key}"] = values[1:]
    for key, values in arrays.items():
        compression = "gzip" if key.endswith("_image") else None
        demo.create_dataset(key, data=values, compression=compression, track_times=False)
