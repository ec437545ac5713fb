"""Write datasets and relabel them: ``python -m scripts.verify_hdf5 (write|relabel) FOLDER``.

Rewards are drawn, not scored: what is verified is where they end up.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from procreward.relabel.episodes import Episode, EpisodeLabels, Source, Writer
from procreward.relabel.formats import open_source, open_writer
from scripts.sample_data.episodes import draw_episodes
from scripts.sample_data.minari import write_minari
from scripts.sample_data.robomimic import write_robomimic

# Episodes of which labels are given; the rest is left out.
SOME = (0, 2)


def write(folder: Path) -> None:
    """Write the samples."""
    episodes = draw_episodes()
    write_robomimic(episodes, folder / "robomimic.hdf5")
    for kind in ("hdf5", "arrow", "parquet"):
        for jpeg in (True, False):
            name = f"ours-{kind}-{'jpeg' if jpeg else 'raw'}-v0"
            path = folder / "minari" / "verify" / name
            write_minari(episodes, path, kind=kind, jpeg=jpeg, dataset_id=f"verify/{name}")


def relabel(folder: Path) -> None:
    """Relabel the samples, and what Minari wrote itself; note what must be read back."""
    expected: dict[str, list[dict[str, object]]] = {}
    for part, chosen in (("all", None), ("some", SOME)):
        source = open_source(folder / "robomimic.hdf5")
        staged = folder / f"relabelled-{part}"
        staged.mkdir()
        expected[f"{staged.name}/robomimic.hdf5"] = _rewrite(
            source, open_writer("robomimic"), staged, chosen
        )
    minari = folder / "minari"
    for path in sorted((minari / "verify").glob("*-v0")):
        source = open_source(path)
        for part, chosen in (("all", None), ("some", SOME)):
            new = f"verify/{path.name.removesuffix('-v0')}-{part}-v0"
            writer = open_writer("minari", {"dataset_id": new})
            expected[new] = _rewrite(source, writer, minari, chosen)
    (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _rewrite(
    source: Source, writer: Writer, staged: Path, chosen: tuple[int, ...] | None
) -> list[dict[str, object]]:
    labels = [
        _draw(episode)
        for place, episode in enumerate(source.episodes)
        if chosen is None or place in chosen
    ]
    writer.write(source, labels, staged, {"scorer": "drawn"})
    writer.validate(source, staged)
    return [
        {
            "source": one.episode.index,
            "name": one.episode.name,
            "rewards": one.reward.tolist(),
            "progress": one.progress.tolist(),
            "complete": one.complete.tolist(),
        }
        for one in labels
    ]


def _draw(episode: Episode) -> EpisodeLabels:
    rng = np.random.default_rng(episode.index)
    seen = episode.frames
    return EpisodeLabels(
        episode=episode,
        reward=rng.normal(size=episode.length),
        potential=rng.random(episode.length + 1),
        progress=rng.random(seen),
        success_prob=rng.random(seen),
        complete=rng.random(seen) > 0.5,
        queried=np.ones(seen, np.bool_),
        valid=np.ones(seen, np.bool_),
        text=("",) * seen,
        terminated=episode.terminated,
    )


if __name__ == "__main__":
    {"write": write, "relabel": relabel}[sys.argv[1]](Path(sys.argv[2]))
