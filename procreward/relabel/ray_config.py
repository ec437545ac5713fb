"""``RayConfig``: where the groups of episodes are asked about, if not in this process."""

from __future__ import annotations

import re
from dataclasses import dataclass

from procreward.checks import check, check_int, is_number

__all__ = ["RayConfig", "is_address"]

_ADDRESS = re.compile(r"auto|local|[a-z]+://\S+|[^\s/:]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


def is_address(text: str) -> bool:
    """Say whether a text has a form that Ray takes for an address."""
    return _ADDRESS.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """Which Ray cluster works, and with how many workers; nothing of it decides what is written.

    Attributes:
        address: ``"auto"`` joins the cluster that this machine belongs to, ``"host:6379"`` or
            ``"ray://host:10001"`` the one there, ``"local"`` starts one of this machine's own that
            ends with the run. None is the value of ``RAY_ADDRESS``, or else ``"local"``.
        workers: Processes with the models in them, at least 1. None is as many as the cluster has
            room for: one per GPU where the models run on GPUs, else one per pair of CPUs.
        gpus_per_worker: GPUs of a worker; below 1 several share one. None is 1 where the models run
            on GPUs, else 0.
        cpus_per_worker: CPUs of a worker. None is 2, one for the model and one that decodes, or
            fewer where the machines have fewer per GPU.

    Raises:
        ConfigError: If a value is out of range.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        if self.address is not None:
            wanted = "auto, local, HOST:PORT or ray://HOST:PORT"
            check(is_address(self.address), "ray", wanted, self.address)
        if self.workers is not None:
            check_int("ray_workers", self.workers, least=1)
        for name in ("gpus_per_worker", "cpus_per_worker"):
            value = getattr(self, name)
            if value is not None:
                ok = is_number(value) and value >= 0 and (value < 1 or value == int(value))
                wanted = "a whole number, or one in [0, 1) for a share"
                check(ok, f"ray_{name}", wanted, value)
