"""Runs on a real Ray cluster of two workers, and their bytes against those of one process."""

from __future__ import annotations

import gc
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from procreward import registry
from procreward.errors import ConfigError, DatasetError, ProcrewardError, WorkerError
from procreward.relabel import RelabelConfig, ray_driver, relabel
from procreward.relabel.ray_config import RayConfig
from procreward.relabel.ray_driver import RayDriver
from procreward.relabel.ray_worker import Worker
from procreward.relabel.run import run_jobs
from procreward.relabel.scoring import GroupResult
from tests.relabel.kill import asked, published, tree
from tests.relabel.scorers import Grey
from tests.relabel.sets import ramp, write_frames, write_instructions

ray = pytest.importorskip("ray")

TWO = RayConfig(workers=2, cpus_per_worker=1)
CODE = (
    # A shell's background jobs, and what they start, ignore Ctrl-C.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "import sys; from procreward.registry import register_scorer; from procreward.cli import main;"
    "register_scorer('mortal', 'tests.relabel.scorers:Mortal'); main(sys.argv[1:])"
)

pytestmark = pytest.mark.slow

registry.register_scorer("mortal", "tests.relabel.scorers:Mortal")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """A cluster of this module's own; its address."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # sockets must have short paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))  # else one is left in the home
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            _start(folder)
            yield str(ray.get_runtime_context().gcs_address)
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            with warnings.catch_warnings():
                # Of processes of Ray's that it does not wait for.
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()


def _start(folder: str, tries: int = 3) -> None:
    """Start it, again if the machine is too busy for the 30 s that Ray has patience."""
    try:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 1024 * 1024,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
    except Exception as error:
        if "timed out during startup" not in str(error) or tries == 1:
            raise
        ray.shutdown()
        _start(folder, tries - 1)


@pytest.fixture(autouse=True)
def _fresh_scorers() -> Iterator[None]:
    yield
    registry.clear_scorers()


def _preset(folder: Path) -> Path:
    scorer = {"name": "mortal", "options": {"log": str(folder / "log")}}
    path = folder / "mortal.yaml"
    path.write_text(json.dumps({"scorer": scorer}))
    return path


class Place:
    """A dataset of twelve episodes, and folders for what is made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, folder / "frames"
        for index in range(12):
            write_frames(self.source / f"ep_{index:02d}", ramp(6 + index % 5, 20 + index))
        tasks = {f"ep_{index:02d}": f"task {index}" for index in range(12)}
        write_instructions(self.source, **tasks)
        self.log = folder / "log"
        self.preset = _preset(folder)
        self.frames = sum(6 + index % 5 for index in range(12))

    def damage(self, index: int) -> None:
        (self.source / f"ep_{index:02d}" / "003.png").write_bytes(b"no picture at all")

    def config(self, out: str, **changes: Any) -> RelabelConfig:
        settings: dict[str, Any] = {
            "source": self.source,
            "out": self.folder / out,
            "scorer": str(self.preset),
            "every_k_frames": 2,
            "window_frames": 2,
            "group_episodes": 2,
        }
        return RelabelConfig(**(settings | changes))

    def say(self, **files: str) -> None:
        """Tell the scorers what to do in the next run, and forget what they did."""
        for name in ("kill", "hold", "gather", "log"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "processes", ignore_errors=True)
        (self.folder / "processes").mkdir()
        for name, text in files.items():
            (self.folder / name).write_text(text)

    @property
    def processes(self) -> dict[int, dict[str, Any]]:
        paths = (self.folder / "processes").iterdir()
        return {int(path.name): json.loads(path.read_text()) for path in paths}

    def whole(self, **changes: Any) -> dict[str, bytes]:
        """What one process makes of it."""
        self.say()
        relabel(self.config("whole", **changes), lambda text: None)
        return tree(self.folder / "whole")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def on_workers(config: RelabelConfig, settings: RayConfig = TWO) -> tuple[int, int]:
    """Relabel on workers, two of them; returns the exit status and the frames that were told of."""
    told: list[int] = []
    with RayDriver(settings) as driver:

        def counting(jobs: Any, source: Any, on_frames: Callable[[int], object]) -> Any:
            return driver(jobs, source, lambda count: (told.append(count), on_frames(count)))

        status = relabel(config, lambda text: None, driver=counting).exit_status
    return status, sum(told)


def queries(place: Place) -> list[str]:
    return sorted(asked(place.log))


