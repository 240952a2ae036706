"""Networks trained for equal processor time, one after the other, and the table of what they score.

What is counted is this process's processor time in training, so that other work on the machine costs nobody anything
but cache. A trial that is done is kept, the same command goes on with the rest.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from img2img_recon.support.files import writable_folder, write_json
from img2img_recon.training.optimisers import budget_share, make_optimizer

EMA = 0.999
SCORED_AT = (0.25, 0.5, 1.0)

Scores = dict[str, float]
Report = dict[str, Any]


def train_for(
    seconds: float,
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    score: Callable[[nn.Module], Scores],
    optimizer: str,
    lr: float,
    ema: bool = True,
    clip: float | None = None,
) -> tuple[nn.Module, Report]:
    """Train a network for so many seconds of processor time.

    Args:
        seconds: of this process, scoring left out.
        network: is changed.
        loss: of a new batch.
        score: of a network in evaluation mode, by name.
        optimizer: see `make_optimizer`, as `lr`.
        lr: rises, stays and falls with the time that is used.
        ema: score the weights' average.
        clip: norm that gradients are clipped to.

    Returns:
        The network that was scored, and parameters, steps, (seconds, scores) in between, scores at the end.
    """
    average = copy.deepcopy(network).eval()
    optimiser = make_optimizer(network, optimizer, lr)
    rates = [group["lr"] for group in optimiser.param_groups]
    curve: list[tuple[float, Scores]] = []
    used, steps, scored = 0.0, 0, average if ema else network
    while used < seconds:
        begin = time.process_time()
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * budget_share(used / seconds)
        optimiser.zero_grad()
        loss(network).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimiser.step()
        steps += 1
        decay = min(EMA, (10 + steps) / (100 + steps))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(weight, 1 - decay)
            for kept, value in zip(average.buffers(), network.buffers(), strict=True):
                kept.copy_(value)
        used += time.process_time() - begin
        if used >= seconds * SCORED_AT[len(curve)]:
            with torch.inference_mode():
                curve.append((used, score(scored.eval())))
            network.train()
    return scored, {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "steps": steps,
        "curve": curve,
        **curve[-1][1],
    }


def run_trials(
    out: Path, names: Iterable[str], chosen: tuple[str, ...], run: Callable[[str], Report]
) -> None:
    """Run what is missing in the folder `out` of the trials that begin with the words chosen, and print all.

    Args:
        out: where reports are kept.
        names: of all trials.
        chosen: words; none chooses all.
        run: makes a trial's report; numbers that are not `parameters` or `steps` are scores.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    writable_folder(out, "--out")
    kept = out / "trials.json"
    done: dict[str, Report] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in names:
        if name in done or (chosen and not name.startswith(chosen)):
            continue
        done[name] = run(name)
        write_json(kept, done)
        print(f"{name}: {_scores(done[name])}", flush=True)
    first = next(iter(done.values()), {})
    table = Table("trial", "parameters", "steps", *_scores(first))
    for name, row in done.items():
        figures = (f"{value:.4g}" for value in _scores(row).values())
        table.add_row(name, f"{row['parameters']:,}", f"{row['steps']:,}", *figures)
    Console(width=110).print(table)


def _scores(report: Report) -> Scores:
    return {
        name: value
        for name, value in report.items()
        if name not in ("parameters", "steps", "curve")
    }
