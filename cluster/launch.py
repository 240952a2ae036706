"""One of the project's training commands as one SLURM job, resumed across time-outs and preemption.

python cluster/launch.py --nodes 2 --gpus_per_node 4 --timeout_min 1440 -- \
    fastmri_plugin/train.py --challenge singlecoil --accel 4 --data_path DIR

What stands after `--` is what a person types after `python`. Lightning is told the machines and the processes
on each; everything else is the command's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.queues import DEFAULT_QUEUE, Queue, QueueWord, make_queue
from cluster.resources import Resources, check_placement, placement
from img2img_recon.support.cli import flag, flags_of, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.values import shown

if TYPE_CHECKING:
    from cluster.runs import Sweep
    from cluster.sweep_folder import SweepFolder

PROJECT = Path(__file__).resolve().parent.parent
LAUNCHES = Path("launches")


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """Run one training command as one job: launch.py [flags] -- SCRIPT.py [the script's flags]."""

    cluster: QueueWord = flag(DEFAULT_QUEUE, help="where it runs")
    folder: Path | None = flag(None, help="records and logs; default: launches/, by the command")
    site: Path | None = flag(None, help="site file with resources; default: cluster_site.yaml")
    dry_run: bool = flag(False, help="print what would be submitted, submit nothing")


# What is not given is the site file's or the default.
LaunchArguments: Any = make_dataclass(
    "LaunchArguments",
    [
        (item.name, item.type | None, flag(None, help=item.help, group="cluster"))
        for item in flags_of(Resources).values()
    ],
    bases=(LaunchFlags,),
    frozen=True,
    kw_only=True,
)


def resources_of(arguments: Any) -> Resources:
    """What the site file and the flags ask for.

    Raises:
        InputError: values that do not go together.
    """
    from cluster.sweep_file import read_site

    given = {name: getattr(arguments, name) for name in flags_of(Resources)}
    own = {name: value for name, value in given.items() if value is not None}
    return Resources(**{**read_site(arguments.site)[0], **own})


def _defaults() -> dict[str, str]:
    """What `--help` says."""
    known = {name: item.default for name, item in flags_of(Resources).items()}
    return {name: shown(value) for name, value in known.items() if value not in (None, ())}


def read_command(words: Sequence[str], resources: Resources) -> Sweep:
    """A training command as a sweep of one run, checked before anything is submitted.

    The sweep is named by what the command's flags mean, whatever their order.

    Raises:
        InputError: no such script, or flags that it refuses.
    """
    from cluster.runs import Run, Sweep
    from cluster.tasks import TASKS, TaskFlags, absolute, as_json, task_of
    from img2img_recon.training.run_folder import config_hash

    if not words:
        raise InputError("after --: nothing given, allowed: a training script and its flags")
    given = Path(words[0])
    path = given if given.is_absolute() else PROJECT / given
    packages = {place.partition(".")[0]: word for word, place in TASKS.items()}
    scripts = {PROJECT / package / "train.py": word for package, word in packages.items()}
    if path not in scripts:
        allowed = ", ".join(str(script.relative_to(PROJECT)) for script in scripts)
        raise InputError(f"after --: given {words[0]}, allowed: {allowed}")
    task = task_of(scripts[path])
    config = parse_config(task.config_class, words[1:], models=task.models())
    if getattr(config, "mode", "train") != "train":
        raise InputError(f"--mode: given {config.mode}, allowed: train")
    word = getattr(config, "task", task.name)
    flags = TaskFlags(word)
    values = {**vars(config), **config.options}
    named = {
        name: as_json(absolute(values[name]))
        for name, item in flags.every.items()
        if values.get(name) != item.default and values.get(name) is not None
    }
    complete = {**placement(resources), **named, **flags.own}
    resolved = task_of(word).resolve(task_of(word).config(complete))
    check_placement(resolved, resources)
    own_id = config_hash({"id": flags.run_id(complete), "run": complete.get("run")})
    data_path = complete.get("data_path")
    return Sweep(
        name=f"{word}-{own_id}",
        file=path,
        task=word,
        runs=(Run(own_id, word, complete, {}, {}, resources),),
        data_paths={} if data_path is None else {data_path: "--data_path"},
    )


def launch(sweep: Sweep, words: Sequence[str], queue: Queue, folder: SweepFolder) -> str:
    """Submit a command as one job; what became of it, in one line.

    A command that is in the queue, runs or is finished is not submitted again; one that failed is.

    Raises:
        InputError: the queue or the folder cannot be used.
    """
    from cluster.states import run_states
    from cluster.submission import submit

    stored = folder.stored()
    if stored is not None and stored["name"] != sweep.name:
        other = " ".join(stored.get("words") or [stored["name"]])
        raise InputError(
            f"--folder: {folder.path} is another command's ({other}); give another --folder"
        )
    (run,) = sweep.runs

    taken = submit(sweep, folder, queue, content={"words": list(words)}, again="failed")
    state = run_states(folder, [run.id])[run.id]
    return f"{state.state} {state.detail}" if taken else f"{state.state} already {state.detail}"


@script
def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if words is None else words)
    cut = given.index("--") if "--" in given else len(given)
    arguments = parse_config(
        LaunchArguments,
        given[:cut],
        description=LaunchFlags.__doc__,
        defaults=_defaults,
    )
    from cluster.sweep_folder import SweepFolder

    command = given[cut + 1 :]
    sweep = read_command(command, resources_of(arguments))
    folder = SweepFolder(arguments.folder or LAUNCHES / sweep.name)
    queue = make_queue(arguments.cluster)
    if arguments.dry_run:
        print(queue.preview(sweep.name, sweep.groups, folder))
        print("dry run: nothing was submitted")
        return
    print(launch(sweep, command[1:], queue, folder).strip())
    print(f"run folder: {folder.run(sweep.ids[0]).path}")
    print(f"logs: {folder.logs}")


if __name__ == "__main__":
    main()
