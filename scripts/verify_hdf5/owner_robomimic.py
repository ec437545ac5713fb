"""robomimic's own dataset class reads the relabelled files: ``owner_robomimic.py FOLDER``."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import robomimic
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset

LOW_DIM, RGB = ["proprio"], ["agentview_image", "robot0_eye_in_hand_image"]
KEYS = ("actions", "rewards", "dones", "progress", "complete", "rewards_env")


def main(folder: Path) -> None:
    """Compare what robomimic reads with what was to be written."""
    specs = {"obs": {"low_dim": LOW_DIM, "rgb": RGB}, "goal": {}}
    obs_utils.initialize_obs_utils_with_obs_specs(specs)
    expected = json.loads((folder / "expected.json").read_text())
    for part in ("all", "some"):
        name = f"relabelled-{part}/robomimic.hdf5"
        path, demos = folder / name, expected[name]
        with h5py.File(folder / "robomimic.hdf5", "r") as before:
            for cache in (None, "low_dim", "all"):
                _compare(_open(path, cache=cache), demos, before, exact=cache is None)
            for key in ("train", "valid"):
                members = {entry.decode() for entry in before[f"mask/{key}"][()]}
                kept = [demo for demo in demos if demo["name"] in members]
                _compare(_open(path, mask=key), kept, before, exact=True)


def _open(path: Path, *, cache: str | None = None, mask: str | None = None) -> SequenceDataset:
    return SequenceDataset(
        hdf5_path=str(path),
        obs_keys=(*LOW_DIM, *RGB),
        dataset_keys=KEYS,
        seq_length=3,
        goal_mode="last",
        hdf5_cache_mode=cache,
        hdf5_use_swmr=True,
        filter_by_attribute=mask,
        load_next_obs=True,
    )


def _compare(dataset: SequenceDataset, demos: list, before: h5py.File, *, exact: bool) -> None:
    # robomimic casts what it keeps in memory to float32.
    dtype = np.float64 if exact else np.float32
    assert dataset.demos == [demo["name"] for demo in demos], dataset.demos
    assert len(dataset) == sum(len(demo["rewards"]) for demo in demos)
    start = 0
    for demo in demos:
        old, length = before["data"][demo["name"]], len(demo["rewards"])
        columns = {
            "rewards": np.array(demo["rewards"], dtype),
            "progress": np.array(demo["progress"][:length], np.float32),
            "complete": np.array(demo["complete"][:length]),
            "rewards_env": old["rewards"][()].astype(dtype),
            "actions": old["actions"][()].astype(dtype),
            "dones": old["dones"][()],
        }
        for step in range(length):
            item = dataset[start + step]
            for key, values in columns.items():
                assert np.array_equal(np.ravel(item[key][0]), np.ravel(values[step])), (key, step)
            assert np.array_equal(item["obs"][RGB[0]][0], old[f"obs/{RGB[0]}"][step])
            assert np.array_equal(item["next_obs"][RGB[1]][0], old[f"next_obs/{RGB[1]}"][step])
        start += length


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it loads
        main(Path(sys.argv[1]))
    sys.stdout.write(
        f"robomimic {robomimic.__version__}: its SequenceDataset reads the relabelled files\n"
    )
