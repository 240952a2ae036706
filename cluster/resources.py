"""What a job asks of the cluster, and which of a training's flags follow from that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from img2img_recon.support.cli import flag
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import NonNegativeInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from typing import TypeAlias

    SlurmTime: TypeAlias = str
else:
    from jsonargparse.typing import restricted_string_type

    SlurmTime = restricted_string_type(
        "SlurmTime",
        r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})\Z",
        "minutes, or a time as SLURM writes it (24:00:00, 1-12:00:00)",
    )

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """What one run asks of the cluster; runs that ask for the same are a resource group, one job array."""

    nodes: PositiveInt = flag(1, help="machines")
    gpus_per_node: NonNegativeInt = flag(0, help="GPUs on each; 0 trains on the CPU")
    tasks_per_node: PositiveInt | None = flag(None, help="processes on each; default: one per GPU")
    cpus_per_task: PositiveInt = flag(1, help="cores per process, loader processes included")
    mem_gb: PositiveFloat | None = flag(None, help="memory of each machine")
    timeout_min: SlurmTime = flag(
        "1440", help="after that long a run saves, gives way and queues again"
    )
    signal_delay_s: PositiveInt = flag(120, help="how long before that it is warned")
    grace_s: NonNegativeInt = flag(
        20,
        help="how long a warned run may take to reach a step's end; shorter than signal_delay_s and the "
        "partition's grace time",
    )
    max_timeouts: NonNegativeInt = flag(100, help="how often it may give way before it is given up")
    array_parallelism: PositiveInt = flag(64, help="runs of an array at one time")
    partition: str | None = flag(None, help="as sbatch takes it")
    account: str | None = flag(None, help="as sbatch takes it")
    qos: str | None = flag(None, help="as sbatch takes it")
    constraint: str | None = flag(None, help="as sbatch takes it")
    setup: tuple[str, ...] = flag((), help="shell commands before the training")

    def __post_init__(self) -> None:
        if self.minutes < 1:
            raise InputError(f"--timeout_min: given {self.timeout_min}, allowed: 1 or more")
        if self.signal_delay_s >= 60 * self.minutes:
            raise InputError(
                f"--signal_delay_s: given {self.signal_delay_s}, allowed: less than timeout_min, "
                f"which is {self.timeout_min}, or {60 * self.minutes} s"
            )
        if self.grace_s >= self.signal_delay_s:
            raise InputError(
                f"--grace_s: given {self.grace_s}, allowed: less than signal_delay_s, "
                f"which is {self.signal_delay_s}"
            )

    @property
    def processes_per_node(self) -> int:
        """Processes on each machine."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)

    @property
    def minutes(self) -> int:
        """The time limit, rounded up.

        As SLURM takes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
        """
        days, dash, time = str(self.timeout_min).rpartition("-")
        parts = [int(part) for part in time.split(":")]
        if not dash and len(parts) < 3:
            parts = [0, *parts]
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return 1440 * int(days or 0) + 60 * hours + minutes + math.ceil(seconds / 60)


def placement(resources: Resources) -> dict[str, Any]:
    """A training's flags that follow from its resources: machines, processes on each, what they train on."""
    flags: dict[str, Any] = {
        "num_nodes": resources.nodes,
        "devices": str(resources.processes_per_node),
    }
    if resources.gpus_per_node:
        # A node whose GPU cannot be seen must say so, not train for days on its processor.
        flags["accelerator"] = "gpu"
    return flags


def check_placement(config: Any, resources: Resources) -> None:
    """See that a training's processes are those of its resources; the scheduler starts them.

    Raises:
        InputError: they are not.
    """
    if config.num_nodes != resources.nodes:
        raise InputError(
            f"--num_nodes: given {config.num_nodes}, but nodes of the job is {resources.nodes}"
        )
    devices = str(config.devices)
    count = str(len(devices.strip(",").split(","))) if "," in devices else devices
    if count != str(resources.processes_per_node):
        raise InputError(
            f"--devices: given {devices}, but the job starts {resources.processes_per_node} "
            "processes on each node (tasks_per_node, or one per GPU)"
        )


def resource_groups(items: Iterable[tuple[T, Resources]]) -> list[tuple[Resources, list[T]]]:
    """Items in groups that ask for the same."""
    groups: dict[Resources, list[T]] = {}
    for item, resources in items:
        groups.setdefault(resources, []).append(item)
    return list(groups.items())
