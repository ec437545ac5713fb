from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from procreward import registry
from procreward.config import ScorerConfig
from procreward.errors import ConfigError, UnknownNameError
from procreward.plan import StreamPlan
from procreward.relabel import RelabelConfig, relabel
from procreward.relabel.formats import open_source
from procreward.relabel.showing import Showing, find_view
from procreward.report.pictures import find_pictures
from procreward.report.runs import open_run
from procreward.types import Query, Score
from scripts.sample_data.episodes import draw_episodes
from scripts.sample_data.robomimic import write_robomimic
from tests.relabel.scorers import Grey

THERE = ("observation.images.front", "observation.images.wrist", "robot0_agentview_left")


class Rows(Grey):
    """Progress tells the top of a picture from its bottom."""

    @classmethod
    def from_config(cls, config: ScorerConfig) -> Rows:
        return cls()

    def _answer(self, query: Query) -> Score:
        picture = next(iter(query.frames.values()))[-1].astype(float)
        weights = np.linspace(0.0, 1.0, len(picture))[:, None, None]
        return Score(progress=float((picture * weights).mean()) / 255.0)


registry.register_scorer("rows", "tests.relabel.test_showing:Rows")


def showing(*views: str, judge: str | None = None) -> list[tuple[str, str]]:
    config = RelabelConfig(source=Path("a"), out=Path("b"), scorer="grey", judge=judge)
    plan = StreamPlan.from_config(config.reward_config())
    there = (*THERE, "robot0_agentview_right")
    return [(one.name, one.view) for one in Showing.of(plan, there, views).shown]


def test_a_view_that_is_turned_has_the_name_of_the_view() -> None:
    assert find_view("flip:front", THERE) == "flip:observation.images.front"
    assert showing("flip:front", "wrist") == [
        ("observation.images.front", "flip:observation.images.front"),
        ("observation.images.wrist", "observation.images.wrist"),
    ]
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    config = RelabelConfig(source=Path("a"), out=Path("b"), scorer="grey", window_frames=1)
    plan = StreamPlan.from_config(config.reward_config())
    turned = Showing.of(plan, THERE, ("flip:front",))
    assert turned.views == ("observation.images.front",)
    shown = next(turned.show([{"observation.images.front": picture}]))
    assert shown["observation.images.front"].tolist() == [picture[1].tolist(), picture[0].tolist()]


def test_a_view_that_is_turned_is_so_for_a_judge_that_names_it() -> None:
    left, right = "robot0_agentview_left", "robot0_agentview_right"
    assert showing(f"flip:{left}", judge="robocasa-judge") == [
        (f"scorer:{left}", f"flip:{left}"),
        (f"judge:{right}", right),
        (f"judge:{left}", f"flip:{left}"),
    ]


def test_an_unknown_view_is_named_without_the_word_before_it() -> None:
    for name in ("frnot", "flip:frnot"):
        with pytest.raises(UnknownNameError, match="Unknown view 'frnot'"):
            showing(name)
    for name, unknown in (("flip:", ""), ("flip:flip:front", "flip:front")):
        with pytest.raises(UnknownNameError, match=f"Unknown view '{unknown}'"):
            showing(name)


def test_a_view_is_named_once() -> None:
    with pytest.raises(ConfigError, match=r"`views` must name .* got '.*images\.front' twice"):
        showing("flip:front", "observation.images.front")


def upside_down(source: Path, to: Path) -> Path:
    """The same robomimic file with all of its pictures upside down."""
    to.write_bytes(source.read_bytes())
    with h5py.File(to, "r+") as file:
        for demo in file["data"].values():
            for part in (demo["obs"], demo["next_obs"]):
                for key in (key for key in part if key.endswith("_image")):
                    part[key][...] = part[key][()][:, ::-1]
    return to


