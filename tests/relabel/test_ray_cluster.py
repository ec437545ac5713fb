"""What is checked before a Ray cluster is asked for anything; nothing here starts one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from procreward import registry
from procreward.cli import main
from procreward.config import RewardConfig, ScorerConfig
from procreward.errors import ConfigError, MissingDependencyError
from procreward.relabel import ray_cluster
from procreward.relabel.ray_cluster import (
    WorkerSize,
    address_of,
    check_address,
    connect,
    planned,
    room,
    worker_size,
)
from procreward.relabel.ray_config import RayConfig
from tests.relabel.scorers import Grey
from tests.relabel.sets import ramp, write_frames

registry.register_scorer("grey", "tests.relabel.scorers:Grey")

GREY, NANO = RewardConfig(scorer="grey"), RewardConfig(scorer="nano")
SMALL = WorkerSize(cpus=1, gpus=0)
BIG = WorkerSize(cpus=64, gpus=8)
TIGHT = WorkerSize(cpus=4, gpus=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "data/lift"}, "`ray` must be auto, local, HOST:PORT or ray://HOST:PORT"),
        ({"address": ""}, "`ray` must be"),
        ({"workers": 0}, "`ray_workers` must be an integer of at least 1"),
        ({"gpus_per_worker": 1.5}, "`ray_gpus_per_worker` must be a whole number, or one in"),
        ({"cpus_per_worker": -1}, "`ray_cpus_per_worker` must be"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "reward", "nodes", "size", "workers"),
    [
        # A scorer without a model wants no GPU, and a pair of CPUs.
        ({}, GREY, [BIG, BIG], (2, 0), 64),
        ({}, GREY, [SMALL], (1, 0), 1),
        # nano runs on a GPU where there is one.
        ({}, NANO, [SMALL], (1, 0), 1),
        ({}, NANO, [WorkerSize(cpus=3, gpus=0)], (2, 0), 1),
        ({}, NANO, [SMALL, BIG, BIG], (2, 1), 16),
        ({}, NANO, [BIG, TIGHT], (1, 1), 12),
        ({"gpus_per_worker": 0.25}, NANO, [BIG], (2, 0.25), 32),
        ({"gpus_per_worker": 0}, NANO, [BIG], (2, 0), 32),
        ({"workers": 3}, NANO, [BIG], (2, 1), 3),
        ({"gpus_per_worker": 4, "cpus_per_worker": 16}, NANO, [BIG, TIGHT], (16, 4), 2),
        ({"cpus_per_worker": 0}, GREY, [TIGHT], (0, 0), 4),
    ],
)
def test_how_many_workers(
    changes: dict[str, Any],
    reward: RewardConfig,
    nodes: list[WorkerSize],
    size: tuple[float, float],
    workers: int,
) -> None:
    config = RayConfig(**changes)
    found = worker_size(config, reward, nodes)
    assert (found.cpus, found.gpus) == size
    assert room(config, found, nodes) == workers


def test_more_than_the_cluster_has() -> None:
    config = RayConfig(workers=17, gpus_per_worker=1)
    with pytest.raises(ConfigError) as caught:
        room(config, WorkerSize(cpus=2, gpus=1), [SMALL, BIG, BIG])
    assert str(caught.value) == (
        "The Ray cluster must have room for 17 workers, and has room for 16: one takes 2 CPUs and "
        "1 GPUs (--ray-cpus-per-worker, --ray-gpus-per-worker), and its 3 machines have 1 CPUs and "
        "0 GPUs; 64 CPUs and 8 GPUs; 64 CPUs and 8 GPUs. Machines that are still to start are not "
        "waited for."
    )


@pytest.mark.parametrize(
    ("scorer", "changes", "message"),
    [
        (Grey(), {}, r"got the object '\d+:Grey', which is in this process only"),
        (ScorerConfig(name="procvlm", model="nano", device="cuda:1"), {}, "Ray decides which GPU"),
        (
            ScorerConfig(name="procvlm", model="nano", device="cuda"),
            {"gpus_per_worker": 0},
            "`ray_gpus_per_worker` must be above 0",
        ),
    ],
)
def test_models_that_workers_cannot_have(
    scorer: Any, changes: dict[str, Any], message: str
) -> None:
    registry.clear_scorers()
    with pytest.raises(ConfigError, match=message):
        worker_size(RayConfig(**changes), RewardConfig(scorer=scorer), [BIG])
    registry.clear_scorers()


def test_a_model_that_a_server_or_vllm_runs() -> None:
    served = {"engine": "served", "server": {"base_url": "http://localhost:1/v1"}}
    config = ScorerConfig(name="procvlm", model="nano", options=served)
    size = worker_size(RayConfig(), RewardConfig(scorer=config), [BIG])
    assert size.gpus == 0
    config = ScorerConfig(name="procvlm", model="nano", options={"engine": "vllm"})
    assert worker_size(RayConfig(), RewardConfig(scorer=config), [SMALL]).gpus == 1


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web_port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nothing_answers(scheme: str, free_port: int) -> None:
    with pytest.raises(ConfigError, match=r"where none answers .*refused.*`ray start --head`"):
        check_address(f"{scheme}127.0.0.1:{free_port}")


def test_where_something_else_answers(web_port: int) -> None:
    with pytest.raises(ConfigError, match="where something else answers"):
        check_address(f"127.0.0.1:{web_port}")


def test_which_cluster_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of(RayConfig()) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert address_of(RayConfig()) == "head:6379"
    assert address_of(RayConfig(address="auto")) == "auto"


def test_a_cluster_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**settings: Any) -> None:
        assert (settings["address"], settings["log_to_driver"]) == ("auto", False)
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0")

    # Another version cannot be had here; this is how Ray refuses one.
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"'auto' cannot be joined\. Ray says: Version mismatch"):
        connect(RayConfig(address="auto"))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "procreward\[relabel,ray\]"'):
        connect(RayConfig())


def test_planned(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert planned(RayConfig(), NANO) == (
        "Ray cluster: one of this machine's own, workers: as many as it has room for, each with 2 "
        "CPUs and 0 GPUs (1 GPU if it has any)"
    )
    config = RayConfig(address="auto", workers=3, gpus_per_worker=0.5)
    assert planned(config, NANO) == (
        "Ray cluster: the one at auto, workers: 3, each with 2 CPUs and 0.5 GPUs"
    )
    with pytest.raises(ConfigError, match="where none answers"):
        planned(RayConfig(address=f"127.0.0.1:{free_port}"), GREY)


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--ray", "--dry-run"], 0, "Ray cluster: one of this machine's own"),
        (["--ray", "auto", "--dry-run"], 0, "Ray cluster: the one at auto, workers: as many"),
        (["--ray", "--ray-workers", "4", "--dry-run"], 0, "workers: 4, each with 2 CPUs"),
        (["--ray-workers", "4"], 2, "error: `ray_workers` belongs to `ray`"),
        (["--ray", "elsewhere"], 2, "SOURCE comes before it"),
        (["--ray", "auto", "auto"], 2, "SOURCE comes before it"),
        (["--engine", "served"], 2, "`engine` must be "),
    ],
)
def test_the_command(
    options: list[str],
    status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write_frames(tmp_path / "frames" / "a", ramp(5))
    command = ["relabel", str(tmp_path / "frames"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--instruction", "lift", "--scorer", "grey", *options])
    captured = capsys.readouterr()
    assert caught.value.code == status, captured
    assert says in " ".join(captured.out.split() + captured.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
