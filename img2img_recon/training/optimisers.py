"""Optimisers and schedules of every task: Adam, AdamW, Muon; weights' averages; training for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from img2img_recon.training.options import COOL_DOWN

# Layers whose matrices touch pixels or places rather than features; Muon is not for them.
ENDS = {"patch_embed", "patch_expand", "pos_embed", "output", "head"}
REST_SHARE = 0.1  # AdamW's rate beside Muon's
WARM_UP = 0.01  # share of a budget in which the rate rises


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for groups with `muon`, AdamW for the others, as one optimiser.

    `torch.optim.Muon` orthogonalises in bfloat16, which processors without units for it emulate at a
    twentieth of the speed, and Lightning steps one optimiser. So the iteration is in float32 here.

    Args:
        groups: with `params`, `lr` and `muon`; `momentum` is Muon's (Nesterov), `betas` and `eps` are AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"momentum": 0.95, "betas": (0.9, 0.99), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what `closure`, which computes the gradients, returns."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, group)
        return loss

    def _muon(self, matrix: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(grad)
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        direction = orthogonalised(grad.lerp(momentum, group["momentum"]))
        scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        matrix.add_(direction.to(matrix.dtype), alpha=-group["lr"] * scale)

    def _adam(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(grad), "square": torch.zeros_like(grad)}
        state["step"] += 1
        mean = state["mean"].lerp_(grad, 1 - first)
        square = state["square"].mul_(second).addcmul_(grad, grad, value=1 - second)
        size = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, size, value=-group["lr"] / (1 - first ** state["step"]))


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix with all singular values near 1 (0.7 to 1.2), by Newton-Schulz in float32; same shape."""
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def make_optimizer(module: nn.Module, kind: str, lr: float) -> torch.optim.Optimizer:
    """The optimiser that `--optimizer` names.

    Args:
        module: whose parameters it moves.
        kind: "adam", "adamw", or "muon": Muon on the matrices between the first and the last layer, and
            AdamW at a tenth of the rate on the rest.
        lr: the highest rate.
    """
    if kind == "adam":
        return torch.optim.Adam(module.parameters(), lr=lr)
    if kind == "adamw":
        return torch.optim.AdamW(module.parameters(), lr=lr)
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in module.named_parameters():
        inner = parameter.ndim == 2 and not ENDS & set(name.split("."))
        (matrices if inner else rest).append(parameter)
    groups = [
        {"params": matrices, "lr": lr, "muon": True},
        {"params": rest, "lr": lr * REST_SHARE, "muon": False},
    ]
    return Muon([group for group in groups if group["params"]])


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """Linear one-cycle schedule: up to the optimiser's rate over the first 30 %, then down to almost nothing."""
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def budget_share(share: float, cool_down: float = COOL_DOWN) -> float:
    """The rate as a share of the highest, when `share` of the budget is used: up, constant, down to 0.

    Args:
        share: of the budget, what is used.
        cool_down: of the budget, the last part, in which the rate falls linearly.
    """
    return max(0.0, min(1.0, 0.01 + share / WARM_UP, (1 - share) / cool_down))


