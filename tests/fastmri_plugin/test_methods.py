"""Methods: what any of them must do, what the classical ones choose, and one that a test adds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import fastmri_plugin.reconstruct as reconstruct
from fastmri_plugin import evaluate, export_submission, methods
from fastmri_plugin.compressed_sensing import reconstruct_slice
from fastmri_plugin.demo_data import TINY, make_demo_data
from fastmri_plugin.kspace import zero_filled
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.methods import METHODS, L1Wavelet, TotalVariation, ZeroFilled, make_method
from fastmri_plugin.task import TASK, TrainConfig
from fastmri_plugin.volumes import read_reconstruction, read_slice
from img2img_recon.support.errors import InputError
from img2img_recon.training.runner import run_task

SIZES = dataclasses.replace(TINY, recon=48, readout=96, widths=(64, 40, 56), coils=4)
MASKS = MaskSpec("random", (4,), (0.2,))


@pytest.fixture(scope="module", params=["singlecoil", "multicoil"])
def demo(request, tmp_path_factory):
    """(training volumes, validation volumes) of one challenge."""
    challenge = request.param
    folder = make_demo_data(tmp_path_factory.mktemp("demo"), challenge, sizes=SIZES)
    return tuple(
        list_volumes(folder / f"{challenge}_{split}", challenge) for split in ("train", "val")
    )


def quick(method_class, **options):
    return method_class(**{"regularization": 0.003, "num_iter": 3, "num_workers": 0, **options})


def test_volumes_narrow_ones_included_have_their_image_size(demo):
    _, val = demo
    assert {info.image_size for info in val} == {(48, 48), (40, 40)}
    for method in (ZeroFilled(), quick(TotalVariation), quick(L1Wavelet)):
        found = dict(method.reconstruct(val, MASKS))
        assert list(found) == [info.name for info in val]
        for info in val:
            assert found[info.name].shape == (info.num_slices, *info.image_size)
            assert found[info.name].dtype == np.float32
    info, kspace = val[0], read_slice(val[0].path, 1)
    alone = reconstruct_slice(
        kspace, MASKS.mask_of(info), info.image_size, "l1_wavelet", [0.003], 3
    )
    np.testing.assert_array_equal(found[info.name][1], alone[0])


def test_zero_filled_is_the_networks_input(demo):
    _, val = demo
    found = dict(ZeroFilled().reconstruct(val, MASKS))
    for info in val:
        expected = zero_filled(read_slice(info.path, 0), MASKS.mask_of(info), info.image_size)
        np.testing.assert_array_equal(found[info.name][0], expected)


@pytest.mark.slow
def test_processes_change_nothing_but_the_time(demo, monkeypatch):
    _, val = demo
    if val[0].challenge == "multicoil":
        pytest.skip("one start of the processes is enough")
    monkeypatch.setattr(methods, "POOL_START_SECONDS", 0.0)
    seen = []

    def track(items, description, total):
        for item in items:
            seen.append(total)
            yield item

    pooled, alone = (
        dict(quick(TotalVariation, num_iter=5, num_workers=n).reconstruct(val, MASKS, track))
        for n in (2, 0)
    )
    for name, volume in alone.items():
        np.testing.assert_allclose(pooled[name], volume, rtol=0, atol=1e-5 * volume.max())
    total = sum(info.num_slices for info in val)
    assert seen == [total] * (2 * total)


def test_the_regularization_is_the_best_of_the_candidates(demo):
    train, _ = demo
    candidates = (1e-6, 3e-3, 3.0)
    method = TotalVariation(None, candidates, num_iter=30, num_slices=2, num_workers=0)
    method.choose(train, MASKS)
    scores = method.scores(train, MASKS)
    assert set(scores) == set(candidates)
    assert scores[method.regularization] == max(scores.values())
    assert scores[3.0] < scores[method.regularization]
    again = TotalVariation(None, candidates[::-1], num_iter=30, num_slices=2, num_workers=0)
    assert again.scores(train, MASKS) == scores
    again.settings = json.loads(json.dumps(method.settings))
    assert again.regularization == method.regularization


def test_slices_to_choose_on_come_from_the_middle_of_different_volumes(demo):
    train, _ = demo
    long = [dataclasses.replace(info, kspace_shape=(20, 96, 64)) for info in train]
    chosen = methods.middle_slices(long, 3)
    assert len({info.name for info, _ in chosen}) == 3
    assert all(5 <= index < 15 for _, index in methods.middle_slices(long, 100))
    assert len(set(methods.middle_slices(long, 100))) == 30


def test_errors_say_what_and_where(demo, tmp_path):
    train, val = demo
    with pytest.raises(InputError, match="--method: given ista; allowed: zero_filled, tv"):
        make_method("ista")
    with pytest.raises(InputError, match="tv: the regularization is None"):
        list(TotalVariation().reconstruct(val, MASKS))
    with pytest.raises(InputError, match="the regularization is -1"):
        TotalVariation(None, (0.1, -1)).choose(train, MASKS)
    with pytest.raises(InputError, match="given none"):
        TotalVariation().choose([], MASKS)
    bad = tmp_path / val[0].name
    bad.write_bytes(val[0].path.read_bytes())
    with h5py.File(bad, "r+") as volume:
        slice_ = volume["kspace"][1]
        slice_[..., 0, 0] = np.nan
        volume["kspace"][1] = slice_
        mask = np.zeros(volume["kspace"].shape[-1])
        mask[: len(mask) // 2] = 1
        volume["mask"] = mask
    (info,) = list_volumes(tmp_path, val[0].challenge)
    for method in (ZeroFilled(), quick(TotalVariation, num_iter=1)):
        with pytest.raises(InputError, match=rf"{bad.name}: slice 1: .*NaN"):
            list(method.reconstruct([info], MASKS))


class Halved(ZeroFilled):
    """What somebody adds: half of the zero-filled image."""

    name = "halved"

    def image(self, kspace, mask, size):
        return super().image(kspace, mask, size) / 2


@pytest.mark.slow
def test_a_method_of_ones_own_is_scored_drawn_and_exported(
    tiny_data, tmp_path, monkeypatch, capsys
):
    """One class and one row: a training's baseline, an evaluation, a reconstruction, a submission."""
    monkeypatch.setitem(METHODS, "halved", Halved)
    drawn: dict[str, object] = {}
    monkeypatch.setattr(
        "fastmri_plugin.results.reconstruction_panel",
        lambda path, images, target, title: drawn.update(images),
    )
    data = tiny_data("singlecoil")
    config = TrainConfig(
        challenge="singlecoil",
        data_path=data,
        run=tmp_path / "run",
        options={"embed_dim": 8, "depth": 1, "mlp_ratio": 1},
        max_epochs=1,
        num_workers=0,
        accelerator="cpu",
        progress=False,
        baselines=("zero_filled", "halved"),
    )
    metrics = run_task(TASK, config)
    assert list(metrics["volumes"]) == ["zero_filled", "halved", "img2img_mixer"]
    assert metrics["mean"]["halved"]["nmse"] > metrics["mean"]["zero_filled"]["nmse"]
    assert list(drawn) == ["zero_filled", "halved", "img2img_mixer"]

    words = ["--challenge", "singlecoil", "--data_path", str(data), "--no_progress"]
    table = tmp_path / "scores.json"
    evaluate.main([*words, "--method", "halved", "--method", "zero_filled", "--json", str(table)])
    printed = capsys.readouterr().out
    assert "halved" in printed
    found = json.loads(table.read_text())["methods"]
    name = next(iter(metrics["volumes"]["halved"]))
    assert found["halved"]["volumes"][name]["nmse"] == metrics["volumes"]["halved"][name]["nmse"]

    reconstruct.main([*words, "--method", "halved", "--method", "zero_filled",
                      "--out", str(tmp_path / "out")])  # fmt: skip
    for path in sorted((tmp_path / "out" / "halved").iterdir()):
        whole = read_reconstruction(tmp_path / "out" / "zero_filled" / path.name)
        np.testing.assert_array_equal(2 * read_reconstruction(path), whole)

    # Half the intensity is the least that the check of submissions lets through.
    monkeypatch.setattr("fastmri_plugin.submission.ALLOWED_RATIO", (0.4, 2.0))
    zip_file = tmp_path / "halved.zip"
    export_submission.main([*words, "--method", "halved", "--out", str(zip_file)])
    assert "valid submission" in capsys.readouterr().out
    assert Path(zip_file).exists()
