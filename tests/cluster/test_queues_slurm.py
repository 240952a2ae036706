"""SLURM's queue without SLURM: the batch script, and answers of clusters of all kinds."""

from __future__ import annotations

import pytest

from cluster.queues import make_queue
from cluster.queues.slurm import slurm_states
from cluster.resources import Resources
from cluster.sweep_folder import SweepFolder
from img2img_recon.support.errors import InputError


def test_batch_header_says_what_the_resources_say(tmp_path):
    resources = Resources(
        nodes=2, gpus_per_node=4, cpus_per_task=6, mem_gb=48, timeout_min="90", signal_delay_s=70,
        array_parallelism=3, partition="gpu", account="lab", qos="high", constraint="a100",
        setup=("module load cuda",),
    )  # fmt: skip
    groups = [(resources, list(map(str, range(10))))]
    lines = make_queue("slurm").preview("name", groups, SweepFolder(tmp_path)).splitlines()
    for wanted in (
        "--array=0-9%3", "--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4", "--cpus-per-task=6",
        "--mem=49152M", "--time=90", "--signal=USR2@70", "--partition=gpu", "--account=lab",
        "--qos=high", "--constraint=a100", "--requeue", "--job-name=name",
    ):  # fmt: skip
        assert f"#SBATCH {wanted}" in lines
    assert "module load cuda" in lines
    assert "--kill-on-bad-exit=1 --cpus-per-task=6 --wait=0" in lines[-1]


@pytest.mark.parametrize(
    ("ping", "says"),
    [
        ("Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP", ""),
        ("Slurmctld(primary) at a is DOWN", "its controller does not answer"),
    ],
)
def test_a_cluster_without_accounting_and_with_a_backup(tmp_path, monkeypatch, ping, says):
    answers = {
        "sbatch": "echo slurm 23.02",
        "scontrol": f"printf '{ping}\n'",
        "squeue": "printf '4_1|RUNNING|None\n4_2|FAILED|NonZeroExitCode\n'",
        "sacct": "echo 'Slurm accounting storage is disabled' >&2; exit 1",
    }
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if says:
        with pytest.raises(InputError, match=says):
            slurm_states(["4_1"])
        return
    states = slurm_states(["4_1", "4_2", "4_3"])
    assert states["4_1"].state == "running"
    assert states["4_2"][:2] == ("gone", "FAILED")
    assert states["4_3"][:2] == ("gone", "SLURM knows no such job")