def test_two_workers(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(place.folder)
    place.damage(7)
    # A relative path begins at the folder of whoever gives the work.
    changes = {"source": Path("frames"), "on_error": "skip"}
    expected = place.whole(**changes)
    alone = queries(place)
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    place.say(gather="2")
    assert on_workers(place.config("rayed", **changes)) == (1, place.frames)
    assert tree(place.folder / "rayed") == expected
    assert queries(place) == alone
    assert [record.getMessage() for record in caplog.records] == said
    about = {
        "MUJOCO_GL": "osmesa",
        "OMP_NUM_THREADS": None,
        "CUDA_VISIBLE_DEVICES": "",
        "folder": str(place.folder),
    }
    assert list(place.processes.values()) == [about, about]
    assert os.getpid() not in place.processes


def test_a_worker_is_killed(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    expected = place.whole()
    alone = queries(place)
    place.say(gather="2", kill="task 5\n1")
    assert on_workers(place.config("rayed")) == (0, place.frames)
    assert tree(place.folder / "rayed") == expected
    assert queries(place) == alone  # it died before it answered
    (record,) = caplog.records
    assert "died at the episodes 'ep_04' to 'ep_05' (group 2, death 1 of 3)" in record.getMessage()


def test_a_group_that_kills(place: Place) -> None:
    expected = place.whole()
    place.say(kill="task 5\n1\n2\n3\n4")
    config = place.config("rayed")
    with pytest.raises(WorkerError, match="died at the same episodes, 'ep_04' to 'ep_05'"):
        on_workers(config)
    assert not (config.out / ".lock").exists()
    before = published(config.out)
    place.say()
    relabel(config, lambda text: None)
    assert not {line.partition("\t")[0] for line in asked(place.log)} & before
    assert tree(config.out) == expected


def test_what_workers_raise(place: Place) -> None:
    place.damage(7)
    raised: list[ProcrewardError] = []
    for run in (lambda one: relabel(one, lambda text: None), on_workers):
        with pytest.raises(DatasetError) as caught:
            run(place.config(f"out{len(raised)}"))
        raised.append(caught.value)
    assert str(raised[0]) == str(raised[1])
    assert "'ep_07'" in str(raised[1])
    # What does not exist here is said here; a folder that only the workers lack, by them.
    with pytest.raises(ConfigError, match="must have room for a worker, and has room for 0"):
        on_workers(place.config("gpu"), RayConfig(gpus_per_worker=1))
    with pytest.raises(ConfigError, match="room for 3 workers, and has room for 2"):
        on_workers(place.config("many"), RayConfig(workers=3, cpus_per_worker=1))
    with pytest.raises(ConfigError, match=r"got the object '\d+:Grey'"):
        on_workers(place.config("live", scorer=Grey()))


def test_a_cluster_that_others_use(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_driver, "PLACE_WARNING_S", 0.1)
    monkeypatch.setattr(ray_driver, "PLACE_TIMEOUT_S", 1.0)
    other = ray.remote(num_cpus=2)(Worker).remote()
    ray.get(other.__ray_ready__.remote())
    try:
        with pytest.raises(WorkerError, match="are free: 0 CPUs and 0 GPUs; a worker takes 1 CPUs"):
            on_workers(place.config("out"))
    finally:
        ray.kill(other)


# robosuite writes the model to a file that it does not close.
@pytest.mark.filterwarnings("ignore:.*model.xml:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.sim
def test_pictures_drawn_by_a_worker(tmp_path: Path) -> None:
    from scripts.sample_data.episodes import record_episodes
    from scripts.sample_data.robomimic import write_robomimic

    played = (("Lift", "expert"), ("Lift", "fail"))
    episodes = record_episodes(played=played, views=("agentview",), size=64, max_steps=3)
    write_robomimic(episodes, tmp_path / "states.hdf5", pictures=False)
    config = RelabelConfig(
        source=tmp_path / "states.hdf5",
        out=tmp_path / "alone",
        scorer=str(_preset(tmp_path)),
        views=("agentview",),
        frame_size=(64, 64),
        group_episodes=1,
        every_k_frames=2,
    )
    relabel(config, lambda text: None)
    one = RayConfig(workers=1, cpus_per_worker=1)
    assert on_workers(config.replace(out=tmp_path / "rayed"), one)[0] == 0
    assert tree(tmp_path / "rayed") == tree(tmp_path / "alone")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_driver(place: Place, cluster: str, how: signal.Signals) -> None:
    """Begun by one process with workers, gone on with by another without."""
    expected = place.whole()
    place.say(hold="task 5")
    config = place.config("rayed")
    options = ["--every-k-frames", "2", "--window-frames", "2", "--group-episodes", "2"]
    options += ["--scorer", str(place.preset), "--ray", cluster, "--ray-workers", "1"]
    command = [sys.executable, "-c", CODE, "relabel", str(place.source), "--out", str(config.out)]
    run = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        _until(lambda: len(published(config.out)) == 4 or run.poll() is not None)
        assert run.poll() is None, run.stderr and run.stderr.read()
        (worker,) = place.processes
        run.send_signal(how)
        assert run.wait(timeout=120) == (130 if how is signal.SIGINT else -how)
    finally:
        run.kill()
        run.communicate()
    _until(lambda: not Path(f"/proc/{worker}").exists())
    if how is signal.SIGINT:
        assert {path.name for path in config.out.iterdir()} == {"cache"}
    before = published(config.out)
    place.say()
    relabel(config, lambda text: None)
    assert not {line.partition("\t")[0] for line in asked(place.log)} & before
    assert tree(config.out) == expected


def test_goes_on_where_one_process_stopped(place: Place) -> None:
    expected = place.whole()
    config = place.config("rayed")

    def stopping(*given: Any) -> Iterator[tuple[int, GroupResult]]:
        yield from islice(run_jobs(*given), 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        relabel(config, lambda text: None, driver=stopping)
    begun = published(config.out)
    assert begun == {f"task {index}" for index in range(6)}
    place.say()
    assert on_workers(config)[0] == 0
    assert not {line.partition("\t")[0] for line in asked(place.log)} & begun
    assert tree(config.out) == expected


def _until(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)
