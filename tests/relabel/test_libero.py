"""LIBERO's HDF5 files, in the layout in which its ``create_dataset.py`` leaves them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from procreward import registry
from procreward.relabel import RelabelConfig, relabel
from procreward.relabel.robomimic import RobomimicSource
from scripts.sample_data.episodes import draw_episodes

registry.register_scorer("grey", "tests.relabel.scorers:Grey")

TASK = "put both moka pots on the stove"


def write_libero(path: Path, **attributes: str) -> Path:
    env_args = {
        "type": 1,
        "env_name": "Libero_Kitchen_Tabletop_Manipulation",
        "problem_name": "libero_kitchen_tabletop_manipulation",
        "bddl_file": "chiliocosm/bddl_files/libero_10/KITCHEN_SCENE8.bddl",
        "env_kwargs": {"control_freq": 20, "camera_names": ["robot0_eye_in_hand", "agentview"]},
    }
    problem = {
        "problem_name": "libero_kitchen_tabletop_manipulation",
        "domain_name": "robosuite",
        "language_instruction": TASK,
    }
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = env_args["env_name"]
        data.attrs["problem_info"] = json.dumps(problem)
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = env_args["bddl_file"]
        data.attrs["bddl_file_content"] = "(define (problem LIBERO_Kitchen_Tabletop_Manipulation))"
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["tag"] = "libero-v1"
        data.attrs["num_demos"], data.attrs["total"] = 2, 10
        for key, value in attributes.items():
            data.attrs[key] = value
        for number, episode in enumerate(draw_episodes((4, 6))):
            length = episode.length
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = str(length)
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["init_state"] = np.zeros(45)
            ends = np.zeros(length, np.uint8)
            ends[-1] = 1
            arrays: dict[str, Any] = {
                "actions": np.zeros((length, 7)),
                "dones": ends,
                "rewards": ends,
                "states": np.zeros((length, 45)),
                "robot_states": np.zeros((length, 9)),
                "obs/joint_states": np.zeros((length, 7)),
                "obs/ee_pos": np.zeros((length, 3)),
                "obs/agentview_rgb": episode.frames["agentview"][:length, ::-1],
                "obs/eye_in_hand_rgb": episode.frames["robot0_eye_in_hand"][:length, ::-1],
            }
            for key, values in arrays.items():
                demo.create_dataset(key, data=values)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_libero(tmp_path / "task_demo.hdf5")


def test_episodes(path: Path) -> None:
    source = RobomimicSource(path)
    assert source.views == ("agentview_rgb", "eye_in_hand_rgb")
    assert source.upside_down
    assert [
        (one.name, one.length, one.frames, one.instruction, one.terminated, one.fps)
        for one in source.episodes
    ] == [("demo_0", 4, 4, TASK, True, 20.0), ("demo_1", 6, 6, TASK, True, 20.0)]


def test_the_quotes_of_a_task_file_are_no_part_of_the_instruction(tmp_path: Path) -> None:
    problem = json.dumps({"language_instruction": '"open the drawer"'})
    source = RobomimicSource(write_libero(tmp_path / "a.hdf5", problem_info=problem))
    assert {one.instruction for one in source.episodes} == {"open the drawer"}


@pytest.mark.parametrize(
    ("views", "convention", "warned"),
    [
        ((), "opengl", "use the view 'flip:agentview_rgb' (--views)"),
        (("flip:agentview_rgb", "eye_in_hand_rgb"), "opengl", "'flip:eye_in_hand_rgb'"),
        (("flip:agentview_rgb",), "opengl", ""),
        ((), "opencv", ""),
    ],
)
def test_pictures_that_are_left_upside_down_are_warned_of(
    views: tuple[str, ...],
    convention: str,
    warned: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write_libero(tmp_path / "a.hdf5", macros_image_convention=convention)
    given = RelabelConfig(
        source=path, out=tmp_path / "out", scorer="grey", views=views, dry_run=True, estimate=False
    )
    with caplog.at_level(logging.WARNING):
        relabel(given, lambda text: None)
    assert len(caplog.messages) == bool(warned)
    assert warned in caplog.text


def test_rewards_come_into_a_copy(path: Path, tmp_path: Path) -> None:
    given = RelabelConfig(
        source=path, out=tmp_path / "out", scorer="grey", views=("flip:agentview_rgb",)
    )
    assert relabel(given.replace(rewrite=True), lambda text: None).episodes == 2
    with h5py.File(path) as old, h5py.File(tmp_path / "out" / "dataset" / path.name) as new:
        assert dict(old["data"].attrs).items() <= dict(new["data"].attrs).items()
        before, after = old["data/demo_1"], new["data/demo_1"]
        assert after["rewards_env"][()].tolist() == before["rewards"][()].tolist()
        assert after["rewards"].dtype == np.float64
        for key in ("obs/agentview_rgb", "obs/eye_in_hand_rgb", "actions"):
            assert np.array_equal(before[key][()], after[key][()])
    relabel(given.replace(rewrite=True, limit=1, overwrite=True), lambda text: None)
    with h5py.File(tmp_path / "out" / "dataset" / path.name) as new:
        assert {key: new["data"].attrs[key] for key in ("num_demos", "total")} == {
            "num_demos": 1,
            "total": 4,
        }
