"""What a job asks for: checks, times as SLURM writes them, groups."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.resources import Resources, check_placement, placement, resource_groups
from img2img_recon.support.errors import InputError


@pytest.mark.parametrize(
    ("written", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("1:30", 2),  # SLURM: minutes and seconds
        ("24:00:00", 1440),
        ("1:30:00", 90),
        ("0:00:01", 1),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-12:30:30", 2191),
    ],
)
def test_times_as_slurm_takes_them(written, minutes):
    assert Resources(timeout_min=written, signal_delay_s=59, grace_s=1).minutes == minutes


def test_values_that_do_not_go_together():
    with pytest.raises(InputError, match="--signal_delay_s: given 120, allowed: less than"):
        Resources(timeout_min="2")
    with pytest.raises(InputError, match="--grace_s: given 120, allowed: less than"):
        Resources(grace_s=120)
    with pytest.raises(InputError, match="--timeout_min: given 0:00, allowed: 1 or more"):
        Resources(timeout_min="0:00")


def test_processes_are_one_per_gpu_unless_said_otherwise():
    assert Resources().processes_per_node == 1
    assert Resources(gpus_per_node=4).processes_per_node == 4
    assert Resources(gpus_per_node=4, tasks_per_node=2).processes_per_node == 2


@pytest.mark.parametrize(
    ("devices", "nodes", "error"),
    [
        ("2", 1, ""),
        ("0,1", 1, ""),
        ("4", 1, "--devices: given 4"),
        ("2", 2, "--num_nodes: given 2"),
    ],
)
def test_a_trainings_processes_are_those_of_its_resources(devices, nodes, error):
    resources = Resources(gpus_per_node=2)
    assert placement(resources) == {"num_nodes": 1, "devices": "2", "accelerator": "gpu"}
    config = SimpleNamespace(devices=devices, num_nodes=nodes)
    if not error:
        check_placement(config, resources)
        return
    with pytest.raises(InputError, match=error):
        check_placement(config, resources)


def test_equal_resources_are_one_group_in_the_order_of_the_runs():
    asked = [Resources(), Resources(nodes=2), Resources(), Resources(setup=("a",))]
    groups = resource_groups(zip("abcd", asked, strict=True))
    assert [(one.nodes, one.setup, runs) for one, runs in groups] == [
        (1, (), ["a", "c"]),
        (2, (), ["b"]),
        (1, ("a",), ["d"]),
    ]