class Budget(Callback):
    """Ends training after a time and gives the rate by the share of it that is used.

    The clock counts training and loading, not validation, and is part of the checkpoint; of several
    processes the first one's counts.

    Args:
        minutes: the time.
        cool_down: its last part, as a share of it, in which the rate falls.
    """

    def __init__(self, minutes: float, cool_down: float = COOL_DOWN) -> None:
        self.seconds, self.used, self.mark = 60 * minutes, 0.0, 0.0
        self.cool_down = cool_down

    def schedule(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The rate by the time used, as Lightning takes it."""
        schedule = LambdaLR(
            optimizer, lambda _: budget_share(self.used / self.seconds, self.cool_down)
        )
        return {"scheduler": schedule, "interval": "step"}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """End at once where the time was over when the run was broken off.

        Within an epoch one step more, at a rate of 0, leads to the validation that is missing. The clock starts
        here for such an epoch, which begins without `on_train_epoch_start`.
        """
        self.mark = time.perf_counter()
        broken_off = trainer.fit_loop.restarted_mid_epoch
        trainer.should_stop = self.used >= self.seconds and not broken_off

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The clock starts anew after validation."""
        self.mark = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the time since the last step, so that the schedule's next rate knows it."""
        now = time.perf_counter()
        self.used, self.mark = self.used + now - self.mark, now
        if trainer.world_size > 1:
            self.used = trainer.strategy.broadcast(self.used)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Lightning validates, if the epoch is one to validate after, and ends it when it is told to stop."""
        if self.used >= self.seconds:
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1

    def state_dict(self) -> dict[str, Any]:
        """The time used."""
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the time used."""
        self.used = state_dict["used"]


class StretchSchedule(Callback):
    """A run that goes on with more epochs, or other devices, takes its place in the other one-cycle schedule."""

    def __init__(self) -> None:
        self.shorter: int | None = None
        self.per_epoch = 0
        self.world_size: int | None = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave the length of the schedule to the new one."""
        for state in checkpoint.get("lr_schedulers", ()):
            if "total_steps" in state:
                self.shorter = state.pop("total_steps")
                del state["_schedule_phases"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Set the rate, which a checkpoint brings from the shorter schedule."""
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if not isinstance(schedule, OneCycleLR):
                continue
            per_epoch = schedule.total_steps // (trainer.max_epochs or 1)
            before, self.per_epoch = self.per_epoch, per_epoch
            processes, self.world_size = self.world_size, trainer.world_size
            if processes not in (None, trainer.world_size):
                # Other processes take other steps for an epoch; of one that was broken off they leave out as many.
                epochs, steps = divmod(schedule.last_epoch, before)
                schedule.last_epoch = epochs * per_epoch + min(steps, per_epoch)
            elif self.shorter in (None, schedule.total_steps):
                continue
            # One step back and on again: `get_lr` is for `step` alone.
            schedule.last_epoch -= 1
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Optimiser steps of an epoch, and of how many processes."""
        return {"per_epoch": self.per_epoch, "world_size": self.world_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What it was."""
        self.per_epoch = state_dict["per_epoch"]
        self.world_size = state_dict.get("world_size")


class AverageWeights(Callback):
    """An exponential average of the weights: it is what is validated, and what checkpoints hold as weights.

    In a checkpoint the weights that are trained are in this callback's state, so resuming is exact.

    Args:
        decay: of the average for each optimiser step; less in the first steps, (1 + n) / (10 + n) after n.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.other: list[Tensor] = []
        self.resumed = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begin with the weights, or take those that are trained out of what a checkpoint brought."""
        if self.resumed:
            self.other = [one.to(module.device) for one in self.other]
            self.swap(module)
            self.resumed = False
        else:
            self.other = [p.detach().clone() for p in module.parameters()]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Draw the average towards the weights after every optimiser step."""
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for average, weights in zip(self.other, module.parameters(), strict=True):
                average.lerp_(weights, weight)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Put the other of the two sets of weights into the module."""
        for other, weights in zip(self.other, module.parameters(), strict=True):
            kept = weights.clone()
            weights.copy_(other)
            other.copy_(kept)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Validate the average."""
        self.swap(module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Train on with the weights."""
        self.swap(module)

    def state_dict(self) -> dict[str, Any]:
        """The weights that are not in the module, and the steps."""
        return {"other": self.other, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both up."""
        self.other, self.steps, self.resumed = state_dict["other"], state_dict["steps"], True


def configured(
    module: pl.LightningModule,
    kind: str,
    lr: float,
    schedule: Callable[[torch.optim.Optimizer], dict[str, Any]],
) -> Any:
    """What a module's `configure_optimizers` returns; with a budget the rate is by its share.

    Args:
        module: in its trainer.
        kind: see `make_optimizer`.
        lr: the highest rate.
        schedule: the task's own, as Lightning takes it.
    """
    optimizer = make_optimizer(module, kind, lr)
    budgets = [one for one in module.trainer.callbacks if isinstance(one, Budget)]  # type: ignore[attr-defined]
    by_time = budgets[0].schedule if budgets else schedule
    return {"optimizer": optimizer, "lr_scheduler": by_time(optimizer)}
