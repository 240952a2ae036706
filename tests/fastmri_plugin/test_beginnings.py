"""MRI trainings that begin with trained networks, and configurations that are written and read back."""

from __future__ import annotations

import pytest
import torch
import yaml

from fastmri_plugin import shipped
from fastmri_plugin import train as train_script
from fastmri_plugin.task import TASK, TrainConfig
from img2img_recon.support.cli import parse_config
from img2img_recon.support.errors import InputError
from img2img_recon.training.runner import report_nothing, run_task

SMALL = {"challenge": "singlecoil", "accel": 4, "num_workers": 0, "progress": False}


def read(*words: object) -> TrainConfig:
    return parse_config(TrainConfig, [*map(str, words)], models=TASK.models())


def test_a_training_begins_with_the_packages_network(tiny_data, tmp_path):
    data = tiny_data("singlecoil")
    values = SMALL | {"init": "mri-brain-singlecoil", "data_path": data, "run": tmp_path / "run"}
    prepared = TASK.prepare(TASK.resolve(TASK.config(values)), report_nothing)
    assert (prepared.config.model, prepared.config.lr) == ("unrolled_mixer", 3e-3)
    assert prepared.content["init"].startswith("mri-brain-singlecoil@")
    wanted = shipped.load("mri-brain-singlecoil").state_dict()
    found = TASK.build(prepared).module.network.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], weight) for key, weight in wanted.items())
    for change, said in (
        ({"challenge": "multicoil"}, "--challenge: given multicoil, but --init .*for singlecoil"),
        ({"init": "denoise-color"}, "--init: .*: a network of the task denoising; allowed: mri"),
        ({"embed_dims": [8, 8]}, "--init: .*checkpoint of another network .*shape"),
    ):
        with pytest.raises(InputError, match=f"^{said}"):
            TASK.build(TASK.prepare(TASK.resolve(TASK.config(values | change)), report_nothing))


@pytest.mark.slow
def test_a_file_of_a_finished_run_repeats_it_and_another_begins_with_it(tiny_data, tmp_path):
    sizes = {"model": "fastmri_unet", "chans": 2, "num_pool_layers": 2, "max_epochs": 1}
    values = SMALL | sizes | {"data_path": tiny_data("singlecoil"), "run": tmp_path / "run"}
    run_task(TASK, TASK.config({**values, "logger": ["csv"]}))
    assert {path.name for path in (tmp_path / "run/logs").iterdir()} == {"csv-0"}
    again = TASK.resolve(read("--config", tmp_path / "run/config.yaml", "--run", tmp_path / "b"))
    content = TASK.prepare(again, report_nothing).content
    assert content == TASK.prepare(TASK.resolve(TASK.config(values)), report_nothing).content
    begun = TASK.config(SMALL | {"data_path": tiny_data("singlecoil"), "init": tmp_path / "run"})
    prepared = TASK.prepare(TASK.resolve(begun), report_nothing)
    assert prepared.config.options["chans"] == 2
    wanted = shipped.load(tmp_path / "run").state_dict()
    found = TASK.build(prepared).module.unet.state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in wanted.items())


def test_the_size_of_the_images_is_left_to_the_data(tmp_path, capsys):
    words = ["--challenge", "singlecoil", "--data_path", "DIR", "--accel", "4", "8"]
    with pytest.raises(SystemExit):
        train_script.main([*words, "--print_config"])
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    wanted, back = TASK.resolve(read(*words)), TASK.resolve(read("--config", tmp_path / "c.yaml"))
    assert TASK.identity(back) == TASK.identity(wanted)
    assert back.assumed == ("img_size",)
    content = yaml.safe_load(text)
    assert (content["max_epochs"], content["embed_dim"]) == (40, 128)
    assert "img_size" not in content
