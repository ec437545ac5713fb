"""What a worker checks and does, here without Ray around it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from procreward import registry
from procreward.errors import ConfigError, DatasetError
from procreward.relabel import RelabelConfig
from procreward.relabel.plan import prepare
from procreward.relabel.ray_worker import Surroundings, Worker, fingerprints
from procreward.relabel.scoring import score_group
from tests.relabel.sets import ramp, write_frames

registry.register_scorer("grey", "tests.relabel.scorers:Grey")


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers change their process, which is this one here."""
    for name in Surroundings.here(gpus=0).variables:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_frames(tmp_path / "frames" / name, ramp(5))
    return tmp_path / "frames"


@pytest.fixture
def config(source: Path, tmp_path: Path) -> RelabelConfig:
    return RelabelConfig(
        source=source, out=tmp_path / "out", scorer="grey", instruction="lift", on_error="skip"
    )


def test_asks_as_this_process_does(config: RelabelConfig, caplog: pytest.LogCaptureFixture) -> None:
    (config.source / "b" / "003.png").write_bytes(b"no picture")
    plan, worker = prepare(config), Worker()
    root = str(plan.source.root)
    assert worker.begin(Surroundings.here(gpus=0), root, "frames") == (os.uname().nodename, [])
    job, episodes = plan.job(0), {one.index: one for one in plan.source.episodes}
    answered = worker.ask(4, job, fingerprints(job, plan.source, episodes))
    alone = score_group(job, plan.source)
    assert answered.result.episodes == alone.episodes
    assert worker.frames() == (4, 10)
    (logged,) = answered.logged
    assert logged[0].startswith("procreward.relabel")
    assert "Episode 'b' cannot be read" in logged[2]


def test_what_comes_next_is_decoded(config: RelabelConfig) -> None:
    config = config.replace(group_episodes=1)
    plan, worker = prepare(config), Worker()
    worker.begin(Surroundings.here(gpus=0), str(plan.source.root), "frames")
    episodes = {one.index: one for one in plan.source.episodes}
    jobs = [plan.job(number) for number in (0, 1)]
    prints = [fingerprints(job, plan.source, episodes) for job in jobs]
    alone = [score_group(job, plan.source).episodes for job in jobs]
    for asked in ([0, 1], [0, 0]):  # the second time something else is asked after all
        first, second = asked
        found = worker.ask(first, jobs[first], prints[first], (1, jobs[1])).result.episodes
        assert found == alone[first]
        assert worker.ask(second, jobs[second], prints[second]).result.episodes == alone[second]


def test_surroundings(config: RelabelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delenv("OMP_NUM_THREADS")
    here = Surroundings.here(gpus=0)
    assert here.scorers["grey"] == "tests.relabel.scorers:Grey"
    assert "CUDA_VISIBLE_DEVICES" not in Surroundings.here(gpus=1).variables
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    Worker().begin(here, str(config.source), "frames")
    assert os.environ["MUJOCO_GL"] == "osmesa"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "OMP_NUM_THREADS" not in os.environ


def test_machines_that_differ(config: RelabelConfig) -> None:
    here, root = Surroundings.here(gpus=0), str(config.source)
    other = replace(here, versions={**here.versions, "procreward": "9.9"})
    with pytest.raises(ConfigError, match=r"and the run was started with 9\.9\. Install"):
        Worker().begin(other, root, "frames")
    other = replace(here, versions={**here.versions, "torch": "9.9"})
    _, (note,) = Worker().begin(other, root, "frames")
    assert note.startswith("torch ")
    assert note.endswith(" instead of 9.9")


def test_datasets_that_differ(config: RelabelConfig) -> None:
    here, node = Surroundings.here(gpus=0), os.uname().nodename
    with pytest.raises(DatasetError, match=f"The node {node!r} has no '/nowhere/data'. Every"):
        Worker().begin(here, "/nowhere/data", "frames")
    with pytest.raises(DatasetError, match=f"The node {node!r} cannot read it: "):
        Worker().begin(here, str(config.source), "robomimic")
    plan, worker = prepare(config), Worker()
    episodes = {one.index: one for one in plan.source.episodes}
    job = plan.job(0)
    expected = fingerprints(job, plan.source, episodes)
    write_frames(config.source / "c", ramp(4))
    (config.source / "a" / "000.png").write_bytes(b"another picture")
    worker.begin(here, str(config.source), "frames")
    with pytest.raises(DatasetError, match=f"The node {node!r} has another dataset at "):
        worker.ask(0, job, expected)
