"""What a sweep will cost: the runs as a table, with parameters and GPU hours."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from cluster.runs import Sweep
from cluster.tasks import task_of
from img2img_recon.support.errors import InputError
from img2img_recon.training.estimate import Estimate, estimate

SHOWN = 100
ENDS = 5


def estimates(sweep: Sweep) -> list[Estimate]:
    """The cost of each run of a sweep that was just read.

    Raises:
        InputError: a network that cannot be built with its options.
    """
    task = task_of(sweep.task)
    found = []
    for run, config in zip(sweep.runs, sweep.resolved, strict=True):
        try:
            found.append(estimate(task, config))
        except InputError as error:
            raise InputError(f"{sweep.file}: {run.label or run.id}: {error}") from None
    return found


def print_runs(sweep: Sweep) -> None:
    """Print a row per run (of many, the first and last) and what all of them will cost."""
    from rich.console import Console
    from rich.table import Column, Table

    costs = estimates(sweep)
    parameters, hours = (Column(name, justify="right") for name in ("parameters", "GPU hours"))
    table = Table(
        *("id", "task", "network", parameters, "training images", "resources", hours, "differs in"),
        title=f"{sweep.name}: {len(sweep.runs)} runs",
    )
    count = len(sweep.runs)
    for number in range(count) if count <= SHOWN else (*range(ENDS), *range(count - ENDS, count)):
        run, cost, ask = sweep.runs[number], costs[number], sweep.runs[number].resources
        table.add_row(
            run.id,
            run.task,
            sweep.resolved[number].model,
            f"{cost.parameters:,}",
            "all" if cost.train_images is None else f"{cost.train_images:,}",
            f"{ask.nodes} x {ask.gpus_per_node} GPU, {ask.cpus_per_task} CPU, {ask.minutes} min",
            "?" if cost.gpu_hours is None else f"{cost.gpu_hours:.2f}",
            run.label,
        )
        if count > SHOWN and number == ENDS - 1:
            table.add_row(*["..."] * len(table.columns))
    # Into a file or a pipe a table must not be folded at a terminal's width.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for line in _summary(sweep, costs):
        console.print(line, highlight=False)


def _summary(sweep: Sweep, costs: list[Estimate]) -> Iterator[str]:
    """Of all runs: the networks, what they cost."""
    sizes: dict[str, set[int]] = {}
    for config, cost in zip(sweep.resolved, costs, strict=True):
        sizes.setdefault(config.model, set()).add(cost.parameters)
    if len(sweep.runs) > SHOWN:
        for model, found in sizes.items():
            low, high = min(found), max(found)
            yield f"{model}: {low:,} parameters" + (f" to {high:,}" if high > low else "")
    known = [one.gpu_hours for one in costs if one.gpu_hours is not None]
    unknown = f" ({len(costs) - len(known)} runs not estimated)" if len(known) < len(costs) else ""
    yield f"estimated GPU hours: {sum(known):.1f}{unknown}"
