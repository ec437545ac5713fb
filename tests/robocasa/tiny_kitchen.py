"""A tiny kitchen, not a benchmark scene: what RoboCasa needs to run without its 10 GB of assets.

Three things stand in for what is not here; all else (environments, robot, cameras, language,
success checks, Gymnasium wrapper) is RoboCasa's own, unmodified:

* an assets folder with RoboCasa's own small files, one layout and one style of ours under all of
  their numbers, placeholder textures and one object (:func:`write_assets`);
* the object table, of which every group is that one object (:func:`only_apples`);
* what RoboCasa needs of robosuite's main branch and 1.5.2 from PyPI lacks (:func:`shim_robosuite`).
  The mobile base runs on another controller than it should, so its motion is not faithful.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

OURS = Path(__file__).parent / "assets"
TEXTURES = {
    "bricks/white_bricks": (226, 221, 214),
    "flat/white": (240, 240, 240),
    "metals/bright_metal": (150, 155, 160),
    "wood/gray_wood_planks": (128, 118, 108),
    "wood/light_wood_planks": (190, 150, 104),
}
ENTRIES = ("default", "white", "shaker")  # of the registries of fixtures, those of our style
LAYOUTS = range(1, 61)


def write_assets(folder: Path) -> Path:
    """Write the assets folder; RoboCasa must not have been imported yet."""
    package = importlib.util.find_spec("robocasa")
    assert package is not None
    assert package.submodule_search_locations
    shipped = Path(package.submodule_search_locations[0]) / "models" / "assets"
    for name in ("arenas", "fixtures", "box_links", "novel_instructions"):
        shutil.copytree(shipped / name, folder / name)
    for place in (folder / "fixtures" / "fixture_registry").glob("*.yaml"):
        # Read anew for every fixture of every kitchen, and long.
        entries = yaml.safe_load(place.read_text()) or {}
        kept = {name: entries[name] for name in ENTRIES if name in entries}
        place.write_text(yaml.safe_dump(kept))
    for kind in ("layout", "style"):
        for number in LAYOUTS:
            half = "test" if number <= 10 else "train"
            place = folder / "scenes" / f"kitchen_{kind}s" / half / f"{kind}{number:03d}.yaml"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(OURS / f"{kind}.yaml", place)
    for name, colour in TEXTURES.items():
        _write_texture(folder / "textures" / f"{name}.png", colour)
    for number in range(2):  # one for the split "pretrain", one for "target"
        place = folder / "objects" / "objaverse" / "apple" / f"apple_{number}" / "model.xml"
        place.parent.mkdir(parents=True)
        shutil.copy(OURS / "apple.xml", place)
    return folder


def _write_texture(path: Path, colour: tuple[int, int, int]) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    checks = (np.indices((8, 8)).sum(axis=0) // 4 % 2)[..., None] * 12
    Image.fromarray((np.array(colour) - checks).astype(np.uint8)).save(path)


def set_up(folder: Path) -> None:
    """Point RoboCasa at the assets, import it and let it run on robosuite 1.5.2."""
    os.environ["ROBOCASA_ASSETS_PATH"] = str(folder)
    from procreward.envs.robocasa_backend import load_robocasa

    load_robocasa()
    shim_robosuite()
    only_apples()


def only_apples() -> None:
    """Let every group of objects be the one that there is."""
    from robocasa.models.objects.kitchen_objects import OBJ_GROUPS

    for group in OBJ_GROUPS:
        OBJ_GROUPS[group] = ["apple"]


def shim_robosuite() -> None:
    """Add to robosuite 1.5.2 what RoboCasa asks for and only robosuite's main branch has."""
    from robosuite.controllers.parts import controller_factory
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
    from robosuite.models.tasks import ManipulationTask

    _take_load_model_on_init(ManipulationEnv)
    _drop_keywords(ManipulationTask, "enable_multiccd", "enable_sleeping_islands")
    base = controller_factory.mobile_base_controller_factory

    def factory(name: str, params: dict[str, Any]) -> Any:
        return base(name.removesuffix("_LEGACY"), params)

    controller_factory.mobile_base_controller_factory = factory


def _take_load_model_on_init(cls: type[Any]) -> None:
    """Leave the building of the first scene to the first reset where that is asked for."""
    init = cls.__init__
    building = (
        "_load_model",
        "_initialize_sim",
        "initialize_renderer",
        "_reset_internal",
        "_setup_observables",
    )

    @functools.wraps(init)
    def unbuilt(self: Any, *args: Any, load_model_on_init: bool = True, **kwargs: Any) -> None:
        skipped = () if load_model_on_init else building
        for name in skipped:
            setattr(self, name, dict)
        init(self, *args, **kwargs)
        for name in skipped:
            delattr(self, name)

    cls.__init__ = unbuilt


def _drop_keywords(cls: type[Any], *names: str) -> None:
    init = cls.__init__

    @functools.wraps(init)
    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in names:
            kwargs.pop(name, None)
        init(self, *args, **kwargs)

    cls.__init__ = without


def make_in_worker(folder: str, **settings: Any) -> Any:
    """Make an environment in a process of its own, where nothing has been set up yet."""
    set_up(Path(folder))
    from procreward.envs.robocasa import make_robocasa

    return make_robocasa(**settings)