def run(source: Path, out: Path, *views: str, **changes: Any) -> tuple[list[str], list[Any]]:
    """What was said, and the readings, without what tells the files apart."""
    said: list[str] = []
    settings: dict[str, Any] = {"scorer": "rows", "every_k_frames": 2, "window_frames": 2}
    config = RelabelConfig(source=source, out=out, views=views, **(settings | changes))
    relabel(config, said.append)
    lines = [
        {key: value for key, value in json.loads(line).items() if key != "fingerprint"}
        for path in sorted((out / "cache").glob("*/every-*/*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return said, lines


def test_a_file_that_is_upside_down_gives_the_readings_of_the_upright_one(tmp_path: Path) -> None:
    write_robomimic(draw_episodes((4, 7)), tmp_path / "up.hdf5")
    lying = upside_down(tmp_path / "up.hdf5", tmp_path / "down.hdf5")
    before = lying.read_bytes()
    sizes: tuple[dict[str, Any], ...] = ({}, {"frame_size": (32, 24)})
    for kept, size in enumerate(sizes):
        _, expected = run(tmp_path / "up.hdf5", tmp_path / f"up{kept}", "agentview", **size)
        _, as_stored = run(lying, tmp_path / f"stored{kept}", "agentview", **size)
        out = tmp_path / f"turned{kept}"
        _, turned = run(lying, out, "flip:agentview", rewrite=True, **size)
        assert turned == expected != as_stored
        labels = [
            (folder / "episodes.jsonl").read_text() for folder in (out, tmp_path / f"up{kept}")
        ]
        assert labels[0].replace("down.hdf5", "up.hdf5") == labels[1]
    # The new dataset has the pictures of the old one, which is what it was.
    assert lying.read_bytes() == before
    old, new = open_source(lying), open_source(tmp_path / "turned0" / "dataset" / "down.hdf5")
    for one, other in zip(old.episodes, new.episodes, strict=True):
        for a, b in zip(old.frames(one, old.views), new.frames(other, new.views), strict=True):
            assert all(np.array_equal(a[view], b[view]) for view in old.views)


def test_readings_of_a_view_that_is_turned_are_kept_apart(tmp_path: Path) -> None:
    write_robomimic(draw_episodes((4,)), tmp_path / "a.hdf5")
    out = tmp_path / "out"
    run(tmp_path / "a.hdf5", out, "agentview")
    said, _ = run(tmp_path / "a.hdf5", tmp_path / "other", "flip:agentview", dry_run=True)
    assert "\nviews: flip:agentview (of agentview, robot0_eye_in_hand)\n" in said[0]
    with pytest.raises(ConfigError, match=r"in '.*relabel\.json' differ: shown\."):
        run(tmp_path / "a.hdf5", out, "flip:agentview")
    run(tmp_path / "a.hdf5", out, "flip:agentview", overwrite=True)
    assert len(list((out / "cache").iterdir())) == 2
    about = json.loads((out / "relabel.json").read_text())["settings"]["shown"]
    assert about == [{"name": "agentview", "view": "flip:agentview", "size": None}]
    # A view that is not turned is written down as ever, so what was kept of it is found again.
    run(tmp_path / "a.hdf5", out, "agentview", overwrite=True)
    about = json.loads((out / "relabel.json").read_text())["settings"]["shown"]
    assert about == [{"name": "agentview", "view": "agentview", "size": None}]
    assert len(list((out / "cache").iterdir())) == 2


def test_the_report_shows_pictures_as_the_models_saw_them(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "ep"
    folder.mkdir(parents=True)
    for number in range(3):
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[0] = 50 * (number + 1)
        Image.fromarray(picture).save(folder / f"{number}.png")
    view = open_source(tmp_path / "set").views[0]
    out = tmp_path / "out"
    run(tmp_path / "set", out, f"flip:{view}", instruction="lift")
    found = open_run(out)
    for views, row in (((), 7), ((view,), 0), ((f"flip:{view}",), 7)):
        pictures = find_pictures(found, None, views, None)
        assert pictures is not None
        values = [int(one[row].mean()) for one in pictures.frames(found.entries[0])]
        assert values == [50, 100, 150]
