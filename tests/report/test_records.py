from __future__ import annotations

import json
from pathlib import Path

import pytest

from procreward.errors import ConfigError
from procreward.report.records import atomic_path, read_records, write_records
from tests.report.helpers import episode, step_trace


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    records = [episode(), episode("random", 1, final_progress=None, instruction="öffne “es”")]
    write_records(records, tmp_path / "deep" / "episodes.jsonl")
    assert read_records(tmp_path / "deep" / "episodes.jsonl") == records


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "half a pair \ud83d"])
def test_any_text_is_read_back(text: str, tmp_path: Path) -> None:
    records = [episode(instruction=text, trace=(step_trace(0, text=text),)), episode("fail")]
    write_records(records, tmp_path / "episodes.jsonl")
    assert read_records(tmp_path / "episodes.jsonl") == records


def test_the_file_holds_one_json_object_a_line(tmp_path: Path) -> None:
    write_records([episode(), episode("fail")], tmp_path / "episodes.jsonl")
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["policy"] for line in lines] == ["expert", "fail"]
    first = json.loads(lines[0])
    assert first["episode_return"] == 0.25
    assert first["trace"][3] == {
        "step": 3,
        "reward": 0.25,
        "env_reward": 0.0,
        "progress": 0.75,
        "potential": 0.75,
        "queried": True,
        "valid": True,
        "complete": True,
        "success": False,
        "true_progress": 0.75,
        "text": "<progress>75%</progress>",
        "reason": "",
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_records([episode()], path)
    before = path.read_bytes()
    bad = episode(trace=(step_trace(0, reward=float("nan")),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records([episode("random"), bad], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_absent_until_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with atomic_path(path) as staged:
        staged.write_bytes(b"half")
        assert staged.suffix == ".mp4"
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("line", ["{", "[]", '{"policy": "expert"}', '{"trace": [{"step": 0}]}'])
def test_a_line_that_is_no_episode_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "episodes.jsonl"
    write_records([episode()], path)
    with path.open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(ConfigError, match="line 2 must be an episode record"):
        read_records(path)


def test_a_file_from_before_reasons_were_kept_is_read(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_records([episode()], path)
    older = json.loads(path.read_text())
    for entry in older["trace"]:
        del entry["reason"]
    path.write_text(json.dumps(older) + "\n")
    assert read_records(path) == [episode()]


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write_records([episode()], path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}) + "\n")
    assert read_records(path) == [episode()]


def test_moments_are_the_first_ones() -> None:
    assert (episode().complete_step, episode().success_step) == (3, 4)
    assert episode().final_success
    quiet = episode(trace=(step_trace(0), step_trace(1)))
    assert (quiet.complete_step, quiet.success_step) == (None, None)
    assert not quiet.final_success
    assert episode("fail", 2).name == "fail-2"
