"""What of the RoboCasa environments needs no RoboCasa; the rest is in tests/robocasa."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import procreward.envs
from procreward.cli import main
from procreward.envs import robocasa_backend
from procreward.envs.robocasa import ACTION_PARTS, STATE_PARTS, RoboCasaEnv, make_robocasa
from procreward.envs.robocasa_backend import load_robocasa
from procreward.errors import ConfigError, InstructionError, MissingDependencyError


@pytest.fixture
def no_robocasa(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place where RoboCasa is not installed, also on a machine where it is."""
    for name in [name for name in sys.modules if name.split(".")[0] == "robocasa"]:
        monkeypatch.delitem(sys.modules, name)
    kept = [place for place in sys.path if not (Path(place) / "robocasa").exists()]
    monkeypatch.setattr(sys, "path", kept)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("no_robocasa")
class TestWithoutRoboCasa:
    def test_the_recipe_is_in_the_error(self) -> None:
        with pytest.raises(MissingDependencyError) as caught:
            gym.make("procreward.envs:procreward/RoboCasa-v0", task="OpenDrawer")
        message = str(caught.value)
        assert message.startswith("RoboCasa is not installed.")
        assert "git clone https://github.com/robocasa/robocasa" in message
        assert "git clone https://github.com/ARISE-Initiative/robosuite" in message
        assert "pip install --no-deps" in message
        assert "python -m robocasa.scripts.download_kitchen_assets" in message

    def test_the_command_line_says_it_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["verify", "env", "procreward/RoboCasa-OpenDrawer-v0"])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: RoboCasa is not installed.")
        assert error.count("\n") == 1

    def test_a_folder_of_that_name_is_not_taken_for_the_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As in the folder that RoboCasa was cloned into: the clone's own folder is no package.
        (tmp_path / "robocasa" / "robocasa").mkdir(parents=True)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(
            MissingDependencyError, match="shadows the package `robocasa`"
        ) as caught:
            load_robocasa()
        assert str(tmp_path / "robocasa") in str(caught.value)
        assert "Run Python from another folder" in str(caught.value)

    def test_versions_that_it_refuses_are_passed_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("robosuite", reason="RoboCasa's versions are looked at after it")
        package = tmp_path / "robocasa"
        package.mkdir()
        (package / "__init__.py").write_text('assert False, "MuJoCo version must be 3.3.1"\n')
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(MissingDependencyError, match=r"MuJoCo version must be 3\.3\.1"):
            load_robocasa()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"split": "test"}, ConfigError, "got 'test': it is the default of RoboCasa's own"),
        ({"split": "train"}, ConfigError, "`split` must be 'pretrain', 'target', 'all' or None"),
        ({"kitchen": {"layout_ids": 1}}, ConfigError, "`split` must be None where `kitchen` holds"),
        ({"kitchen": {"split": None}}, ConfigError, "`kitchen` must not hold split"),
        ({"horizon": 0}, ConfigError, "`horizon` must be an integer of at least 1, got 0"),
        ({"width": 0}, ConfigError, "`width` must be an integer of at least 1"),
        ({"height": 2.5}, ConfigError, "`height` must be an integer of at least 1"),
        ({"render_mode": "human"}, ConfigError, "`render_mode` must be one of 'rgb_array', None"),
        ({"images": "robot0_agentview_left"}, ConfigError, "`images` must be a sequence"),
        ({"instruction": " "}, InstructionError, "`instruction` must be a sentence"),
    ],
)
def test_bad_settings_are_found_before_robocasa_is(settings, error, message) -> None:
    with pytest.raises(error, match=message):
        RoboCasaEnv(**settings)


def test_ids_are_registered() -> None:
    assert procreward.envs.ROBOCASA_IDS == (
        "procreward/RoboCasa-v0",
        "procreward/RoboCasa-OpenDrawer-v0",
        "procreward/RoboCasa-CloseDrawer-v0",
        "procreward/RoboCasa-OpenCabinet-v0",
        "procreward/RoboCasa-PickPlaceCounterToCabinet-v0",
    )
    tasks = [gym.spec(env_id).kwargs["task"] for env_id in procreward.envs.ROBOCASA_IDS]
    assert tasks == [
        "OpenDrawer",
        "OpenDrawer",
        "CloseDrawer",
        "OpenCabinet",
        "PickPlaceCounterToCabinet",
    ]


def test_importing_the_module_imports_no_simulator() -> None:
    code = (
        "import sys, procreward.envs.robocasa;"
        "print([name for name in ('mujoco', 'robosuite', 'robocasa') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_recipe_pins_what_was_tested() -> None:
    assert robocasa_backend.ROBOSUITE_COMMIT in robocasa_backend.RECIPE
    assert "mujoco==3.3.1" in robocasa_backend.RECIPE
    assert "numpy==2.2.5" in robocasa_backend.RECIPE


def test_the_recipe_is_that_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs/robocasa.md").read_text()
    lines = page.replace("\\\n", " ").splitlines()
    said = {" ".join(line.split(" #")[0].split()) for line in lines}
    commands = robocasa_backend.RECIPE.partition("procreward: ")[2].split("; ")
    assert len(commands) == 7
    assert set(commands) <= said


def test_the_parts_of_observation_and_action() -> None:
    assert sum(length for _, length in STATE_PARTS) == 16
    assert [(key.removeprefix("action."), length) for key, length in ACTION_PARTS] == [
        ("end_effector_position", 3),
        ("end_effector_rotation", 3),
        ("gripper_close", 1),
        ("base_motion", 4),
        ("control_mode", 1),
    ]


def test_make_robocasa_passes_everything_on() -> None:
    with pytest.raises(ConfigError, match="`split` must be"):
        make_robocasa("OpenDrawer", split="test")


def test_actions_are_cut_in_the_documented_order() -> None:
    from procreward.envs.robocasa import _action_parts

    flat = np.linspace(-0.55, 0.55, 12).astype(np.float32)
    parts = _action_parts(flat)
    assert list(parts) == [key for key, _ in ACTION_PARTS]
    np.testing.assert_array_equal(np.concatenate(list(parts.values())), flat.astype(np.float64))
    assert _action_parts(np.full(12, 3.0))["action.base_motion"].tolist() == [1.0] * 4
    for wrong in (np.zeros(7), np.full(12, np.nan)):
        with pytest.raises(ConfigError, match=r"`action` must be \(12,\) finite numbers"):
            _action_parts(wrong)
