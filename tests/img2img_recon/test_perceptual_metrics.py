"""Scores beside PSNR and SSIM: the libraries' own numbers, the order of noise, the columns of both scripts."""

from __future__ import annotations

import csv
import importlib.util
import json

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torchmetrics.functional.image import visual_information_fidelity

from denoise_tasks import evaluate as denoise_script
from fastmri_plugin import evaluate as mri_script
from fastmri_plugin.scoring import score_volume
from img2img_recon.perceptual_metrics import make_scores
from img2img_recon.support.errors import InputError

CLEAN = astronaut()[100:164, 180:260].astype(np.float32) / 255


def noisy(sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma / 255, CLEAN.shape)
    return (CLEAN + noise).clip(0, 1).astype(np.float32)


def test_vif_is_torchmetrics_of_grey_levels_and_falls_with_the_noise():
    vif = make_scores(("psnr", "vif", "vif"))["vif"]
    found = [vif(CLEAN[None], noisy(sigma)[None]) for sigma in (0, 5, 15, 50)]
    assert found[0] == pytest.approx(1, abs=1e-4)
    assert found == sorted(found, reverse=True)
    images = (torch.tensor(255 * image).permute(2, 0, 1)[None] for image in (noisy(15), CLEAN))
    assert found[2] == pytest.approx(float(visual_information_fidelity(*images)), rel=1e-4)
    both = vif(np.stack([CLEAN, CLEAN]), np.stack([noisy(5), noisy(15)]))
    assert both == pytest.approx((found[1] + found[2]) / 2)


def test_a_volume_is_scored_by_its_slices_over_the_targets_maximum():
    target, estimate = (3e-5 * image[:, :64].transpose(2, 0, 1) for image in (CLEAN, noisy(15)))
    scores = score_volume(target, estimate, make_scores(("vif",)))
    assert list(scores) == ["mse", "nmse", "psnr", "ssim", "vif"]
    slices = [torch.tensor(255 / target.max() * v).clamp(0, 255) for v in (estimate, target)]
    wanted = visual_information_fidelity(*(v[:, None] for v in slices))
    assert scores["vif"] == pytest.approx(float(wanted), rel=1e-4)


def test_what_is_missing_or_too_small_is_one_line():
    if importlib.util.find_spec("piq") is None:
        with pytest.raises(InputError, match=r"^--metrics: haarpsi needs the package piq .*; pip "):
            make_scores(("haarpsi",))
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(InputError, match=r"^--metrics: lpips needs the package torchvision "):
            make_scores(("lpips",))
    small = CLEAN[None, :40, :40]
    with pytest.raises(InputError, match=r"^--metrics: vif of 40 x 40 pixels: .*41x41") as caught:
        make_scores(("vif",))["vif"](small, small)
    assert "\n" not in str(caught.value)


def test_the_columns_of_denoising(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.fromarray((255 * CLEAN).astype(np.uint8)).save(tmp_path / "photos/one.png")
    words = ["--method", "tv", "--data_path", tmp_path / "photos", "--sigma", 25, "--panels", 0]
    for name, more in (("usual", ()), ("more", ("--metrics", "vif"))):
        out = ("--out", tmp_path / name, "--no_progress")
        denoise_script.main([*map(str, (*words, *more, *out))])
    with (tmp_path / "more/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-3:] == ["psnr", "ssim", "vif"]
    vif = {row["method"]: float(row["vif"]) for row in rows}
    assert 0 < vif["noisy"] < 1
    content = json.loads((tmp_path / "more/results.json").read_text())
    means = {row["method"]: row["vif"] for row in content["results"][0]["means"]}
    assert means == pytest.approx(vif, abs=1e-5)
    table = (tmp_path / "more/results.md").read_text()
    assert "| method | images | PSNR (dB) | SSIM | VIF |" in table
    assert "VIF: pixel domain" in table
    assert "VIF" in capsys.readouterr().out
    usual = (tmp_path / "usual/results.csv").read_text().splitlines()
    assert usual[0] == "data,protocol,image,method,psnr,ssim"


def test_the_columns_of_mri(tmp_path, capsys):
    files = {("t", "reconstruction_rss"): CLEAN, ("p", "reconstruction"): noisy(15)}
    for (folder, key), image in files.items():
        (tmp_path / folder).mkdir()
        with h5py.File(tmp_path / folder / "a.h5", "w") as file:
            file[key] = image[:, :64].transpose(2, 0, 1)
    words = ["--target_path", tmp_path / "t", "--predictions_path", tmp_path / "p", "--no_progress"]
    more = ("--challenge", "multicoil", "--metrics", "vif", "--json", tmp_path / "scores.json")
    mri_script.main([*map(str, (*words, *more))])
    assert "VIF" in capsys.readouterr().out
    content = json.loads((tmp_path / "scores.json").read_text())
    assert 0 < content["groups"][0]["mean"]["vif"] < 1
    assert set(content["groups"][0]["std"]) == {"mse", "nmse", "psnr", "ssim", "vif"}
