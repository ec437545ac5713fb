"""The page as a file: what is in it, what is left out, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procreward.errors import ConfigError, DatasetError, UnknownNameError
from procreward.relabel import RelabelConfig, relabel
from procreward.report.page import SCRIPTS, safe_json
from procreward.report.records import read_records, write_records
from procreward.report.runs import open_run
from procreward.video import VideoReader
from tests.relabel.sets import ramp, write_video
from tests.report.helpers import episode, step_trace
from tests.report.runs import HOSTILE, block, film, made, played, relabelled

TEMPLATES = Path(__file__).parents[2] / "procreward" / "report" / "templates"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relabelled(tmp_path_factory.mktemp("relabelled"))


def test_the_page_of_a_relabelled_set(run: Path) -> None:
    page, result, said = made(run)
    assert result.exit_status == 0
    assert result.files == (run / "report.html",)
    assert (result.episodes, result.videos, result.notes) == (3, 3, ())
    assert said[-1].startswith("3 episodes, 3 with a video, 0.")
    data = block(page, "data")
    assert [(row["key"], row["name"]) for row in data["rows"]] == [
        ("0", "falls"),
        ("1", "rises"),
        ("2", "short"),
    ]
    assert data["rows"][0]["task"] == HOSTILE
    assert data["clips"]["2"] == {"fps": 10.0, "frames": 2}
    trace = block(page, "trace-1")
    assert len(trace["progress"]) == len(trace["reward"]) == 24
    dark = trace["queries"][0]
    assert (dark["valid"], dark["reason"], dark["window"]) == (False, "too <i>dark</i>", [0, 0])
    assert dark["text"].endswith("</script><script>window.hacked=1</script>")
    assert {flag["kind"] for flag in block(page, "trace-0")["flags"]} == {
        "invalid",
        "drop",
        "stall",
    }


def test_a_name_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"set \xe9")
    write_video(tmp_path / "video.mp4", ramp(4))
    source.mkdir()
    (tmp_path / "video.mp4").rename(source / os.fsdecode(b"ep \xe9.mp4"))
    config = RelabelConfig(
        source=source, out=tmp_path / "run", scorer="moody", window_frames=2, instruction="lift"
    )
    assert relabel(config, lambda _: None).episodes == 1
    page, result, _ = made(tmp_path / "run")
    assert result.videos == 1
    assert [row["name"] for row in block(page, "data")["rows"]] == ["ep \udce9"]
    assert "<h1>set \\udce9</h1>" in page


def test_the_page_stands_alone(run: Path, tmp_path: Path) -> None:
    page, _, _ = made(run, out=tmp_path / "page.html", limit=1)
    texts = re.sub(r'(?s)<script type="application/[^>]*>.*?</script>', "", page)
    assert not re.search(r"(?i)(?:src|href)\s*=\s*[\"']?(?!#|data:,)[a-z./]", texts)
    assert "http" not in texts.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in page
    # Nothing of this machine is in it.
    assert str(run.parent) not in page
    assert str(Path.home()) not in page


def test_recorded_texts_are_never_markup(run: Path) -> None:
    page, _, _ = made(run, curves_only=True)
    assert "window.hacked=1</script>" not in page
    assert "<img" not in page
    assert "<b>grey" not in page
    scripts = re.findall(r"(?s)<script>(.*?)</script>", page)
    assert len(scripts) == len(SCRIPTS)


@given(st.text() | st.sampled_from(["</script>", "<!--", "\u2028", "\ud800"]))
def test_json_in_a_script_is_the_same_json(text: str) -> None:
    found = safe_json({"said": text})
    assert not set(found) & set("<>&\u2028\u2029")
    assert found.encode("utf-8")
    assert json.loads(found) == {"said": text}


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json([float("nan")])


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_write_no_markup(name: str) -> None:
    text = (TEMPLATES / f"{name}.js").read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|</script", text
    )


def test_videos_are_those_of_the_episodes(run: Path, tmp_path: Path) -> None:
    page, _, _ = made(run, video_height=16)
    fps, frames = film(page, 1, tmp_path / "clip.mp4")
    assert (fps, len(frames), frames[0].shape) == (10.0, 24, (16, 16, 3))
    assert [frame.mean() for frame in frames] == pytest.approx(ramp(24), abs=6)
    assert b"avc1" in (tmp_path / "clip.mp4").read_bytes()  # H.264
    # The same run gives the same bytes.
    assert made(run, video_height=16)[0] == page


def test_episodes_can_be_chosen(run: Path) -> None:
    page, result, _ = made(run, episodes="1-2", limit=1)
    assert [row["name"] for row in block(page, "data")["rows"]] == ["rises"]
    note = "Only 1 of the run's 3 episodes are shown, as asked for."
    assert result.notes == (note,)
    assert note in page.replace("&#39;", "'")
    with pytest.raises(ConfigError, match="`episodes` must be of the dataset's 3 episodes"):
        made(run, episodes="7")


def test_what_does_not_fit_is_left_out_and_said(run: Path) -> None:
    whole, _, _ = made(run)
    sizes = [len(block(whole, f"clip-{place}")) for place in range(3)]
    traces = [len(json.dumps(block(whole, f"trace-{place}"))) for place in range(3)]
    rows = len(safe_json(block(whole, "data")["rows"]))
    room = rows + sum(traces) * 1.2 + sizes[0] + sizes[1] / 2
    page, result, _ = made(run, max_mb=room / 1e6)
    assert result.videos == 1
    assert result.exit_status == 0
    assert "The videos of 2 of 3 episodes, from rises on, were left out" in result.notes[0]
    assert result.notes[0].partition(",")[0] in page
    assert list(block(page, "data")["clips"]) == ["0"]
    assert len(block(page, "trace-2")["progress"]) == 2
    page, result, _ = made(run, max_mb=(rows + traces[0] * 1.1 + 300) / 1e6)
    assert "The curves and videos of 2 of 3 episodes" in result.notes[0]
    assert 'id="trace-1"' not in page
    assert len(block(page, "data")["rows"]) == 3


def test_pictures_can_be_left_out(run: Path) -> None:
    page, result, _ = made(run, curves_only=True)
    assert result.videos == 0
    assert "--curves-only" in result.notes[0]
    assert 'type="application/octet-stream"' not in page


def test_a_dataset_that_was_moved_is_asked_for(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "source.txt").write_text("/nowhere/set\n")
    with pytest.raises(ConfigError, match=r"in the dataset 'source set' \(video\).*--source"):
        made(copy)
    assert made(copy, source=run.parent / "source set")[1].videos == 3
    (copy / "source.txt").unlink()
    with pytest.raises(ConfigError, match="nothing says where"):
        made(copy)
    write_video(tmp_path / "other" / "a.mp4", ramp(4))
    with pytest.raises(DatasetError, match="`source` must be the dataset that was relabelled"):
        made(copy, source=tmp_path / "other")
    with pytest.raises(UnknownNameError, match="wrist"):
        made(copy, source=run.parent / "source set", views=("wrist",))


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    run = relabelled(tmp_path, videos=False)
    (tmp_path / "source set" / "rises" / "005.png").write_bytes(b"none")
    page, result, _ = made(run)
    assert result.exit_status == 1
    assert list(result.broken) == ["rises"]
    assert "cannot be read" in result.broken["rises"]
    assert str(tmp_path) not in page
    assert "1 episode without a video" in page
    assert result.videos == 2


def test_episodes_that_were_skipped_are_listed(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    account = json.loads((copy / "relabel.json").read_text())
    account["skipped"] = {"bad <b>": "is damaged"}
    (copy / "relabel.json").write_text(json.dumps(account))
    page, result, _ = made(copy, curves_only=True)
    assert "1 episode without labels" in page
    assert "<strong>bad &lt;b&gt;</strong>: is damaged" in page
    assert result.exit_status == 0


def test_a_run_without_its_cache_has_the_words_still(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("cache"))
    page, result, _ = made(copy, curves_only=True)
    assert "The cache of answers is not in the folder" in result.notes[0]
    query = block(page, "trace-1")["queries"][-1]
    assert query["text"].startswith("<b>grey</b>")
    assert "window" not in query


def test_the_page_of_a_demo(tmp_path: Path) -> None:
    run = played(tmp_path / "demo")
    page, result, said = made(run, video=True, plot=True)
    assert (result.episodes, result.videos) == (2, 2)
    assert [row["key"] for row in block(page, "data")["rows"]] == ["expert-0", "fail-1"]
    assert block(page, "trace-0")["truth"] == [0, 0.25, 0.5, 0.75, 1]
    # The camera's picture alone, without the white of the overlay above and below it.
    _, frames = film(page, 0, tmp_path / "clip.mp4")
    assert frames[0].shape == pytest.approx((256, 342, 3), abs=2)
    assert [frame.mean() for frame in frames] == pytest.approx([30, 70, 110, 150, 190], abs=4)
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "has written the overlay videos itself" in said[0]
    with pytest.raises(ConfigError, match="`source` belongs to relabelled datasets"):
        made(run, source=tmp_path)


def test_a_demo_without_videos_has_its_curves(tmp_path: Path) -> None:
    run = played(tmp_path / "demo")
    (run / "fail-1.mp4").unlink()
    _, result, _ = made(run)
    assert result.broken == {"fail-1": "Episode 'fail-1' has no video in the run's folder."}
    (run / "expert-0.mp4").unlink()
    _, result, _ = made(run)
    assert (result.videos, result.exit_status) == (0, 0)
    assert "no videos any more" in result.notes[0]


def test_episodes_of_one_step_and_of_no_answer(tmp_path: Path) -> None:
    one = (step_trace(0, progress=None, potential=0.0, valid=False, true_progress=None),)
    none = tuple(step_trace(step, progress=None, queried=False) for step in range(3))
    changes = {"final_progress": None, "complete": False, "env_success": False}
    records = [
        episode("one", 0, trace=one, steps=0, queries=1, invalid_answers=1, **changes),
        episode("none", 0, trace=none, steps=2, queries=0, **changes),
    ]
    page, result, _ = made(played(tmp_path / "demo", records), plot=True)
    assert (result.videos, result.exit_status) == (2, 0)
    rows = block(page, "data")["rows"]
    assert [(row["voc"], row["final"], row["queries"]) for row in rows] == [
        (None, None, 1),
        (None, None, 0),
    ]
    assert block(page, "trace-1")["queries"] == []


def test_overlay_videos_and_the_figure_are_written_beside_the_page(
    run: Path, tmp_path: Path
) -> None:
    _, result, _ = made(run, out=tmp_path / "a" / "page.html", video=True, plot=True, limit=2)
    assert [path.relative_to(tmp_path / "a").as_posix() for path in result.files] == [
        "page.html",
        "overlays/falls.mp4",
        "overlays/rises.mp4",
        "page.png",
    ]
    with VideoReader(result.files[1]) as video:
        assert next(iter(video)).shape == (480, 832, 3)


def test_only_a_report_is_replaced(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.html"
    path.write_text("<p>not yours</p>")
    with pytest.raises(ConfigError, match="or an earlier report"):
        made(run, out=path)
    assert path.read_text() == "<p>not yours</p>"
    page, _, _ = made(run, out=path, overwrite=True, curves_only=True)
    assert made(run, out=path, curves_only=True)[0] == page
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match=r"a name with \.html"):
        made(run, out=tmp_path / "report.txt")
    with pytest.raises(ConfigError, match="`video` must be left out with `curves_only`"):
        made(run, curves_only=True, video=True)


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"a file\."):
        open_run(run / "relabel.json")
    with pytest.raises(ConfigError, match=r"has neither relabel\.json"):
        open_run(tmp_path)
    (tmp_path / "evaluations.jsonl").touch()
    with pytest.raises(ConfigError, match="a training run without filmed episodes"):
        open_run(tmp_path)
    (tmp_path / "cache").mkdir()
    with pytest.raises(ConfigError, match="relabelled in part"):
        open_run(tmp_path)
    write_records([], tmp_path / "episodes.jsonl")
    with pytest.raises(ConfigError, match="must have at least one episode"):
        open_run(tmp_path)
    (tmp_path / "relabel.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"relabel\.json' cannot be read"):
        open_run(tmp_path)


def test_a_training_run_shows_its_filmed_episodes(tmp_path: Path) -> None:
    run = played(tmp_path / "train")
    (run / "evaluations.jsonl").touch()
    config = {"algorithm": "ppo", "total_steps": 64, "out": "/home/me/run"}
    (run / "config.yaml").write_text(
        json.dumps({**config, "reward": {"scorer": "nano", "gamma": 0.9}})
    )
    with pytest.raises(ConfigError, match="`views` belongs to relabelled"):
        made(run, views=("front",))
    (run / "videos").mkdir()
    for path in run.glob("*.mp4"):
        path.rename(run / "videos" / path.name)
    page, result, _ = made(run)
    assert result.videos == 2
    assert "ppo, 64 steps" in page
    assert "/home/me" not in page


def test_views_stand_side_by_side(tmp_path: Path) -> None:
    from procreward.report.pictures import DatasetPictures
    from tests.relabel.sets import InMemory

    source = InMemory(ramp(5))
    records = [replace(episode(), steps=4)]
    found = open_run(played(tmp_path / "demo", records)).entries[0]
    pictures = DatasetPictures(source, ("front", "wrist"))
    pictures.check([found])
    first = next(pictures.frames(found))
    assert first.shape == (16, 32, 3)
    assert (int(first[0, 0, 0]), int(first[0, 16, 0])) == (20, 21)
    assert pictures.fps(found) == 10.0
    assert len(read_records(tmp_path / "demo" / "episodes.jsonl")) == 1
