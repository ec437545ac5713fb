"""The pictures of recorded MuJoCo states, drawn by the simulator that recorded them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from procreward.errors import DatasetError, MissingDependencyError
from procreward.types import Frame

__all__ = ["StatePlayer", "cameras_in", "local_assets"]

_CAMERA: Final = re.compile(r"<camera\b[^>]*?\bname=\"([^\"]+)\"")
# Packages that a recorded model takes meshes and textures from.
_ASSET_PACKAGES: Final = ("robosuite", "robocasa", "robosuite_models", "mimicgen")


def cameras_in(model_xml: str) -> tuple[str, ...]:
    """Return the names of the cameras of a MuJoCo model, those that overlook the scene first."""
    names = dict.fromkeys(_CAMERA.findall(model_xml))
    return tuple(sorted(names, key=lambda name: "agentview" not in name))


def local_assets(model_xml: str) -> str:
    """Point the files that a model names to where they are on this machine.

    Args:
        model_xml: A MuJoCo model, with the paths of the machine that recorded it.

    Returns:
        The model with those paths replaced that lead into a package that is known here.

    Raises:
        DatasetError: If it is not XML.
        MissingDependencyError: If it takes files from a package that is not installed.
    """
    try:
        root = ElementTree.fromstring(model_xml)
    except ElementTree.ParseError as error:
        raise DatasetError(f"`model_file` must be a MuJoCo model in XML: {error}.") from error
    for element in root.findall("./asset/*[@file]"):
        element.set("file", _local_path(element.attrib["file"]))
    return ElementTree.tostring(root, encoding="unicode")


def _local_path(recorded: str) -> str:
    parts = recorded.replace("\\", "/").split("/")
    places = [place for place, part in enumerate(parts) if part in _ASSET_PACKAGES]
    if not places:
        return recorded
    package = parts[places[-1]]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            f"The recorded model takes {parts[-1]!r} from {package!r}, which is not installed. "
            f"Install {package}, or use a file with pictures in it."
        )
    return str(Path(next(iter(spec.submodule_search_locations)), *parts[places[-1] + 1 :]))


class StatePlayer:
    """Draws states of one model. Everything must happen on one thread.

    Args:
        model_xml: The model that was recorded, from any machine.
        cheap: Draw without multisampling, shadows and reflections, as the demo environments do.

    Raises:
        MissingDependencyError: If robosuite, its OpenGL library, or a package that the model takes
            meshes from is not installed.
        DatasetError: If the model cannot be built.
    """

    def __init__(self, model_xml: str, *, cheap: bool = True) -> None:
        from procreward.envs.robosuite_backend import SimRenderer, load_robosuite

        load_robosuite()
        from robosuite.utils.binding_utils import MjSim

        model_xml = local_assets(model_xml)
        try:
            self._sim: Any = MjSim.from_xml_string(model_xml)
        except ValueError as error:
            raise DatasetError(f"MuJoCo cannot build the recorded model: {error}.") from error
        self._renderer = SimRenderer(self._sim, cheap=cheap)
        self._cameras = frozenset(self._sim.model.camera_names)

    @property
    def state_size(self) -> int:
        """Numbers in a state: time, positions and velocities."""
        return 1 + int(self._sim.model.nq) + int(self._sim.model.nv)

    def draw(
        self,
        state: npt.NDArray[np.float64],
        cameras: Sequence[str],
        size: tuple[int, int],
    ) -> Mapping[str, Frame]:
        """Draw one state.

        Args:
            state: ``(state_size,) float64``.
            cameras: Cameras of the model.
            size: ``(width, height)`` in pixels.

        Returns:
            Camera to upright RGB picture, ``(height, width, 3) uint8``.

        Raises:
            DatasetError: If the model has no such camera, or the state is of another model.
            FrameError: If called on another thread than before.
        """
        missing = [camera for camera in cameras if camera not in self._cameras]
        if missing:
            raise DatasetError(f"The recorded model has no camera {missing[0]!r}.")
        if state.shape != (self.state_size,) or not np.isfinite(state).all():
            raise DatasetError(
                f"A state must be {self.state_size} finite numbers (time, positions, velocities "
                f"of the recorded model), got shape {state.shape}."
            )
        self._sim.set_state_from_flattened(state)
        self._sim.forward()
        return {camera: self._renderer.render(camera, *size) for camera in cameras}

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()
