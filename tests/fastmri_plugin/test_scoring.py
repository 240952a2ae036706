"""Scores of volumes: `fastmri.evaluate` as oracle."""

import json
from argparse import Namespace

import fastmri.evaluate
import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fastmri_plugin.score_tables import group_scores, scores_json, scores_table, summarise
from fastmri_plugin.scoring import (
    ScoredVolume,
    find_targets,
    score_folders,
    score_volume,
)
from img2img_recon.support.errors import InputError

KEY = "reconstruction_rss"
# name: target shape, acquisition, acceleration
VOLUMES = {
    "a.h5": ((3, 48, 40), "AXT2", 4),
    "b.h5": ((2, 40, 40), "AXT2", 8),
    "c.h5": ((4, 40, 40), "AXFLAIR", 8),
}


def images(seed, shape, scale=1e-4):
    noise = np.random.default_rng(seed).random(shape)
    return (gaussian_filter(noise, (0, 2, 2)) * scale).astype(np.float32)


def write_target(path, target, acquisition="AXT2", acceleration=None, kspace_width=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as volume:
        volume[KEY] = target
        volume.attrs["acquisition"] = acquisition
        if acceleration is not None:
            volume.attrs["acceleration"] = acceleration
        if kspace_width is not None:
            shape = (len(target), 2, 96, kspace_width)
            volume.create_dataset("kspace", shape=shape, dtype=np.complex64)


def write_prediction(path, prediction):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as volume:
        volume["reconstruction"] = prediction


@pytest.fixture
def folders(tmp_path):
    targets, predictions = tmp_path / "targets", tmp_path / "predictions"
    for number, (name, (shape, acquisition, acceleration)) in enumerate(VOLUMES.items()):
        target = images(number, shape)
        write_target(targets / name, target, acquisition, acceleration)
        write_prediction(predictions / name, target + 0.1 * images(number + 10, shape))
    return targets, predictions


def fastmri_means(targets, predictions, acquisition=None, acceleration=None):
    args = Namespace(
        target_path=targets,
        predictions_path=predictions,
        acquisition=acquisition,
        acceleration=acceleration,
    )
    return fastmri.evaluate.evaluate(args, KEY)


def test_every_row_has_fastmris_figures(folders):
    rows = {row.label: row for row in group_scores(score_folders(*folders, "multicoil"))}
    assert list(rows) == ["all", "AXFLAIR", "AXT2", "4x", "8x", "AXFLAIR 8x", "AXT2 4x", "AXT2 8x"]
    for row in rows.values():
        theirs = fastmri_means(*folders, row.acquisition, row.acceleration)
        for name, expected in theirs.means().items():
            found = row.mean[name.lower()]
            assert found == pytest.approx(float(np.squeeze(expected)), rel=1e-6, abs=0)
        if row.volumes > 1:
            for name, expected in theirs.stddevs().items():
                found = row.std[name.lower()]
                # Theirs is the spread of float32 SSIMs, each within 1e-6 of ours.
                slack = 1e-6 if name == "SSIM" else 0
                assert found == pytest.approx(float(np.squeeze(expected)), rel=1e-5, abs=slack)
    assert rows["8x"].volumes == 2
    assert rows["4x"].std["ssim"] == 0


def test_a_narrow_volume_is_scored_on_its_own_square(tmp_path):
    targets, predictions = tmp_path / "t", tmp_path / "p"
    target = images(0, (2, 40, 40))
    prediction = target[:, 4:36, 4:36] * 1.05
    write_target(targets / "n.h5", target, kspace_width=32)
    write_prediction(predictions / "n.h5", prediction)
    (volume,) = score_folders(targets, predictions, "multicoil")
    expected = fastmri.evaluate.ssim(target[:, 4:36, 4:36], prediction)
    assert volume.scores["ssim"] == pytest.approx(float(expected[0]), rel=1e-6)
    # Not every smaller image is a narrow volume's.
    write_prediction(predictions / "n.h5", target[:, 10:30, 10:30])
    with pytest.raises(InputError, match=r"n.h5: slices of 20 x 20, expected at least 40 x 40"):
        score_folders(targets, predictions, "multicoil")


def test_a_frozen_splits_targets_find_their_kspace_beside_them(tmp_path):
    target = images(0, (2, 40, 40))
    write_target(tmp_path / "multicoil_test" / "n.h5", target, kspace_width=32)
    write_target(tmp_path / "targets" / "multicoil_test" / "n.h5", target)
    write_prediction(tmp_path / "p" / "n.h5", target[:, 4:36, 4:36])
    folder = find_targets(tmp_path, tmp_path / "p", "multicoil")
    assert folder == tmp_path / "targets" / "multicoil_test"
    (volume,) = score_folders(folder, tmp_path / "p", "multicoil")
    assert volume.scores["ssim"] == pytest.approx(1)


def test_the_target_folder_is_the_one_that_fits(tmp_path):
    target = images(0, (2, 40, 40))
    predictions = tmp_path / "p"
    write_prediction(predictions / "v.h5", target)
    with pytest.raises(InputError, match=r"--target_path: no \*.h5 file"):
        find_targets(tmp_path, predictions, "multicoil")
    write_target(tmp_path / "targets" / "multicoil_test" / "t.h5", target)
    with pytest.raises(InputError, match=r"no file named as the predictions are \(such as v.h5\)"):
        find_targets(tmp_path, predictions, "multicoil")
    val = tmp_path / "multicoil_val"
    write_target(val / "v.h5", target)
    assert find_targets(tmp_path, predictions, "multicoil") == val
    assert find_targets(val, predictions, "multicoil") == val
    write_target(tmp_path / "targets" / "multicoil_test" / "v.h5", target)
    with pytest.raises(InputError, match="give one of the two"):
        find_targets(tmp_path, predictions, "multicoil")
    with pytest.raises(InputError, match=r"--predictions_path: .* is not a folder"):
        find_targets(tmp_path, tmp_path / "none", "multicoil")


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def put(change):
    def write(path):
        with h5py.File(path, "r+") as volume:
            value = change(volume["reconstruction"][()])
            del volume["reconstruction"]
            volume["reconstruction"] = value

    return write


def with_nan(volume):
    volume[1, 2, 3] = np.nan
    return volume


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: path.unlink(), "b.h5: no such prediction .*1 of 3"),
        (lambda path: path.with_name("z.h5").write_bytes(path.read_bytes()), "z.h5: no target"),
        (truncate, "b.h5: "),
        (lambda path: path.write_text("no"), "b.h5: not an HDF5 file"),
        (put(with_nan), "b.h5: the reconstruction holds NaN"),
        (put(lambda v: v[:1]), "b.h5: the reconstruction has 1 slices, the target 2"),
        (put(lambda v: v[0]), r"b.h5: the reconstruction has shape \(40, 40\)"),
        (put(lambda v: v[..., :30]), "b.h5: slices of 40 x 30"),
        (put(lambda v: v.astype(complex)), "b.h5: the reconstruction is complex128"),
    ],
)
def test_a_prediction_that_cannot_be_scored_is_named(folders, break_it, says):
    break_it(folders[1] / "b.h5")
    with pytest.raises(InputError, match=says) as caught:
        score_folders(*folders, "multicoil")
    assert "\n" not in str(caught.value)


