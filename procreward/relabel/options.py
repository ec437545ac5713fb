"""``procreward relabel``: its options, and the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from procreward.errors import ConfigError
from procreward.relabel.config import RelabelConfig
from procreward.relabel.ray_config import RayConfig, is_address

if TYPE_CHECKING:
    from procreward.relabel.run import RelabelReport

__all__ = ["RelabelOptions", "run_relabel"]


def _address(given: list[str]) -> str:
    """Read what follows ``--ray``, which may be nothing."""
    if len(given) > 1 or not all(is_address(text) for text in given):
        raise ValueError(
            "--ray takes auto, HOST:PORT, ray://HOST:PORT or nothing; SOURCE comes before it"
        )
    return given[0] if given else ""


_Address = tyro.constructors.PrimitiveConstructorSpec[str](
    nargs="*",
    metavar="[ADDRESS]",
    instance_from_str=_address,
    is_instance=lambda value: value is None or isinstance(value, str),
    str_from_instance=lambda value: [value] if value else [],
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelabelOptions(RelabelConfig):
    """Put dense rewards into a recorded dataset: LeRobot, robomimic, Minari, videos, pictures.

    Exit status: 0 when all went well; 1 when it is done but episodes were skipped, or none of the
    queries about an episode was answered; 2 on an error; 130 when interrupted. A run that was
    interrupted or killed goes on where it was when the same command is given again.
    """

    ray: Annotated[str | None, _Address] = None
    """Ask on a Ray cluster: the one at an address (auto: this machine's), or without an address the
    one that RAY_ADDRESS names, or else one of this machine's own. SOURCE comes before it."""
    ray_workers: int | None = None
    """Processes with the models in them; without it, one per GPU, or per 2 CPUs where the models
    run on CPUs."""
    ray_gpus_per_worker: float | None = None
    """GPUs of each of them, or a share of one; without it, 1 where the models run on GPUs."""
    ray_cpus_per_worker: float | None = None
    """CPUs of each of them; without it, 2, or fewer where there are fewer per GPU."""

    def ray_config(self) -> RayConfig | None:
        """Return the settings of the cluster, or None if this process is to do everything.

        Raises:
            ConfigError: If one is out of range, or given without ``--ray``.
        """
        names = ("workers", "gpus_per_worker", "cpus_per_worker")
        given = {name: getattr(self, f"ray_{name}") for name in names}
        if self.ray is None:
            useless = next((name for name in names if given[name] is not None), None)
            if useless is not None:
                raise ConfigError(f"`ray_{useless}` belongs to `ray`, which was not given.")
            return None
        return RayConfig(address=self.ray or None, **given)


def run_relabel(options: RelabelOptions, say: Callable[[str], object]) -> RelabelReport:
    """Run the command, here or on a Ray cluster.

    Args:
        options: What the user asked for.
        say: Takes every block of text meant for the user.

    Returns:
        What was done.

    Raises:
        ProcrewardError: As :func:`procreward.relabel.run.relabel` and
            :class:`procreward.relabel.ray_driver.RayDriver` say.
    """
    from procreward.relabel.run import relabel

    config = options.ray_config()
    if config is None:
        return relabel(options, say)
    from procreward.relabel.ray_cluster import check_installed, planned
    from procreward.relabel.ray_driver import RayDriver

    check_installed()
    if options.dry_run:
        text = planned(config, options.reward_config())
        # The models belong on the workers, which this machine may know nothing of.
        report = relabel(options.replace(estimate=False), say)
        say(text)
        return report
    with RayDriver(config) as driver:
        return relabel(options, say, driver=driver)
