"""What a job asks of the cluster, and which of a training's flags follow from that."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import config_hash


@dataclass(frozen=True)
class Resources:
    """What one run asks of the cluster; runs of one shape share a job array.

    Attributes:
        nodes: machines.
        gpus_per_node: 0 trains on the CPU.
        tasks_per_node: processes per machine; by default one per GPU, at least one.
        cpus_per_task: cores per process, loader processes included.
        mem_gb: memory per machine; None leaves it to the cluster.
        timeout_min: after so many minutes a run saves, gives way and queues again.
        signal_delay_s: the cluster warns that long before it ends a run.
        grace_s: how long a warned run may go on to reach a step's end; what it has not saved then is
            repeated. Shorter than signal_delay_s and the partition's grace time.
        max_timeouts: times that a run may give way before it is given up.
        array_parallelism: runs of an array at one time.
        partition, account, qos, constraint: as sbatch takes them.
        setup: shell commands before every run.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    tasks_per_node: int | None = None
    cpus_per_task: int = 1
    mem_gb: float | None = None
    timeout_min: int = 1440
    signal_delay_s: int = 120
    grace_s: int = 20
    max_timeouts: int = 100
    array_parallelism: int = 64
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lowest = {"gpus_per_node": 0, "grace_s": 0, "max_timeouts": 0}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, (int, float)) and value < lowest.get(item.name, 1):
                raise InputError(
                    f"{item.name}: given {value}, allowed: {lowest.get(item.name, 1)} or more"
                )
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise InputError(
                f"signal_delay_s: given {self.signal_delay_s}, allowed: less than timeout_min, which "
                f"is {self.timeout_min}, or {60 * self.timeout_min} s"
            )
        if self.grace_s >= self.signal_delay_s:
            raise InputError(
                f"grace_s: given {self.grace_s}, allowed: less than signal_delay_s, "
                f"which is {self.signal_delay_s}"
            )

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
        # A node whose GPU cannot be seen shall say so, not train for days on its processor.
        flags["accelerator"] = "gpu"
    return flags


def check_placement(devices: str, nodes: int, resources: Resources, dashes: str) -> None:
    """See that a training's processes are those of its resources; the scheduler starts them.

    Args:
        devices: Lightning's, on each machine.
        nodes: Lightning's machines.
        resources: of the job.
        dashes: what a flag's name begins with in the error.

    Raises:
        InputError: they are not.
    """
    if nodes != resources.nodes:
        raise InputError(
            f"{dashes}num_nodes: given {nodes}, but nodes of the job is {resources.nodes}"
        )
    count = len(devices.strip(",").split(",")) if "," in devices else devices
    if str(count) != str(resources.processes_per_node):
        raise InputError(
            f"{dashes}devices: given {devices}, but the job starts {resources.processes_per_node} "
            "processes on each node (tasks_per_node, or one per GPU)"
        )


def shape_key(resources: Resources) -> str:
    """Runs with the same key go into one job array."""
    return config_hash(asdict(resources))