def test_what_is_not_there_to_select_is_said(folders):
    with pytest.raises(InputError, match="given AXT1, the targets have AXFLAIR, AXT2"):
        score_folders(*folders, "multicoil", acquisition="AXT1")
    with pytest.raises(InputError, match="given 4, the targets have 8"):
        score_folders(*folders, "multicoil", acquisition="AXFLAIR", acceleration=4)
    with pytest.raises(InputError, match=r"no target 'reconstruction_esc' \(found: reconstruction"):
        score_folders(*folders, "singlecoil")


def test_a_selection_needs_only_its_own_predictions(folders):
    (folders[1] / "c.h5").unlink()
    volumes = score_folders(*folders, "multicoil", acquisition="AXT2", acceleration=8)
    assert [volume.name for volume in volumes] == ["b.h5"]


def test_a_volume_without_a_stored_acceleration_is_in_no_accelerations_row():
    scores = {"psnr": 1.0, "ssim": 1.0}
    rows = group_scores(
        [ScoredVolume("a", "", None, 2, scores), ScoredVolume("b", "", 4, 2, scores)]
    )
    assert [(row.label, row.volumes) for row in rows] == [
        ("all", 2),
        ("acquisition not stored", 2),
        ("4x", 1),
    ]


def test_a_perfect_reconstruction_goes_into_json():
    target = images(0, (2, 40, 40))
    scores = score_volume(target, target)
    assert (scores["mse"], scores["nmse"], scores["psnr"]) == (0, 0, np.inf)
    volumes = [ScoredVolume("a", "AXT2", 4, 2, scores)] * 2
    content = json.loads(json.dumps(scores_json(volumes, group_scores(volumes)), allow_nan=False))
    assert content["volumes"]["a"]["psnr"] is None
    assert content["groups"][0]["mean"]["ssim"] == pytest.approx(1)


def test_summaries_and_tables_take_what_metrics_json_stores():
    scores = {"ssim": 0.8, "psnr": 30.0, "nmse": 0.02, "mse": 1e-9}
    better = {**scores, "ssim": 0.9}
    assert summarise([scores, better])["ssim"] == pytest.approx(0.85)
    assert summarise([]) == {}
    table = scores_table({"mixer": {"a": better}, "zero_filled": {"a": scores}})
    assert list(table.columns[0].cells) == ["a", "", "mean of 1", ""]
    assert list(table.columns[1].cells) == 2 * ["zero_filled", "mixer"]
