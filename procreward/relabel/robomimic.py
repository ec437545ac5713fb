"""robomimic's HDF5 files: ``data/demo_N`` with actions, rewards, states and pictures.

Rewards are already of ``(s_t, a_t, s_{t+1})``: robomimic's own converter pays for the state that an
action leads to. The state after the last action is in ``next_obs``, where a file has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from procreward.checks import check_names, is_number
from procreward.errors import DatasetError
from procreward.relabel._hdf5 import instruction_in, last_value, opened, pictures
from procreward.relabel._robomimic_render import StatePlayer, cameras_in
from procreward.relabel._robomimic_writer import RobomimicWriter
from procreward.relabel.episodes import Episode
from procreward.types import Frame

__all__ = ["RobomimicSource", "RobomimicWriter"]

_DEMO: Final = re.compile(r"demo_(\d+)")
# Of pictures that are drawn from states, where the file does not say.
_DRAWN_PIXELS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demo:
    """A demo as it lies in the file: its own pictures, and whether they go on in ``next_obs``."""

    name: str
    length: int
    pictures: tuple[str, ...]
    has_next: bool
    states: int


class RobomimicSource:
    """A robomimic file, such as robosuite's, MimicGen's or RoboCasa's demos.

    The views are the cameras: keys of ``obs`` that hold ``(n, height, width, 3) uint8``, without
    the ``_image`` at their end (LIBERO's keep their ``_rgb``). A file without any is drawn from its
    ``states`` by robosuite; then the views are the cameras of the recorded model.

    A demo counts as terminated if its last reward is at least 1, which robosuite pays in a
    successful state; or if its last ``dones`` is set, as long as that of another demo is not (files
    that set it at every end say nothing by it) or there are no rewards.

    Attributes:
        format: ``"robomimic"``.
        root: The file.
        views: Names of the cameras.
        episodes: The demos by the number in their name, which is their index.
        masks: robomimic's filter keys: name to names of demos.
        background: Whether pictures may be read on any thread; those that OpenGL draws may not.
        upside_down: Whether the file says that its pictures are, as LIBERO's do.
    """

    format = "robomimic"

    def __init__(self, path: Path) -> None:
        """Read the metadata of a file.

        Args:
            path: The file.

        Raises:
            DatasetError: If it is no whole robomimic file, its arrays differ in length, demos have
                different pictures, or a filter key names a demo that is not there.
            MissingDependencyError: If h5py is not installed.
        """
        self.root = Path(path)
        with opened(self.root) as file:
            data = self._data(file)
            described = _json_attribute(data.attrs, "env_args", self.root)
            # As robosuite's own script records demos.
            described = described or {
                "env_kwargs": _json_attribute(data.attrs, "env_info", self.root)
            }
            task = _task(data, described, self.root)
            names = self._demo_names(data)
            demos = [self._demo(data[name], name) for name in names]
            self._keys = _cameras_of(self._common_pictures(demos))
            ends = _successful_ends(data, names)
            self.masks = self._read_masks(file, names)
            self.background = bool(self._keys)
            convention = _text(data.attrs.get("macros_image_convention", ""))
            self.upside_down = self.background and convention == "opengl"
            self.views = tuple(self._keys) or self._cameras(data, demos, described)
            self.episodes = tuple(
                self._episode(data[demo.name], demo, described, task, ends[demo.name])
                for demo in demos
            )
        self._size = _drawn_size(described)
        stat = self.root.stat()
        self._stamp = (stat.st_size, stat.st_mtime_ns)

    def fingerprint(self, episode: Episode) -> str:
        """Return a text that changes when the file, the demo's extent or its instruction do."""
        place = (episode.name, episode.length, episode.frames, episode.instruction)
        drawn = None if self.background else self._size
        return json.dumps([*self._stamp, *place, drawn])

    def frames(self, episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        """Yield the pictures of a demo in order, from the file or drawn from its states.

        Args:
            episode: One of :attr:`episodes`.
            views: Which, of :attr:`views`.

        Yields:
            View to RGB picture, ``(height, width, 3) uint8``, as it is in the file.

        Raises:
            UnknownNameError: If there is no such view.
            DatasetError: If the file is damaged there, or a state is not one of the model.
            MissingDependencyError: If pictures are to be drawn and robosuite is not installed.
            FrameError: If pictures are drawn on two threads.
        """
        check_names("view", views, self.views)
        with opened(self.root) as file:
            demo = file["data"][episode.name]
            if self.background:
                yield from self._stored(demo, episode, views)
            else:
                yield from self._drawn(demo, episode, views)

    def _stored(
        self, demo: Any, episode: Episode, views: Sequence[str]
    ) -> Iterator[Mapping[str, Frame]]:
        keys = [self._keys[view] for view in views]
        runs = [
            pictures(demo["obs"][key], episode.length, self._where(episode.name, f"obs/{key}"))
            for key in keys
        ]
        for frames in zip(*runs, strict=True):
            yield dict(zip(views, frames, strict=True))
        if episode.frames > episode.length:
            try:
                yield {view: demo["next_obs"][self._keys[view]][-1] for view in views}
            except (OSError, RuntimeError) as error:
                where = self._where(episode.name, "next_obs")
                raise DatasetError(f"{where} is damaged at its end: {error}.") from error

    def _drawn(
        self, demo: Any, episode: Episode, views: Sequence[str]
    ) -> Iterator[Mapping[str, Frame]]:
        try:
            player = StatePlayer(_text(demo.attrs["model_file"]))
        except DatasetError as error:
            raise DatasetError(f"{self._where(episode.name)}: {error}") from error
        try:
            for state in demo["states"][: episode.frames]:
                try:
                    yield player.draw(state, views, self._size)
                except DatasetError as error:
                    raise DatasetError(f"{self._where(episode.name)}: {error}") from error
        finally:
            player.close()

    def _where(self, name: str, inside: str = "") -> str:
        return f"{str(self.root)!r}, {name}" + (f", {inside}" if inside else "")

    def _data(self, file: Any) -> Any:
        if "data" not in file or not len(file["data"]):
            raise DatasetError(
                f"{str(self.root)!r} must be a robomimic file, with a group `data` of demos."
            )
        return file["data"]

    def _demo_names(self, data: Any) -> list[str]:
        numbers = {}
        for name in data:
            found = _DEMO.fullmatch(name)
            if found is None:
                raise DatasetError(
                    f"{str(self.root)!r} must have groups `demo_0`, `demo_1`, ... in `data`, got "
                    f"{name!r}."
                )
            numbers[name] = int(found[1])
        return sorted(numbers, key=numbers.__getitem__)

    def _demo(self, group: Any, name: str) -> _Demo:
        if "actions" not in group or not len(group["actions"]):
            raise DatasetError(f"{self._where(name)} must have `actions`, at least one of them.")
        length = len(group["actions"])
        stated = int(group.attrs.get("num_samples", length))
        lengths = {"num_samples": stated}
        lengths |= {key: len(group[key]) for key in ("rewards", "dones") if key in group}
        obs = group.get("obs", {})
        found = tuple(key for key in sorted(obs) if _is_pictures(obs[key]))
        after = group.get("next_obs", {})
        for side, part in (("obs", obs), ("next_obs", after)):
            lengths |= {f"{side}/{key}": len(part[key]) for key in part if _is_array(part[key])}
        for key, count in lengths.items():
            if count != length:
                raise DatasetError(
                    f"{self._where(name, key)} must have {length} rows, as many as there are "
                    f"actions, got {count}."
                )
        has_next = all(key in after and _is_pictures(after[key]) for key in found)
        states = len(group["states"]) if "states" in group else 0
        return _Demo(name=name, length=length, pictures=found, has_next=has_next, states=states)

    def _common_pictures(self, demos: Sequence[_Demo]) -> tuple[str, ...]:
        every = dict.fromkeys(key for demo in demos for key in demo.pictures)
        for demo in demos:
            for key in every:
                if key not in demo.pictures:
                    raise DatasetError(
                        f"{self._where(demo.name)} must have the pictures `obs/{key}`, as other "
                        "demos of the file do."
                    )
        return tuple(every)

    def _cameras(
        self, data: Any, demos: Sequence[_Demo], described: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """The cameras that a file without pictures can be drawn from, its own choice first."""
        for demo in demos:
            if "model_file" not in data[demo.name].attrs or demo.states < demo.length:
                raise DatasetError(
                    f"{self._where(demo.name)} has no pictures in `obs`, and to draw them it must "
                    f"have `model_file` and {demo.length} `states`. Make a file with pictures with "
                    "robomimic's dataset_states_to_obs.py."
                )
        known = cameras_in(_text(data[demos[0].name].attrs["model_file"]))
        declared = _env_kwargs(described).get("camera_names") or ()
        declared = (declared,) if isinstance(declared, str) else tuple(declared)
        return tuple(dict.fromkeys([*(camera for camera in declared if camera in known), *known]))

    def _episode(
        self, group: Any, demo: _Demo, described: Mapping[str, Any], task: str, success: bool
    ) -> Episode:
        more = demo.has_next if demo.pictures else demo.states > demo.length
        own = _json_attribute(group.attrs, "ep_meta", self.root)
        rate: Any = _env_kwargs(described).get("control_freq")
        return Episode(
            index=int(demo.name.removeprefix("demo_")),
            name=demo.name,
            length=demo.length,
            frames=demo.length + more,
            instruction=instruction_in(own) or task,
            terminated=success,
            fps=float(rate) if is_number(rate) and rate > 0 else None,
        )

    def _read_masks(self, file: Any, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        masks = {
            key: tuple(_text(name) for name in file["mask"][key][()])
            for key in file.get("mask", {})
        }
        for key, listed in masks.items():
            for name in listed:
                if name not in names:
                    raise DatasetError(
                        f"{str(self.root)!r}: the filter key `mask/{key}` names {name!r}, which is "
                        "not in `data`."
                    )
        return masks


def _cameras_of(keys: Sequence[str]) -> dict[str, str]:
    """Return camera to key; the keys themselves where two are of one camera."""
    named = {key.removesuffix("_image"): key for key in keys}
    return named if len(named) == len(keys) else {key: key for key in keys}


def _is_array(member: Any) -> bool:
    return bool(getattr(member, "shape", ()))


def _is_pictures(dataset: Any) -> bool:
    shape: tuple[int, ...] = getattr(dataset, "shape", ())
    return len(shape) == 4 and shape[-1] == 3 and dataset.dtype == "uint8"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _json_attribute(attributes: Any, name: str, path: Path) -> dict[str, Any]:
    """Return an attribute that is a JSON object; empty where there is none."""
    if name not in attributes:
        return {}
    try:
        value = json.loads(_text(attributes[name]))
    except ValueError as error:
        raise DatasetError(f"{str(path)!r}: the attribute `{name}` is no JSON: {error}.") from error
    return value if isinstance(value, dict) else {}


def _env_kwargs(described: Mapping[str, Any]) -> Mapping[str, Any]:
    kwargs = described.get("env_kwargs")
    return kwargs if isinstance(kwargs, Mapping) else {}


def _task(data: Any, described: Mapping[str, Any], path: Path) -> str:
    """The task in words that all demos share, else the empty text."""
    # LIBERO's, in the quotes of its task files where they have some.
    problem = instruction_in(_json_attribute(data.attrs, "problem_info", path)).strip('"')
    return instruction_in(described) or instruction_in(_env_kwargs(described)) or problem


def _successful_ends(data: Any, names: Sequence[str]) -> dict[str, bool]:
    rewards, dones = {}, {}
    for name in names:
        demo = data[name]
        # What the environment paid, where the file was relabelled before.
        key = "rewards_env" if "rewards_env" in demo else "rewards"
        if key in demo:
            rewards[name] = last_value(demo[key])
        if "dones" in demo:
            dones[name] = last_value(demo["dones"]) != 0
    tells = not all(dones.values())
    return {
        name: rewards.get(name, 0.0) >= 1.0
        or (dones.get(name, False) and (tells or name not in rewards))
        for name in names
    }


def _drawn_size(described: Mapping[str, Any]) -> tuple[int, int]:
    kwargs = _env_kwargs(described)

    def pixels(key: str) -> int:
        value = kwargs.get(key, _DRAWN_PIXELS)
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) and value > 0 else _DRAWN_PIXELS

    return pixels("camera_widths"), pixels("camera_heights")
