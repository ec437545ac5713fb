"""Minari datasets: episodes of T actions and T + 1 observations, some of them pictures.

The last observation is the state after the last action, so that the potential of the end is that
of a picture of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from procreward.checks import check_names
from procreward.errors import DatasetError
from procreward.relabel._hdf5 import instruction_in
from procreward.relabel._minari_storage import leaves_of, open_storage, read_metadata
from procreward.relabel._minari_writer import MinariWriter
from procreward.relabel.episodes import Episode
from procreward.types import Frame

__all__ = ["MinariSource", "MinariWriter"]


class MinariSource:
    """A Minari dataset: the folder that ``MINARI_DATASETS_PATH/<dataset id>`` is.

    The views are the parts of the observation that are ``(height, width, 3) uint8``: the keys of a
    Dict space (joined by ``/`` where they are nested), or ``"observation"`` where the whole
    observation is a picture. The task in words is taken from the episode's metadata, its
    observation or its infos, else from the dataset's metadata, under ``instruction``, ``lang``,
    ``language_instruction``, ``mission`` or ``prompt``.

    Attributes:
        format: ``"minari"``.
        root: The folder.
        dataset_id: Minari's id of it.
        views: Names of the pictures.
        episodes: All episodes, by Minari's id of them.
    """

    format = "minari"

    def __init__(self, path: Path) -> None:
        """Read the metadata of a dataset.

        Args:
            path: Its folder, with ``data/metadata.json`` in it.

        Raises:
            DatasetError: If it is no whole Minari dataset, its observations have no pictures, or
                its arrays differ in length.
            MissingDependencyError: If h5py or pyarrow is needed and not installed.
        """
        self.root = Path(path)
        metadata = read_metadata(self.root)
        self.dataset_id: str = metadata["dataset_id"]
        try:
            leaves = tuple(leaves_of(json.loads(metadata["observation_space"])))
        except (ValueError, AttributeError) as error:
            raise DatasetError(
                f"{str(self.root)!r} must describe its `observation_space`: {error}."
            ) from error
        self._pictures = {leaf.name: leaf for leaf in leaves if leaf.is_picture}
        if not self._pictures:
            raise DatasetError(
                f"{str(self.root)!r} must have pictures in its observations (Box spaces of shape "
                f"(height, width, 3) uint8), got {', '.join(leaf.name for leaf in leaves)}. Record "
                "it with a wrapper that adds them, such as AddRenderObservation."
            )
        self.views = tuple(self._pictures)
        self._storage = open_storage(self.root, metadata)
        read = [leaf for leaf in leaves if leaf.is_picture or leaf.is_instruction]
        general = instruction_in(metadata)
        found = [self._storage.describe(i, read) for i in range(metadata["total_episodes"])]
        self.episodes = tuple(
            Episode(
                index=index,
                name=f"episode_{index:06d}",
                length=one.length,
                frames=one.length + 1,
                instruction=one.instruction or general,
                terminated=one.terminated,
                fps=None,
            )
            for index, one in enumerate(found)
        )
        if not self.episodes:
            raise DatasetError(f"{str(self.root)!r} must have episodes, got none.")

    def fingerprint(self, episode: Episode) -> str:
        """Return a text that changes when the episode's file, extent or instruction does."""
        data = self.root / "data"
        folder = data / str(episode.index)
        files = sorted((folder if folder.is_dir() else data).glob("*.*"))
        stamps = [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
            if file.suffix != ".json"
        ]
        return json.dumps([stamps, episode.name, episode.length, episode.instruction])

    def frames(self, episode: Episode, views: Sequence[str]) -> Iterator[Mapping[str, Frame]]:
        """Yield the pictures of an episode in order.

        Args:
            episode: One of :attr:`episodes`.
            views: Which, of :attr:`views`.

        Yields:
            View to RGB picture, ``(height, width, 3) uint8``.

        Raises:
            UnknownNameError: If there is no such view.
            DatasetError: If a file is damaged there.
        """
        check_names("view", views, self.views)
        yield from self._storage.frames(episode.index, [self._pictures[view] for view in views])
