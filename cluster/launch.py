"""One of the project's training commands as one SLURM job, resumed across time-outs and preemption.

python cluster/launch.py --nodes 2 --gpus_per_node 4 --timeout_min 1440 -- \
    fastmri_plugin/train.py --challenge singlecoil --accel 4 --data_path DIR

What stands after `--` is what a person types after `python`. Lightning is told the machines and the processes
on each; everything else is the command's own.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cluster import control, local_queue, slurm_queue
from cluster.folder import SweepFolder
from cluster.grid import DATA_FLAGS, read_site_resources
from cluster.jobs import ScriptJob
from cluster.queues import Cluster
from cluster.resources import Resources, check_placement, placement
from cluster.tasks import PACKAGES, plain
from img2img_recon.support.cli import flag, parse_config, run_script, underscore_flags
from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import config_hash

PROJECT = Path(__file__).resolve().parent.parent
LAUNCHES = Path("launches")


@dataclass(frozen=True, kw_only=True)
class LaunchArguments:
    """Run one training command as one job: launch.py [flags] -- SCRIPT.py [the script's flags]."""

    nodes: int = flag(1, help="machines")
    gpus_per_node: int | None = flag(None, help="GPUs on each; 0 trains on the CPU; default: 0")
    tasks_per_node: int | None = flag(None, help="processes on each; default: one per GPU")
    cpus_per_task: int | None = flag(None, help="cores per process; default: 1")
    mem_gb: float | None = flag(None, help="memory of each machine")
    timeout_min: int | None = flag(None, help="minutes until the job queues again; default: 1440")
    signal_delay_s: int | None = flag(None, help="how long before that it is warned; default: 120")
    grace_s: int | None = flag(None, help="how long it may take to save; default: 20")
    partition: str | None = flag(None, help="as sbatch takes it")
    account: str | None = flag(None, help="as sbatch takes it")
    qos: str | None = flag(None, help="as sbatch takes it")
    constraint: str | None = flag(None, help="as sbatch takes it")
    setup: tuple[str, ...] | None = flag(None, help="shell commands before the training")
    cluster: Cluster = flag("slurm", help="slurm, local or debug")
    folder: Path | None = flag(None, help="records and logs; default: launches/, by the command")
    site: Path | None = flag(None, help="site file with resources; default: cluster_site.yaml")
    dry_run: bool = flag(False, help="print the batch script, submit nothing")


@dataclass(frozen=True)
class Command:
    """A checked training command.

    Attributes:
        module: of the script.
        words: its command line, without the run's folder.
        run_dir: the folder that was asked for, if any.
        id: hash of the script and of what its flags mean, whatever their order.
    """

    module: str
    words: tuple[str, ...]
    run_dir: Path | None
    id: str


def read_command(words: Sequence[str], resources: Resources) -> Command:
    """Check a training command before anything is submitted.

    Raises:
        InputError: no such script, or flags that it refuses.
    """
    if not words:
        raise InputError("after --: nothing given, allowed: a training script and its flags")
    given = Path(words[0])
    path = given if given.is_absolute() else PROJECT / given
    packages = sorted(set(PACKAGES.values()))
    if path.parent.name not in packages or path.parent.parent != PROJECT or not path.is_file():
        allowed = ", ".join(f"{package}/train.py" for package in packages)
        raise InputError(f"after --: given {words[0]}, allowed: {allowed}")
    module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    config_class = getattr(module, "TrainConfig", None)
    if config_class is None or not hasattr(module, "main"):
        raise InputError(f"after --: {words[0]} trains nothing; allowed: the packages' train.py")
    flags = underscore_flags(words[1:])
    names = {word.partition("=")[0] for word in flags if word.startswith("--")}
    for name, value in placement(resources).items():
        if f"--{name}" not in names:
            flags += [f"--{name}", str(value)]
    if not {"--progress", "--no_progress"} & names:
        flags.append("--no_progress")
    config = parse_config(config_class, flags)
    check_placement(config.devices, config.num_nodes, resources, "--")
    if getattr(config, "mode", "train") != "train":
        raise InputError(f"--mode: given {config.mode}, allowed: train")
    for key in DATA_FLAGS:
        folder = getattr(config, key, None)
        if folder is not None and not folder.is_dir():
            raise InputError(f"--{key}: {folder} is not a folder that can be read here")
    script = f"{path.parent.name}.{path.stem}"
    meaning = {key: value for key, value in plain(vars(config)).items() if key != "run_dir"}
    own_id = config_hash({"module": script, "config": meaning, "run_dir": str(config.run_dir)})
    return Command(script, tuple(flags), config.run_dir, own_id)


def launch(command: Command, resources: Resources, cluster: Cluster, folder: SweepFolder) -> str:
    """Submit a command as one job; what became of it, in one line.

    A command that is in the queue, runs or is finished is not submitted again; one that failed is.

    Raises:
        InputError: the cluster or the folder cannot be used.
    """
    run_id = folder.path.name
    if cluster == "slurm":
        slurm_queue.check_slurm()
    else:
        local_queue.check_local(cluster, resources, dashes="--")
    run = folder.run(run_id)
    job = ScriptJob(
        run_id=run_id,
        task=command.module,
        config={},
        sweep_folder=str(folder.path.absolute()),
        grace_s=resources.grace_s,
        requeues=cluster != "debug",
        module=command.module,
        words=(*command.words, "--run_dir", str(run.path.absolute())),
    )
    with folder.lock():
        stored = folder.stored() or {}
        if stored.get("command", command.id) != command.id:
            raise InputError(
                f"--folder: {folder.path} is another command's ({' '.join(stored.get('words', []))}); "
                "give another --folder"
            )
        content = {"command": command.id, "words": list(command.words)}
        folder.claim(run_id, command.module, content)
        run.path.parent.mkdir(parents=True, exist_ok=True)
        if command.run_dir is not None and not run.path.exists():
            command.run_dir.mkdir(parents=True, exist_ok=True)
            run.path.symlink_to(command.run_dir.absolute(), target_is_directory=True)
        state = control.run_states(folder, [run_id])[run_id]
        if state.state in ("pending", "running", "done"):
            return f"{state.state} already {state.detail}".strip()
        with folder.record(run_id).change() as record:
            record.failed, record.failures = False, {}
        if cluster == "slurm":
            slurm_queue.submit_to_slurm(folder, f"{command.module}", resources, {run_id: job})
            return f"submitted as job {folder.submissions()[-1]['jobs'][run_id]}"
        claim = local_queue.claim_locally(folder, [run_id], cluster)

    def told(run_id: str, what: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)

    if cluster == "local":
        local_queue.run_locally(folder, claim, {run_id: (job, resources)}, 1, told)
    else:
        local_queue.run_here(folder, claim, {run_id: job}, told)
    state = control.run_states(folder, [run_id])[run_id]
    return f"{state.state} {state.detail}".strip()


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if words is None else words)
    cut = given.index("--") if "--" in given else len(given)
    arguments = parse_config(LaunchArguments, given[:cut])
    own: dict[str, Any] = {
        item.name: getattr(arguments, item.name)
        for item in fields(Resources)
        if getattr(arguments, item.name, None) is not None
    }
    try:
        resources = Resources(**{**read_site_resources(arguments.site), **own})
    except InputError as error:
        raise InputError(f"--{error}") from None
    command = read_command(given[cut + 1 :], resources)
    folder = SweepFolder(arguments.folder or LAUNCHES / command.id)
    if arguments.dry_run:
        print(slurm_queue.sbatch_header(command.module, resources, 1, folder.logs))
        print("dry run: nothing was submitted")
        return
    print(launch(command, resources, arguments.cluster, folder))
    print(f"run folder: {folder.run(folder.path.name).path}")
    print(f"logs: {folder.logs}")


if __name__ == "__main__":
    run_script(main)
