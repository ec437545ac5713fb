"""Put dense rewards into recorded datasets."""

from __future__ import annotations

from procreward.relabel.episodes import Episode, EpisodeLabels, Source, Writer
from procreward.relabel.formats import open_source

__all__ = ["Episode", "EpisodeLabels", "Source", "Writer", "open_source"]
