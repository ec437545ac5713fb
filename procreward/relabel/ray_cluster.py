"""A Ray cluster: found or started, and how many workers it has room for.

* :func:`need_ray` - Ray itself, or how to install it.
* :func:`check_address` - whether a Ray cluster answers there.
* :func:`connect` - joins or starts one.
* :func:`worker_size` - what a worker takes of a machine.
* :func:`room` - how many workers fit.
* :func:`planned` - the same in words, with nothing started.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from procreward.config import RewardConfig
from procreward.errors import ConfigError, MissingDependencyError
from procreward.registry import LIVE_PREFIX, ScorerHandle, resolve
from procreward.relabel.ray_config import RayConfig

__all__ = [
    "Cluster",
    "WorkerSize",
    "address_of",
    "check_address",
    "check_installed",
    "connect",
    "need_ray",
    "planned",
    "room",
    "worker_size",
]

_CONNECT_S = 5.0
_CLIENT_PORT = 10001
_MACHINES_NAMED = 8
# Jobs and answers are small; by default Ray takes a third of the memory for what goes between.
_STORE_BYTES = 256 * 1024 * 1024
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSize:
    """What a worker takes of a machine, or a machine has: CPUs and GPUs."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster that this process belongs to.

    Attributes:
        ray: The package.
        nodes: CPUs and GPUs of every machine.
        ours: Whether this process joined it, and has to leave it.
    """

    ray: Any
    nodes: tuple[WorkerSize, ...]
    ours: bool

    def close(self) -> None:
        """Leave it, and stop it if it is this process's own."""
        if self.ours:
            self.ray.shutdown()


def check_installed() -> None:
    """Raise if Ray is not installed; imports nothing.

    Raises:
        MissingDependencyError: It says how to install it.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError(
            '`ray` needs Ray, which is not installed. Run `pip install "procreward[relabel,ray]"`, '
            "on every machine of the cluster the same versions."
        )


def need_ray() -> Any:
    """Return Ray.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    check_installed()
    # Read when Ray is imported: it would send statistics about its use, and warn about the next.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    return ray


def address_of(config: RayConfig) -> str:
    """Return the address that is meant; ``"local"`` for a cluster of this machine's own."""
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def check_address(address: str) -> None:
    """Ask whether a server of Ray's kind answers, since Ray itself tries for minutes.

    Args:
        address: As :func:`address_of` returns it; only those with a host and a port are asked.

    Raises:
        ConfigError: If none does.
    """
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.partition("/")[0].rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdecimal():
        return
    start = "`ray start --head` starts one, and `ray status` there tells its address."
    try:
        target = (host.strip("[]"), int(port))
        with socket.create_connection(target, timeout=_CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(_HTTP2_HELLO)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"`ray` must be the address of a Ray cluster, got {address!r}, where none answers "
            f"({error}). {start}"
        ) from error
    if len(answer) < 4 or answer[3] != _HTTP2_SETTINGS:
        raise ConfigError(
            f"`ray` must be the address of a Ray cluster, got {address!r}, where something else "
            f"answers. {start}"
        )
    if not scheme and int(port) == _CLIENT_PORT:
        raise ConfigError(
            f"`ray` must be HOST:6379 or ray://HOST:10001, got {address!r}, which is the port of "
            f"Ray's clients. Give ray://{address}."
        )


