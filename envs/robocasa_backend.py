"""Everything that touches RoboCasa's import and the making of its kitchens, in one place.

RoboCasa is on no package index and its pins cannot live beside ours, so much can be missing. What
is, and how to get it, is said here.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym

from procreward.envs.robosuite_backend import load_robosuite
from procreward.errors import ConfigError, MissingDependencyError, UnknownNameError

__all__ = [
    "RECIPE",
    "building_kitchen",
    "check_split",
    "load_robocasa",
    "make_kitchen",
    "task_horizon",
]

logger = logging.getLogger(__name__)

SPLITS = ("pretrain", "target", "all", None)
ROBOSUITE_COMMIT = "aaa8b9b214ce8e77e82926d677b4d61d55e577ab"
RECIPE = (
    "In an environment of its own, from a checkout of procreward: "
    "pip install numpy==2.2.5 mujoco==3.3.1 numba==0.61.2 scipy==1.15.3 opencv-python-headless "
    'lxml h5py termcolor pynput ".[train]"; '
    "git clone https://github.com/ARISE-Initiative/robosuite; "
    f"git -C robosuite checkout {ROBOSUITE_COMMIT}; "
    "git clone https://github.com/robocasa/robocasa; "
    "pip install --no-deps -e ./robosuite -e ./robocasa; "
    "python -m robocasa.scripts.setup_macros; "
    "python -m robocasa.scripts.download_kitchen_assets"
)
"""How to install RoboCasa, in commands; ``--no-deps`` because its pins exclude ours."""

_ASSETS = "about 10 GB; get them with: python -m robocasa.scripts.download_kitchen_assets"
_SCENE_SETTINGS = ("layout_and_style_ids", "layout_ids", "style_ids", "obj_instance_split")
_OURS = ("env_name", "split", "enable_render", "camera_names", "camera_widths", "camera_heights")


def check_split(split: object, kitchen: Mapping[str, Any]) -> None:
    """Refuse a split that RoboCasa cannot make, and settings that it would silently ignore.

    Args:
        split: Which scenes and objects; one of ``"pretrain"``, ``"target"``, ``"all"`` and None.
        kitchen: RoboCasa's own settings.

    Raises:
        ConfigError: If it is none of them, or settings contradict it.
    """
    if split == "test":
        raise ConfigError(
            "`split` must be 'pretrain', 'target', 'all' or None, got 'test': it is the default of "
            "RoboCasa's own environments, but RoboCasa itself refuses it."
        )
    if split not in SPLITS:
        raise ConfigError(f"`split` must be 'pretrain', 'target', 'all' or None, got {split!r}.")
    ours = [name for name in kitchen if name in _OURS]
    if ours:
        raise ConfigError(
            f"`kitchen` must not hold {', '.join(ours)}: the environment sets them. It takes "
            "`task`, `split`, `images`, `width` and `height` by themselves."
        )
    lost = [name for name in kitchen if name in _SCENE_SETTINGS]
    if lost and split is not None:
        raise ConfigError(
            f"`split` must be None where `kitchen` holds {', '.join(lost)}, got {split!r}: "
            "RoboCasa would take those of the split."
        )


def load_robocasa() -> Any:
    """Import RoboCasa with its console notes silenced and return the module.

    Raises:
        MissingDependencyError: If it or what it needs is missing, shadowed by a folder or of a
            version that does not work.
    """
    found = importlib.util.find_spec("robocasa")
    if found is None:
        raise MissingDependencyError(f"RoboCasa is not installed. {RECIPE}")
    if found.origin is None:
        folders = ", ".join(map(repr, found.submodule_search_locations or ()))
        raise MissingDependencyError(
            f"The folder {folders} shadows the package `robocasa`: it holds the clone, not the "
            "package. Run Python from another folder than the one that the clone is in."
        )
    if importlib.util.find_spec("robosuite") is None:
        raise MissingDependencyError(f"RoboCasa needs robosuite. {RECIPE}")
    load_robosuite()
    try:
        with _quiet():
            return importlib.import_module("robocasa")
    except (ImportError, AssertionError) as error:
        # It asserts the versions of MuJoCo and NumPy.
        raise MissingDependencyError(
            f"RoboCasa could not be imported ({type(error).__name__}: {error}). {RECIPE}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what RoboCasa prints for the log, and its use of deprecated functions to itself."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for line in said.getvalue().splitlines():
            logger.debug("robocasa: %s", line)


def task_horizon(task: str) -> int | None:
    """Return a task's horizon in steps as RoboCasa's registry has it, or None if it has none.

    Args:
        task: Name of a task.
    """
    module = importlib.import_module("robocasa.utils.dataset_registry_utils")
    try:
        return int(module.get_task_horizon(task))
    except ValueError:
        return None


def _check_task(task: str) -> None:
    tasks = importlib.import_module("robocasa.environments").ALL_KITCHEN_ENVIRONMENTS
    if task in tasks:
        return
    atomic = importlib.import_module("robocasa.utils.dataset_registry").ATOMIC_TASK_DATASETS
    # Of some 370 tasks, those that may be meant, and the short list.
    close = difflib.get_close_matches(task, tasks, n=5)
    raise UnknownNameError("RoboCasa task", task, {*close, *atomic})


def make_kitchen(task: str, *, split: str | None, kitchen: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """Make RoboCasa's own Gymnasium environment of a task, unmodified.

    Args:
        task: Name of a task, such as "OpenDrawer".
        split: Which scenes and objects.
        kitchen: Further settings of RoboCasa's own.

    Returns:
        The environment ``robocasa/<task>``; its pictures are black.

    Raises:
        UnknownNameError: If there is no such task.
        MissingDependencyError: If RoboCasa, the assets or a working robosuite are missing.
    """
    load_robocasa()
    _check_task(task)
    with building_kitchen():
        return gym.make(
            f"robocasa/{task}",
            split=split,
            enable_render=False,
            # Its observations lie outside the spaces that it declares.
            disable_env_checker=True,
            **kitchen,
        )


@contextlib.contextmanager
def building_kitchen() -> Iterator[None]:
    """Say what is missing if a kitchen cannot be built inside the block.

    Raises:
        MissingDependencyError: If assets or a working robosuite are missing.
    """
    try:
        with _quiet():
            yield
    except Exception as error:  # of many kinds, from RoboCasa, robosuite and MuJoCo
        reason = _missing_part(error)
        if reason is None:
            raise
        raise MissingDependencyError(reason) from error


def _missing_part(error: Exception) -> str | None:
    """Say what is missing if that is what an exception comes down to."""
    text = f"{type(error).__name__}: {error}"
    if "load_model_on_init" in text:
        version = importlib.import_module("robosuite").__version__
        return (
            f"RoboCasa needs robosuite's main branch; robosuite {version} lacks "
            "`load_model_on_init`, as the release 1.5.2 on PyPI does: "
            "git clone https://github.com/ARISE-Initiative/robosuite; "
            f"git -C robosuite checkout {ROBOSUITE_COMMIT}; pip install --no-deps -e ./robosuite"
        )
    root = Path(importlib.import_module("robocasa.models").assets_root)
    if str(root) in text:
        return f"RoboCasa's assets are missing from {str(root)!r} ({text[:300]}): {_ASSETS}"
    if "robabilities contain NaN" in text:  # none of an object's models is there to choose from
        return f"RoboCasa's objects are missing from {str(root / 'objects')!r}: {_ASSETS}"
    return None
