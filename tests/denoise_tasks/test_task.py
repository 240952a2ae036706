"""What a denoising configuration means before any data are read: recipes, refusals, costs, identity."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from skimage.data import coffee

from denoise_tasks.options import LAPTOP_NETWORKS, TrainConfig
from denoise_tasks.task import TASKS
from img2img_recon.networks.base import count_parameters
from img2img_recon.networks.zoo import build_model
from img2img_recon.support.cli import parse_config
from img2img_recon.support.errors import InputError
from img2img_recon.training.estimate import estimate
from img2img_recon.training.task import Workload
from tests.denoise_tasks.conftest import prepare

GAUSSIAN, PAIRS = TASKS["gaussian"], TASKS["pairs"]


def resolved(task: str = "gaussian", **values) -> TrainConfig:
    return TASKS[task].resolve(TASKS[task].config(values))


def test_tasks_are_imported_without_what_trains():
    heavy = ("torch", "pytorch_lightning", "fastmri", "numpy", "skimage")
    code = f"import sys, denoise_tasks.task; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_published_settings_are_the_defaults():
    """arXiv:2202.02018 and its code."""
    config = resolved(data_path="photos")
    assert (config.lr, config.batch_size, config.crop_size) == (1e-3, 12, 256)
    assert (config.max_epochs, config.halve_at_epoch) == (60, 50)
    assert (config.protocol, config.sigma, config.residual) == ("paper", 30, True)
    assert (config.augment, config.crops_per_image, config.gradient_clip_val) == (False, 1, None)
    assert resolved(data_path="photos", max_epochs=12).halve_at_epoch == 10
    assert resolved(data_path="photos", max_epochs=12, halve_at_epoch=3).halve_at_epoch == 3
    pairs = resolved("pairs", data_path="SIDD")
    assert (pairs.lr, pairs.batch_size, pairs.crop_size) == (5e-4, 8, 256)
    assert (pairs.max_epochs, pairs.halve_at_epoch) == (100, 50)
    assert (pairs.protocol, pairs.sigma, pairs.residual) == ("standard", None, True)
    assert (pairs.augment, pairs.val_scenes) == (False, None)
    for one in (config, pairs):
        assert one.options["img_size"] == [256, 256]
        parameters = count_parameters(build_model(one.model, **one.options))
        assert parameters == 3_443_456, "the paper's mixer"


def test_without_data_a_laptop_trains_in_minutes():
    for model, options in LAPTOP_NETWORKS.items():
        config = resolved(model=model)
        assert (config.max_epochs, config.crop_size, config.protocol) == (12, 64, "standard")
        assert (config.augment, config.halve_at_epoch) == (True, 0)
        assert options.items() <= config.options.items()
    assert resolved(embed_dim=8).options["embed_dim"] == 8


@pytest.mark.parametrize("task", TASKS)
def test_settling_what_is_settled_changes_nothing(task):
    values = {"data_path": "data", "max_epochs": 7, "embed_dim": 32}
    once = resolved(task, **values)
    assert TASKS[task].resolve(once) == once
    options = {k: v for k, v in once.options.items() if k not in ("in_chans", "out_chans")}
    assert TASKS[task].resolve(TASKS[task].config({**options, **values})) == once


def test_options_follow_the_crop_and_the_channels():
    config = resolved(data_path="photos", crop_size=100, channels=1)
    assert config.options["img_size"] == [100, 100]
    assert (config.options["in_chans"], config.options["out_chans"]) == (1, 1)
    assert resolved(model="multires_mixer", crop_size=100).options["img_size"] == [128, 128]
    with pytest.raises(InputError, match=r"patch_size.* 8, but the images are 6 x 6"):
        resolved(crop_size=6, patch_size=8)


@pytest.fixture(scope="module")
def large_pairs(tmp_path_factory) -> Path:
    """A pair as large as a crop by default, in each of two scenes."""
    root = tmp_path_factory.mktemp("large")
    for scene in ("desk", "tree"):
        for side in ("noisy", "clean"):
            (root / scene).mkdir(exist_ok=True)
            Image.fromarray(coffee()[:256, :256]).save(root / scene / f"1_{side}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", GAUSSIAN.models())
def test_what_is_estimated_is_what_is_trained(task, model, large_pairs):
    """With the required flags alone, which for pairs are their folder."""
    required = {"data_path": str(large_pairs)} if task == "pairs" else {}
    given = TASKS[task].config({"model": model, "progress": False, **required})
    parts = TASKS[task].build(prepare(given))
    stated = estimate(TASKS[task], TASKS[task].resolve(given)).parameters
    assert stated == count_parameters(parts.module)


def test_how_much_is_trained():
    """Every crop of every image in every epoch, where the images are known."""
    builtin = resolved(max_epochs=3, crops_per_image=5)
    assert GAUSSIAN.workload(builtin) == Workload((64, 64), 7, 7 * 5 * 3)
    known = resolved(data_path="photos", train_images=40, crops_per_image=2, max_epochs=3)
    assert GAUSSIAN.workload(known) == Workload((256, 256), 40, 240)
    unknown = Workload((256, 256), None, None)
    assert GAUSSIAN.workload(resolved(data_path="photos")) == unknown
    sidd = resolved("pairs", data_path="SIDD", train_images=10, max_epochs=2)
    assert PAIRS.workload(sidd) == Workload((256, 256), 10, 10 * 64 * 2)
    assert PAIRS.workload(resolved("pairs", data_path="SIDD")).presented is None


def test_the_stated_crops_are_those_of_an_epoch():
    given = GAUSSIAN.config({"crops_per_image": 3, "max_epochs": 1, "progress": False})
    prepared = prepare(given)
    assert len(prepared.train) == GAUSSIAN.workload(prepared.config).presented
    assert prepared.train_images == GAUSSIAN.workload(prepared.config).train_images


def test_gpu_hours_grow_with_the_crops():
    one, two = (
        estimate(GAUSSIAN, resolved(data_path="p", train_images=100, crops_per_image=crops))
        for crops in (1, 2)
    )
    assert two.gpu_hours == pytest.approx(2 * one.gpu_hours)
    # 98 images a second on the card that was measured, three passes for a step
    hours = 60 * 100 * 3 / 98 / 3600
    assert one.gpu_hours == pytest.approx(hours)


def test_identity_says_what_the_run_is():
    config = resolved(data_path="photos", num_workers=3, skip_small=True)
    content = GAUSSIAN.identity(config)
    assert content["task"] == "gaussian"
    assert content["wrapper"] == "residual"
    assert content["data_path"] == str(Path("photos").resolve())
    assert (
        GAUSSIAN.identity(replace(config, num_workers=9, skip_small=False, run=Path("r")))
        == content
    )
    # A run of a release before a flag is the same run with its default.
    assert not {"init", "cool_down"} & content.keys()
    plain = GAUSSIAN.identity(resolved(data_path="photos", residual=False))
    assert plain["wrapper"] == "plain"
    for change in ({"seed": 1}, {"sigma": 25.0}, {"data_path": Path("other")}, {"cool_down": 0.5}):
        assert GAUSSIAN.identity(replace(config, **change)) != content
    folder = GAUSSIAN.default_run(config, content)
    assert folder.name.startswith("gaussian-30-img2img_mixer-")
    assert (
        GAUSSIAN.default_run(replace(config, seed=1), GAUSSIAN.identity(replace(config, seed=1)))
        != folder
    )


def test_a_cool_down_is_a_part_of_a_budget():
    assert resolved(data_path="photos", budget_min=5, cool_down=0.9).cool_down == 0.9
    with pytest.raises(InputError, match=r"--cool_down: given 0\.9, needs --budget_min"):
        resolved(data_path="photos", cool_down=0.9)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--task gaussian --sigma -3", "--sigma: given -3"),
        ("--task gaussian --sigma 0", "--sigma: given 0"),
        ("--task gaussian --sigma 256", "--sigma: given 256"),
        ("--task gaussian --sigma 0.1", r"given 0.1, .* grey levels; .* That is --sigma 25.5"),
        ("--task gaussian --sigma 0 0.2", "That is --sigma 51"),
        ("--task gaussian --sigma nan", "--sigma: given nan"),
        ("--task gaussian --sigma inf", "--sigma: given inf"),
        ("--task gaussian --test_share 1", "--test_share: given 1"),
        ("--task gaussian --val_share 0", "--val_share: given 0"),
        ("--task gaussian --crops_per_image 0", "--crops_per_image: given 0"),
        ("--task gaussian --model resnet", "--model: given resnet"),
        ("--task sidd --data_path p", "--task: given sidd"),
        ("--sigma 30", "--task: missing"),
        ("--task gaussian --test_share 0.1", "--test_share: the photographs of scikit-image"),
        ("--task gaussian --val_scenes 6", "--val_scenes: only for --task pairs"),
        ("--task pairs", "--data_path: missing; --task pairs needs"),
        ("--task pairs --data_path p --sigma 3", "--sigma: only for --task gaussian"),
        ("--task pairs --data_path p --crops_per_image 3", "--crops_per_image: only for"),
        ("--task pairs --data_path p --protocol paper", "--protocol: only for --task gaussian"),
        ("--task pairs --data_path p --fixed_noise", "--fixed_noise: only for --task gaussian"),
    ],
)  # fmt: skip
def test_flags_that_are_refused(words, said):
    def read() -> None:
        given = parse_config(TrainConfig, words.split(), models=GAUSSIAN.models())
        TASKS[given.task].resolve(given)

    with pytest.raises(InputError, match=said) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_model_that_there_is_not():
    with pytest.raises(InputError, match="--model: given resnet, allowed: img2img_mixer, "):
        GAUSSIAN.resolve(TrainConfig(task="gaussian", model="resnet"))