def connect(config: RayConfig) -> Cluster:
    """Join a cluster, or start one on this machine; one that is in use already is taken.

    Raises:
        MissingDependencyError: If Ray is not installed.
        ConfigError: If the cluster cannot be joined.
    """
    ray = need_ray()
    ours = not ray.is_initialized()
    if ours:
        address = address_of(config)
        check_address(address)
        own: dict[str, Any] = (
            {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
            if address == "local"
            else {}
        )
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # of many types, and none of them says where
            raise ConfigError(
                f"The Ray cluster at {address!r} cannot be joined. Ray says: {error} -- It must "
                "be up, of the same version of Ray and Python, and have the token of this machine "
                "(~/.ray/auth_token or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token)."
            ) from error
    nodes = tuple(
        WorkerSize(cpus=each["Resources"].get("CPU", 0.0), gpus=each["Resources"].get("GPU", 0.0))
        for each in ray.nodes()
        if each["Alive"]
    )
    return Cluster(ray=ray, nodes=nodes, ours=ours)


def worker_size(config: RayConfig, reward: RewardConfig, nodes: Sequence[WorkerSize]) -> WorkerSize:
    """Decide what a worker takes of a machine.

    Args:
        config: What the user said about it.
        reward: Names the models.
        nodes: Every machine of the cluster.

    Raises:
        ConfigError: If a model cannot be had by workers: a live object, or one that wants a GPU
            where there is none.
    """
    wanted = _wanted(reward)
    there = any(node.gpus for node in nodes)
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if "cuda" in wanted or ("auto" in wanted and there) else 0.0
    if "cuda" in wanted and not gpus:
        raise ConfigError("`ray_gpus_per_worker` must be above 0 for a model on CUDA, got 0.")
    cpus = config.cpus_per_worker
    if cpus is None:
        cpus = 2.0
        for node in nodes:
            share = int(node.cpus * gpus / node.gpus) if node.gpus and gpus else int(node.cpus)
            if node.gpus >= gpus and share >= 1:
                cpus = min(cpus, float(share))
    return WorkerSize(cpus=cpus, gpus=gpus)


def _wanted(reward: RewardConfig) -> set[str]:
    """Return what :func:`_device` says of all models."""
    handles = [resolve(reward.scorer), *([] if reward.judge is None else [resolve(reward.judge)])]
    return {_device(handle) for handle in handles}


def _device(handle: ScorerHandle) -> str:
    """Return ``"cuda"``, ``"auto"`` or ``"cpu"``; the last for scorers without a model of ours."""
    if handle.key.startswith(LIVE_PREFIX):
        raise ConfigError(
            f"`scorer` must be a name, a mapping or a ScorerConfig with `ray`, got the object "
            f"{handle.key.removeprefix(LIVE_PREFIX)!r}, which is in this process only. Register "
            "its class with `register_scorer`, and name that."
        )
    config = handle.config
    if config.device.startswith("cuda:"):
        raise ConfigError(
            f"`device` must be auto, cuda or cpu with `ray`, got {config.device!r} for "
            f"{handle.preset.name!r}. Ray decides which GPU a worker has."
        )
    if config.options.get("engine") == "vllm":
        return "cuda"
    if config.device == "auto" and (
        config.model is None or config.options.get("engine") == "served"
    ):
        return "cpu"
    return config.device


def planned(config: RayConfig, reward: RewardConfig) -> str:
    """Say which cluster and workers a run would have; starts nothing.

    Raises:
        ConfigError: If no cluster answers, or a model cannot be had by workers.
    """
    address = address_of(config)
    check_address(address)
    size = worker_size(config, reward, ())
    where = "one of this machine's own" if address == "local" else f"the one at {address}"
    count = "as many as it has room for" if config.workers is None else config.workers
    maybe = config.gpus_per_worker is None and "auto" in _wanted(reward)
    more = " (1 GPU if it has any)" if maybe and not size.gpus else ""
    return f"Ray cluster: {where}, workers: {count}, each with {size}{more}"


def room(config: RayConfig, size: WorkerSize, nodes: Sequence[WorkerSize]) -> int:
    """Return how many workers are started.

    Args:
        config: What the user said about it.
        size: Of a worker.
        nodes: Every machine of the cluster.

    Raises:
        ConfigError: If the cluster has no room for them.
    """
    fit = sum(_fit(size, node) for node in nodes)
    wanted = config.workers or max(fit, 1)
    workers = "a worker" if wanted == 1 else f"{wanted} workers"
    if wanted > fit:
        have = "; ".join([*map(str, nodes[:_MACHINES_NAMED]), "..."][: len(nodes)])
        raise ConfigError(
            f"The Ray cluster must have room for {workers}, and has room for {fit}: one takes "
            f"{size} (--ray-cpus-per-worker, --ray-gpus-per-worker), and its {len(nodes)} machines "
            f"have {have}. Machines that are still to start are not waited for."
        )
    return wanted


def _fit(size: WorkerSize, node: WorkerSize) -> int:
    pairs = ((node.cpus, size.cpus), (node.gpus, size.gpus))
    # A worker that takes nothing counts as taking a CPU.
    fits = [int(has / takes + 1e-9) for has, takes in pairs if takes] or [int(node.cpus)]
    return min(fits)
