"""What a job asks of the cluster, and which of a training's flags follow from that."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from cluster.document import StrictModel, Text, Whole, refused
from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import config_hash

T = TypeVar("T")

# As SLURM takes times: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
SLURM_TIME = re.compile(r"(?:(?P<days>\d+)-(?=\d))?(\d+)(?::(\d+))?(?::(\d+))?")


def minutes(value: Any) -> Any:
    """A time as SLURM writes it, in whole minutes, rounded up; a number as it is."""
    if not isinstance(value, str):
        return value
    found = SLURM_TIME.fullmatch(value)
    if found is None:
        raise ValueError(
            f"given {value!r}, allowed: minutes, or a time as SLURM writes it (24:00:00)"
        )
    parts = [int(part) for part in found.groups()[1:] if part is not None]
    if found["days"] is not None or len(parts) == 3:
        hours, mins, seconds = (*parts, 0, 0)[:3]
    else:
        hours, (mins, seconds) = 0, (*parts, 0)[:2]
    return 1440 * int(found["days"] or 0) + 60 * hours + mins + math.ceil(seconds / 60)


def _commands(value: Any) -> Any:
    """One shell command stands for a list of one."""
    commands = [value] if isinstance(value, str) else value
    if isinstance(commands, list) and all(isinstance(one, str) for one in commands):
        return tuple(commands)
    if isinstance(commands, tuple):
        return commands
    raise ValueError(f"given {value!r}, allowed: shell commands")


Positive = Annotated[Whole, Field(ge=1)]
NonNegative = Annotated[Whole, Field(ge=0)]
Minutes = Annotated[Positive, BeforeValidator(minutes)]


class Resources(StrictModel):
    """What one run asks of the cluster; runs that ask for the same share a job array.

    Attributes:
        nodes: machines.
        gpus_per_node: 0 trains on the CPU.
        tasks_per_node: processes per machine; by default one per GPU, at least one.
        cpus_per_task: cores per process, loader processes included.
        mem_gb: memory per machine; None leaves it to the cluster.
        timeout_min: after so many minutes a run saves, gives way and queues again; also as SLURM writes
            times (24:00:00, 1-12:00:00).
        signal_delay_s: the cluster warns that long before it ends a run.
        grace_s: how long a warned run may go on to reach a step's end; what it has not saved then is
            repeated. Shorter than signal_delay_s and the partition's grace time.
        max_timeouts: times that a run may give way before it is given up.
        array_parallelism: runs of an array at one time.
        partition, account, qos, constraint: as sbatch takes them.
        setup: shell commands before every run.
    """

    nodes: Positive = 1
    gpus_per_node: NonNegative = 0
    tasks_per_node: Positive | None = None
    cpus_per_task: Positive = 1
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    timeout_min: Minutes = 1440
    signal_delay_s: Positive = 120
    grace_s: NonNegative = 20
    max_timeouts: NonNegative = 100
    array_parallelism: Positive = 64
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    setup: Annotated[tuple[str, ...], BeforeValidator(_commands)] = ()

    @model_validator(mode="after")
    def _go_together(self) -> Resources:
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise refused(
                "signal_delay_s",
                f"given {self.signal_delay_s}, allowed: less than timeout_min, which "
                f"is {self.timeout_min}, or {60 * self.timeout_min} s",
            )
        if self.grace_s >= self.signal_delay_s:
            raise refused(
                "grace_s",
                f"given {self.grace_s}, allowed: less than signal_delay_s, "
                f"which is {self.signal_delay_s}",
            )
        return self

    @property
    def processes_per_node(self) -> int:
        """Processes on each machine."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)


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


def check_placement(devices: str, nodes: int, resources: Resources) -> None:
    """See that a training's processes are those of its resources; the scheduler starts them.

    Args:
        devices: Lightning's, on each machine.
        nodes: Lightning's machines.
        resources: of the job.

    Raises:
        InputError: they are not.
    """
    if nodes != resources.nodes:
        raise InputError(f"--num_nodes: given {nodes}, but nodes of the job is {resources.nodes}")
    count = len(devices.strip(",").split(",")) if "," in devices else devices
    if str(count) != str(resources.processes_per_node):
        raise InputError(
            f"--devices: given {devices}, but the job starts {resources.processes_per_node} "
            "processes on each node (tasks_per_node, or one per GPU)"
        )


def groups_of(items: Sequence[tuple[T, Resources]]) -> list[tuple[Resources, list[T]]]:
    """Items with their resources, in groups that ask for the same: resource groups, one job array each."""
    groups: dict[str, tuple[Resources, list[T]]] = {}
    for item, resources in items:
        key = config_hash(resources.model_dump())
        groups.setdefault(key, (resources, []))[1].append(item)
    return list(groups.values())
