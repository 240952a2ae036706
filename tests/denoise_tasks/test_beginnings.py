"""Trainings that begin with trained networks, and configurations that are written and read back."""

from __future__ import annotations

import csv

import pytest
import torch
import yaml

from denoise_tasks import train as train_script
from denoise_tasks.options import TrainConfig
from denoise_tasks.task import TASKS
from img2img_recon.support.cli import parse_config
from img2img_recon.support.errors import InputError
from img2img_recon.trained import load, load_checkpoint
from img2img_recon.weights_file import read_weights
from tests.denoise_tasks.conftest import gaussian, make_run, prepare, train

GAUSSIAN = TASKS["gaussian"]
SHIPPED = {"init": "denoise-color", "crop_size": 32, "options": {}}


def read(*words: object) -> TrainConfig:
    return parse_config(TrainConfig, [*map(str, words)], models=GAUSSIAN.models())


def trained_weights(source) -> dict[str, torch.Tensor]:
    return load(source).state_dict()


def assert_begins_with(prepared, weights: dict[str, torch.Tensor]) -> None:
    found = GAUSSIAN.build(prepared).module.network.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weight) for key, weight in weights.items())


def test_a_training_begins_with_the_packages_network(photos, tmp_path):
    prepared = prepare(gaussian(photos, tmp_path / "run", sigma=None, **SHIPPED))
    config = prepared.config
    assert (config.model, config.sigma, config.protocol) == ("window_mixer", (0, 75), "standard")
    assert config.options["embed_dims"] == [48, 128]
    assert_begins_with(prepared, trained_weights("denoise-color"))
    assert prepared.content["init"] == config.init
    assert GAUSSIAN.resolve(config) == config
    given = gaussian(photos, None, sigma=25, protocol="paper", **SHIPPED)
    assert (GAUSSIAN.resolve(given).sigma, GAUSSIAN.resolve(given).protocol) == (25, "paper")


@pytest.mark.slow
def test_a_run_goes_on_from_another_and_its_file_repeats_it(photos, tmp_path):
    train(gaussian(photos, tmp_path / "first", max_epochs=1))
    weights = trained_weights(tmp_path / "first")
    given = gaussian(photos, tmp_path / "second", max_epochs=1, init=str(tmp_path / "first"))
    prepared = prepare(given)
    assert_begins_with(prepared, weights)
    assert prepared.content != prepare(gaussian(photos, None, max_epochs=1)).content
    train(given)
    # What resumes has the weights of its own checkpoint.
    train(gaussian(photos, tmp_path / "second", init=prepared.config.init))
    (table,) = tmp_path.glob("second/logs/csv-*/metrics.csv")
    epochs = [row["epoch"] for row in csv.DictReader(table.open())]
    assert epochs == sorted(epochs)
    assert set(epochs) == {"0", "1"}
    again = read("--config", tmp_path / "second/config.yaml", "--run", tmp_path / "again")
    stored = load_checkpoint(tmp_path / "second/checkpoints/last.ckpt")["run_config"]
    assert prepare(again).content == stored
    # Another network in the place of the first is another beginning.
    (tmp_path / "first/checkpoints/best.ckpt").unlink()
    make_run(tmp_path / "other")
    (tmp_path / "other/checkpoints/best.ckpt").rename(tmp_path / "first/checkpoints/best.ckpt")
    with pytest.raises(
        InputError, match=r"^--init: .*first has changed: its hash is \w{10}, it was"
    ):
        prepare(again)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"init": "denoise-colour"}, "--init: there is no network .*did you mean 'denoise-color'"),
        ({"init": "noise.safetensors"}, "--init: there is no network 'noise.safetensors'"),
        ({"init": "mri-brain-singlecoil"}, "--init: .*: a network of the task mri; allowed: deno"),
        ({"init": "denoise-grey"}, "--channels: given 3, allowed with --init denoise-grey.*: 1"),
        ({"model": "unet"}, "--model: given unet, but --init denoise-color is a window_mixer"),
        ({"residual": False}, "--init: denoise-color.* was trained with --residual"),
        ({"options": {"embed_dims": (8, 8)}}, "--init: .*checkpoint of another network .*shape"),
        ({"options": {"chans": 8}}, "window_mixer has no option 'chans'"),
    ],
)
def test_beginnings_that_do_not_fit(photos, tmp_path, flags, said):
    with pytest.raises(InputError, match=f"^{said}") as caught:
        GAUSSIAN.build(prepare(gaussian(photos, tmp_path / "run", **{**SHIPPED, **flags})))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_pairs_refuse_a_network_that_is_told_the_level():
    words = ("--task", "pairs", "--data_path", "PAIRS", "--init", "denoise-color")
    with pytest.raises(InputError, match=r"noise_level_plane \(of --init too\)"):
        TASKS["pairs"].resolve(read(*words))


def test_hashes_are_those_of_the_files():
    from hashlib import sha256

    from img2img_recon.trained import shipped

    digest = sha256(shipped()["denoise-color"].read_bytes()).hexdigest()
    config = GAUSSIAN.resolve(GAUSSIAN.config({"init": "denoise-color"}))
    assert config.init == f"denoise-color@{digest[:10]}"
    assert read_weights(shipped()["denoise-color"])[0]["options"].items() <= config.options.items()


@pytest.mark.parametrize(
    "words",
    [
        "--task gaussian",
        "--task gaussian --data_path PHOTOS --sigma 0 75 --model window_mixer --ema 0.999",
        "--task gaussian --data_path PHOTOS --max_epochs 7 --fixed_noise --no_residual --channels 1",
        "--task gaussian --data_path PHOTOS --init denoise-color --budget_min 3 --logger csv",
        "--task pairs --data_path PAIRS --val_scenes kitchen --val_images null --model unet",
    ],
)
def test_what_print_config_prints_is_the_run_with_every_default_settled(words, tmp_path, capsys):
    given = read(*words.split())
    task = TASKS[given.task]
    wanted = task.resolve(given)
    with pytest.raises(SystemExit) as ended:
        train_script.main([*words.split(), "--print_config"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    back = task.resolve(read("--config", tmp_path / "c.yaml"))
    assert task.identity(back) == task.identity(wanted)
    assert yaml.safe_load(text)["lr"] == wanted.lr
    lines = text.splitlines()
    place = lines.index(f"max_epochs: {wanted.max_epochs}")
    assert lines[place - 1] == "# epochs [a whole number above 0]"


def test_print_config_without_a_task_leaves_it_open(capsys):
    with pytest.raises(SystemExit):
        train_script.main(["--print_config"])
    text = capsys.readouterr().out
    assert "# task: (to be given)" in text.splitlines()
    assert yaml.safe_load(text)["sigma"] == 30
