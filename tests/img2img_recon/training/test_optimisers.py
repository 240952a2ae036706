"""Optimisers against torch's own, averages of the weights, training for a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from img2img_recon.networks.zoo import build_model
from img2img_recon.training import optimisers
from img2img_recon.training.optimisers import (
    AverageWeights,
    Budget,
    StretchSchedule,
    budget_share,
    make_optimizer,
    one_cycle,
    orthogonalised,
)


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_muon_moves_a_matrix_as_torchs_own_up_to_its_bfloat16(shape):
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(shape))
    theirs.data.copy_(ours.data)
    own = optimisers.Muon([{"params": [ours], "lr": 0.1, "muon": True}])
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0)
    for _ in range(4):
        start = ours.detach().clone()
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
        assert (ours - theirs).abs().max() < 0.05 * (ours - start).abs().max()
        theirs.data.copy_(ours.data)


def test_orthogonalised_matrices_have_the_singular_vectors_of_theirs_and_values_near_one():
    torch.manual_seed(0)
    matrix = torch.randn(12, 30)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonalised(matrix) @ v.T
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-3


def test_the_rest_moves_as_torchs_adamw():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(7))
    theirs = nn.Parameter(ours.detach().clone())
    own = optimisers.Muon([{"params": [ours], "lr": 0.01, "muon": False}])
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0, betas=(0.9, 0.99))
    for _ in range(5):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_takes_the_inner_matrices_and_no_end_of_a_mixer():
    network = build_model("window_mixer", embed_dims=(8, 16), depths=(1, 1, 1))
    optimizer = make_optimizer(network, "muon", 0.02)
    names = {id(p): name for name, p in network.named_parameters()}
    muon, rest = ([names[id(p)] for p in g["params"]] for g in optimizer.param_groups)
    assert len(muon) + len(rest) == len(names)
    assert {"merges.0.weight", "expands.0.weight"} <= set(muon)
    assert {"patch_embed.proj.weight", "output.weight", "output.bias"} <= set(rest)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.002])


def test_the_rate_rises_stays_and_ends_at_nothing():
    shares = [budget_share(one / 1000) for one in range(1001)]
    assert shares[0] < 0.02
    assert max(shares) == shares[20] == shares[700] == 1
    assert shares[850] == pytest.approx(0.5)
    assert shares[1000] == 0 == budget_share(1.5)
    assert budget_share(0.1, 0.9) == 1
    assert budget_share(0.55, 0.9) == pytest.approx(0.5)


def test_a_budget_s_schedule_falls_over_the_part_that_it_was_given():
    budget, (weight,) = Budget(1, cool_down=0.5), nn.Linear(1, 1, bias=False).parameters()
    optimizer = torch.optim.SGD([weight], lr=2.0)
    schedule = budget.schedule(optimizer)["scheduler"]
    for used, rate in ((30, 2), (45, 1), (60, 0)):
        budget.used = used
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_budget_goes_on_from_the_time_that_was_used(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(optimisers.time, "perf_counter", lambda: now[0])
    within = SimpleNamespace(restarted_mid_epoch=False)
    trainer = SimpleNamespace(world_size=1, should_stop=False, fit_loop=within)
    first, second = Budget(1), Budget(1)
    first.on_train_epoch_start(trainer, None)
    for seconds in (20, 15):
        now[0] += seconds
        first.on_before_optimizer_step(trainer, None, None)
        first.on_train_batch_end(trainer, None)
    assert (first.used, trainer.should_stop) == (35, False)

    now[0] = 5000.0  # another process, much later
    second.load_state_dict(first.state_dict())
    # Lightning tells of no start of an epoch that is resumed in its middle.
    second.on_train_start(trainer, None)
    now[0] += 26
    second.on_before_optimizer_step(trainer, None, None)
    second.on_train_batch_end(trainer, None)
    assert (second.used, trainer.should_stop) == (61, True)

    third, trainer.should_stop = Budget(1), False
    third.load_state_dict(second.state_dict())
    third.on_train_start(trainer, None)
    assert trainer.should_stop
    # Broken off before the last validation: one step more leads to it.
    within.restarted_mid_epoch = True
    third.on_train_start(trainer, None)
    assert not trainer.should_stop
    third.on_train_batch_end(trainer, None)
    assert trainer.should_stop


def averaged_steps(callback: AverageWeights, layer: nn.Linear, first: int, last: int) -> None:
    for step in range(first, last):
        with torch.no_grad():
            layer.weight.fill_(step)
        callback.on_train_batch_end(SimpleNamespace(global_step=step), layer)


def test_averages_resume_exactly_and_are_what_a_checkpoint_holds():
    whole, layer = AverageWeights(0.9), nn.Linear(1, 1, bias=False)
    layer.device = torch.device("cpu")
    with torch.no_grad():
        layer.weight.fill_(0)
    whole.on_train_start(None, layer)
    averaged_steps(whole, layer, 1, 7)
    whole.swap(layer)  # as when a checkpoint is written
    kept = {"layer": layer.weight.detach().clone(), "state": whole.state_dict()}
    kept["state"] = {**kept["state"], "other": [one.clone() for one in whole.other]}
    expected = 0.0
    for step in range(1, 7):
        expected += (step - expected) * (1 - min(0.9, (1 + step) / (10 + step)))
    assert float(kept["layer"]) == pytest.approx(expected)
    whole.swap(layer)
    averaged_steps(whole, layer, 7, 12)

    resumed, again = AverageWeights(0.9), nn.Linear(1, 1, bias=False)
    again.device = torch.device("cpu")
    with torch.no_grad():
        again.weight.copy_(kept["layer"])
    resumed.load_state_dict(kept["state"])
    resumed.on_train_start(None, again)
    assert float(again.weight) == 6
    averaged_steps(resumed, again, 7, 12)
    assert torch.equal(resumed.other[0], whole.other[0])


def test_a_run_that_goes_on_with_more_epochs_takes_its_place_in_the_longer_schedule():
    def scheduled(steps: int):
        optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, one_cycle(optimizer, steps)

    short, short_schedule = scheduled(10)
    long, long_schedule = scheduled(20)
    resumed, resumed_schedule = scheduled(20)
    for optimizer, schedule in ((short, short_schedule), (long, long_schedule)):
        for _ in range(9):
            optimizer.step()
            schedule.step()
    checkpoint = {"lr_schedulers": [short_schedule.state_dict()]}
    callback = StretchSchedule()
    callback.on_load_checkpoint(None, None, checkpoint)
    resumed.load_state_dict(short.state_dict())
    resumed_schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    trainer = SimpleNamespace(
        lr_scheduler_configs=[SimpleNamespace(scheduler=resumed_schedule)],
        max_epochs=4,
        world_size=1,
    )
    callback.on_train_start(trainer, None)
    for _ in range(10):
        assert resumed.param_groups[0]["lr"] == pytest.approx(long.param_groups[0]["lr"])
        for optimizer, schedule in ((long, long_schedule), (resumed, resumed_schedule)):
            optimizer.step()
            schedule.step()


@pytest.mark.parametrize(("before", "after"), [(10, 5), (5, 10), (7, 14), (14, 7)])
@pytest.mark.parametrize("broken_off", [0, 3, 7])
def test_other_devices_leave_the_place_in_the_schedule(before, after, broken_off):
    """Six of ten epochs and some steps are done when the number of processes changes, and the steps of an epoch."""
    done = min(broken_off, before - 1)

    def trainer(schedule, world_size):
        configs = [SimpleNamespace(scheduler=schedule)]
        return SimpleNamespace(lr_scheduler_configs=configs, max_epochs=10, world_size=world_size)

    first, schedule = scheduled(10 * before)
    callback = StretchSchedule()
    callback.on_train_start(trainer(schedule, 2), None)
    for _ in range(6 * before + done):
        first.step()
        schedule.step()
    resumed, again = resume(schedule, callback, 10 * after, lambda s: trainer(s, 1))
    share = (6 + min(done, after) / after) / 10
    assert resumed.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - share) / 0.7, rel=0.1)
    # As many steps of the epoch are left out as were done.
    for _ in range(4 * after - min(done, after) - 1):
        resumed.step()
        again.step()
    assert resumed.param_groups[0]["lr"] < 1e-5


def test_one_epoch_that_goes_on_with_more_is_no_change_of_devices():
    def trainer(schedule, epochs):
        configs = [SimpleNamespace(scheduler=schedule)]
        return SimpleNamespace(lr_scheduler_configs=configs, max_epochs=epochs, world_size=1)

    first, schedule = scheduled(2)  # a schedule needs two steps
    callback = StretchSchedule()
    callback.on_train_start(trainer(schedule, 1), None)
    first.step()
    schedule.step()
    resumed, _ = resume(schedule, callback, 5, lambda s: trainer(s, 5))
    straight, other = scheduled(5)
    straight.step()
    other.step()
    assert resumed.param_groups[0]["lr"] == pytest.approx(straight.param_groups[0]["lr"])


def scheduled(steps):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.1)
    return optimizer, one_cycle(optimizer, steps)


def resume(schedule, callback, steps, trainer):
    """A schedule of so many steps at the place that a checkpoint brings."""
    checkpoint = {"lr_schedulers": [schedule.state_dict()]}
    resumed, again = scheduled(steps)
    other = StretchSchedule()
    other.on_load_checkpoint(None, None, checkpoint)
    other.load_state_dict(callback.state_dict())
    again.load_state_dict(checkpoint["lr_schedulers"][0])
    other.on_train_start(trainer(again), None)
    return resumed, again
