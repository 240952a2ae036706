"""The synthetic set through fastMRI's own dataset, transforms and metric."""

import h5py
import numpy as np
import pytest
import torch
from fastmri import ifft2c, rss_complex
from fastmri.data.mri_data import SliceDataset
from fastmri.data.subsample import RandomMaskFunc
from fastmri.data.transforms import UnetDataTransform, VarNetDataTransform, center_crop, to_tensor
from fastmri.evaluate import ssim

from fastmri_plugin.demo_data import SIZES, TINY, DemoSizes, demo_folder, make_demo_data
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.volumes import TARGET_KEYS
from img2img_recon.support.errors import InputError

CHALLENGES = ["singlecoil", "multicoil"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    for challenge in CHALLENGES:
        assert make_demo_data(folder, challenge, sizes=TINY) == folder
    return folder


@pytest.mark.parametrize("challenge", CHALLENGES)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_the_layout_asked_for(data, challenge, split):
    folder = data / f"{challenge}_{split}"
    volumes = list_volumes(folder, challenge, needs=("target",) * (split != "test"))
    assert len(volumes) == getattr(TINY, split)
    assert len({info.num_columns for info in volumes}) > 1
    assert sum(info.num_columns < TINY.recon for info in volumes) == 1
    for info in volumes:
        left, right = info.acquired_columns
        assert 0 < left < right < info.num_columns
        assert info.recon_size == (TINY.recon, TINY.recon)
        assert info.kspace_shape[-2] == 2 * TINY.recon
        with h5py.File(info.path) as volume:
            kspace = volume["kspace"][()]
            names = set(volume)
            attrs = dict(volume.attrs)
        assert kspace.dtype == np.complex64
        used = (kspace != 0).any(axis=tuple(range(kspace.ndim - 1)))
        assert not used[:left].any()
        assert not used[right:].any()
        assert attrs["acquisition"] in ("CORPD_FBK", "CORPDFS_FBK")
        assert isinstance(attrs["patient_id"], str)
        if split == "test":
            assert names == {"kspace", "mask", "ismrmrd_header"}
            assert set(attrs) == {"acquisition", "patient_id", "acceleration", "num_low_frequency"}
        else:
            assert names == {"kspace", TARGET_KEYS[challenge], "ismrmrd_header"}
            assert used[left:right].all()


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_the_target_is_fastmris_reconstruction_of_the_kspace(data, challenge):
    for path in sorted((data / f"{challenge}_train").iterdir()):
        with h5py.File(path) as volume:
            kspace = to_tensor(volume["kspace"][()])
            target = volume[TARGET_KEYS[challenge]][()]
            attrs = dict(volume.attrs)
        image = torch.view_as_complex(ifft2c(kspace)).abs()
        if challenge == "multicoil":
            image = rss_complex(ifft2c(kspace), dim=1)
        side = min(TINY.recon, kspace.shape[-2])
        expected = center_crop(image, (side, side)).numpy()
        assert target.shape == expected.shape
        np.testing.assert_allclose(target, expected, atol=1e-5 * expected.max())
        assert attrs["max"] == target.max()
        assert attrs["norm"] == pytest.approx(np.linalg.norm(target), rel=1e-5)
        assert 2e-5 < attrs["max"] < 2e-3


@pytest.mark.parametrize(
    ("kind", "challenge"),
    [("unet", "singlecoil"), ("unet", "multicoil"), ("varnet", "multicoil")],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_fastmris_transforms_take_every_slice(data, kind, challenge, split):
    mask_func = RandomMaskFunc([0.08], [4]) if split != "test" else None
    if kind == "unet":
        transform = UnetDataTransform(challenge, mask_func)
    else:
        transform = VarNetDataTransform(mask_func)
    dataset = SliceDataset(data / f"{challenge}_{split}", challenge, transform)
    assert len(dataset) == 2 * getattr(TINY, split)
    for position in range(len(dataset)):
        width = dataset.raw_samples[position].metadata["encoding_size"][1]
        sample = dataset[position]
        if kind == "unet":
            side = min(TINY.recon, width)
            assert sample.image.shape == (side, side)
            assert torch.isfinite(sample.image).all()
            assert sample.image.std() > 0.5
        else:
            assert sample.masked_kspace.shape == (TINY.coils, TINY.readout, width, 2)
            kept = sample.mask.reshape(-1)
            assert 0 < kept.sum() < width
            assert (sample.masked_kspace[:, :, ~kept] == 0).all()


@pytest.mark.parametrize("challenge", CHALLENGES)
def test_the_test_split_is_masked_at_4x_and_8x_and_its_targets_are_apart(data, challenge):
    key = TARGET_KEYS[challenge]
    accelerations = []
    for path in sorted((data / f"{challenge}_test").iterdir()):
        with h5py.File(path) as volume:
            mask = volume["mask"][()]
            kspace = volume["kspace"][()]
            acceleration = int(volume.attrs["acceleration"])
            low = int(volume.attrs["num_low_frequency"])
        accelerations.append(acceleration)
        assert mask.shape == (kspace.shape[-1],)
        assert set(np.unique(mask)) == {0, 1}
        assert low == round(len(mask) * 0.32 / acceleration)
        assert (kspace[..., mask == 0] == 0).all()
        seed = tuple(map(ord, path.name))
        fresh, _ = RandomMaskFunc([0.32 / acceleration], [acceleration])(
            (1, len(mask), 1), seed=seed
        )
        np.testing.assert_array_equal(mask, fresh.numpy().reshape(-1))
        with h5py.File(data / "targets" / f"{challenge}_test" / path.name) as volume:
            target = volume[key][()]
            attrs = dict(volume.attrs)
        assert attrs["acceleration"] == acceleration
        assert attrs["max"] == target.max()
        assert "acquisition" in attrs
        assert "norm" in attrs
        # Masked k-space must be this target's: a close, but not the same, image.
        image = ifft2c(to_tensor(kspace))
        if challenge == "multicoil":
            image = rss_complex(image, dim=1)
        else:
            image = torch.view_as_complex(image).abs()
        zero_filled = center_crop(image, target.shape[1:]).numpy()
        assert 0.15 < ssim(target, zero_filled)[0] < 0.95
    assert sorted(set(accelerations)) == [4, 8]


def _arrays(folder):
    found = {}
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path) as volume:
            for name in volume:
                found[f"{path.relative_to(folder)}/{name}"] = np.asarray(volume[name][()])
    return found


def test_the_seed_decides_everything(data, tmp_path):
    same = _arrays(make_demo_data(tmp_path / "same", "singlecoil", sizes=TINY))
    other = _arrays(make_demo_data(tmp_path / "other", "singlecoil", sizes=TINY, seed=1))
    first = {name: value for name, value in _arrays(data).items() if "singlecoil" in name}
    assert list(same) == list(first) == list(other)
    for name, value in first.items():
        np.testing.assert_array_equal(same[name], value)
        if name.endswith("kspace"):
            assert not np.array_equal(other[name], value)


def test_volumes_differ_and_slices_of_one_volume_are_alike(data):
    volumes = []
    for path in sorted((data / "singlecoil_train").iterdir()):
        with h5py.File(path) as volume:
            target = volume["reconstruction_esc"][()]
        margin = (target.shape[-1] - 24) // 2
        volumes.append(target[:, margin : margin + 24, margin : margin + 24])

    def alike(first, second):
        return np.corrcoef(first.ravel(), second.ravel())[0, 1]

    within = np.mean([alike(volume[0], volume[1]) for volume in volumes])
    across = np.mean([alike(volumes[0][0], volumes[k][0]) for k in (1, 2)])
    assert across < within < 0.999


def test_demo_folder_is_made_once_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMG2IMG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SIZES, "singlecoil", TINY)
    folder = demo_folder("singlecoil")
    assert folder.is_relative_to(tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.h5")}
    assert demo_folder("singlecoil") == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.h5")}


def test_nothing_is_overwritten(data):
    with pytest.raises(InputError, match="singlecoil_train exists"):
        make_demo_data(data, "singlecoil", sizes=TINY)
    with pytest.raises(InputError, match="challenge: given threecoil"):
        make_demo_data(data, "threecoil", sizes=TINY)


@pytest.mark.parametrize("wrong", [{"widths": (8,)}, {"train": 0}, {"readout": 100}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="DemoSizes"):
        DemoSizes(**wrong)
