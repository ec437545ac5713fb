"""Put dense rewards into recorded datasets: ``procreward relabel``.

* :func:`relabel` - from a dataset to its rewards, resumable and crash-safe.
* :class:`RelabelConfig`, :class:`RelabelReport` - its settings, and what came of it.
* :func:`open_source` - read a dataset of any format.
* :class:`Source`, :class:`Writer`, :class:`Episode`, :class:`EpisodeLabels` - what a format is.
"""

from __future__ import annotations

from procreward.relabel.config import RelabelConfig
from procreward.relabel.episodes import Episode, EpisodeLabels, Source, Writer
from procreward.relabel.formats import open_source
from procreward.relabel.run import RelabelReport, relabel

__all__ = [
    "Episode",
    "EpisodeLabels",
    "RelabelConfig",
    "RelabelReport",
    "Source",
    "Writer",
    "open_source",
    "relabel",
]
