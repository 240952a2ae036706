"""Conversion of arrays to volumes, against fastMRI's Fourier transform, dataset and transforms."""

import sys

import h5py
import numpy as np
import pytest
import torch
from fastmri import fft2c, ifft2c, rss_complex
from fastmri.data.mri_data import SliceDataset
from fastmri.data.subsample import RandomMaskFunc
from fastmri.data.transforms import UnetDataTransform, VarNetDataTransform, center_crop, to_tensor

from fastmri_plugin.conversion import convert
from fastmri_plugin.convert import ConvertConfig, main
from fastmri_plugin.kspace import centred_fft
from fastmri_plugin.listing import list_volumes
from img2img_recon.support.cli import config_from, run_script
from img2img_recon.support.errors import InputError


def random_complex(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def read(path):
    with h5py.File(path) as volume:
        return {name: volume[name][()] for name in volume}, dict(volume.attrs)


@pytest.fixture
def images():
    return random_complex(6, 24, 20)


@pytest.fixture
def paired(tmp_path, images):
    """Integer real/imaginary pairs with a factor per slice and interleaved groups."""
    parts = np.round(1000 * np.stack([images.real, images.imag], axis=1)).astype(np.int16)
    scale = np.linspace(1e-9, 2e-9, 6).astype(np.float32)
    block = np.array([7, 7, 3, 7, 3, 3], np.int16)
    path = tmp_path / "pairs.h5"
    with h5py.File(path, "w") as source:
        source["image"], source["scale"], source["block"] = parts, scale, block
    truth = (parts[:, 0] + 1j * parts[:, 1]) * scale[:, None, None].astype(np.float64)
    return path, truth, block


def configuration(source, out, **changes):
    return config_from(ConvertConfig, {"source": source, "out": out, "split": "val", **changes})


def saved(tmp_path, array, name="source.npy"):
    np.save(tmp_path / name, array)
    return tmp_path / name


def test_real_imaginary_pairs_with_scale_and_groups(tmp_path, paired):
    source, truth, block = paired
    written = convert(
        configuration(
            source,
            tmp_path / "out",
            key="image",
            complex_axis=1,
            scale_key="scale",
            group_key="block",
            prefix="brain",
            recon_size=(16, 14),
            acquisition="AXT2",
        )
    )
    assert [path.name for path in written] == ["brain_007.h5", "brain_003.h5"]
    for path, group in zip(written, (7, 3), strict=True):
        arrays, attrs = read(path)
        expected = truth[block == group]
        image = torch.view_as_complex(ifft2c(to_tensor(arrays["kspace"]))).numpy()
        np.testing.assert_allclose(image, expected, atol=1e-6 * np.abs(expected).max())
        target = center_crop(torch.from_numpy(np.abs(expected)), (16, 14)).numpy()
        np.testing.assert_allclose(arrays["reconstruction_esc"], target, atol=1e-6 * target.max())
        assert attrs["max"] == arrays["reconstruction_esc"].max()
        assert attrs["norm"] == pytest.approx(np.linalg.norm(target), rel=1e-5)
        assert attrs["acquisition"] == "AXT2"


def test_volumes_chooses_groups_so_that_a_source_can_be_split(tmp_path, paired):
    source, _, _ = paired
    common = {"key": "image", "complex_axis": 1, "group_key": "block", "prefix": "b"}
    convert(configuration(source, tmp_path, split="train", volumes=("3",), **common))
    convert(configuration(source, tmp_path, split="val", volumes=("7",), **common))
    names = [path.name for path in sorted(tmp_path.glob("singlecoil_*/*.h5"))]
    assert names == ["b_003.h5", "b_007.h5"]
    with pytest.raises(InputError, match=r"--volumes: no volume '9' \(found: 7, 3\)"):
        convert(configuration(source, tmp_path, volumes=("9",), **common))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_every_container_gives_the_same_volume(tmp_path, images, suffix):
    source = tmp_path / f"source{suffix}"
    if suffix == ".npy":
        np.save(source, images)
    elif suffix == ".npz":
        np.savez(source, x=images)
    else:
        with h5py.File(source, "w") as file:
            file["deep/inside"] = images
    (path,) = convert(configuration(source, tmp_path / "out"))
    assert path.name == "source.h5"
    arrays, _ = read(path)
    expected = torch.view_as_complex(fft2c(to_tensor(images))).numpy()
    np.testing.assert_allclose(arrays["kspace"], expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 3, -1])
def test_complex_axis_anywhere(tmp_path, images, axis):
    stacked = np.stack([images.real, images.imag], axis=axis)
    source = saved(tmp_path, stacked)
    (path,) = convert(configuration(source, tmp_path / "out", complex_axis=axis))
    image = torch.view_as_complex(ifft2c(to_tensor(read(path)[0]["kspace"]))).numpy()
    np.testing.assert_allclose(image, images, atol=1e-5)


def test_slices_per_volume(tmp_path, images):
    source = saved(tmp_path, images)
    written = convert(configuration(source, tmp_path / "out", slices_per_volume=2))
    assert [path.name for path in written] == [f"source_00{k}.h5" for k in range(3)]
    for k, path in enumerate(written):
        target = read(path)[0]["reconstruction_esc"]
        np.testing.assert_allclose(target, np.abs(images[2 * k : 2 * k + 2]), atol=1e-5)
    with pytest.raises(InputError, match="--slices_per_volume: given 4"):
        convert(configuration(source, tmp_path / "other", slices_per_volume=4))


def test_kspace_is_stored_as_it_is_and_its_empty_edges_are_in_the_header(tmp_path, images):
    kspace = images.copy()
    kspace[..., :2] = 0
    kspace[..., 17:] = 0
    source = saved(tmp_path, kspace)
    (path,) = convert(configuration(source, tmp_path / "out", kind="kspace"))
    arrays, _ = read(path)
    np.testing.assert_array_equal(arrays["kspace"], kspace)
    expected = torch.view_as_complex(ifft2c(to_tensor(kspace))).abs().numpy()
    np.testing.assert_allclose(arrays["reconstruction_esc"], expected, atol=1e-5)
    (info,) = list_volumes(path.parent, "singlecoil")
    assert info.acquired_columns == (2, 17)
    missing = np.ones(kspace.shape, bool)
    missing[..., 8] = False
    singles = np.random.default_rng(0).random(kspace.shape) < 0.6
    each = np.ones(kspace.shape, bool)  # a column of its own in every slice, and none in all
    each[np.arange(6), :, 4 + np.arange(6)] = False
    for number, kept in enumerate((missing, singles, each)):
        source = saved(tmp_path, kspace * kept, f"holes{number}.npy")
        with pytest.raises(InputError, match="slice 0 is undersampled; a target needs"):
            convert(configuration(source, tmp_path / "holes", kind="kspace"))


@pytest.mark.parametrize("kind", ["image", "kspace"])
@pytest.mark.parametrize("given_maps", [True, False])
def test_coils_from_single_coil_data(tmp_path, images, kind, given_maps):
    from sigpy.mri import birdcage_maps

    data = images if kind == "image" else centred_fft(images)
    maps = random_complex(3, 24, 20, seed=1) if given_maps else birdcage_maps((3, 24, 20))
    how = {"coil_maps": saved(tmp_path, maps, "maps.npy")} if given_maps else {"coils": 3}
    (path,) = convert(
        configuration(
            saved(tmp_path, data), tmp_path / "out", challenge="multicoil", kind=kind, **how
        )
    )
    arrays, _ = read(path)
    seen = images[:, None] * maps
    coil_images = torch.view_as_complex(ifft2c(to_tensor(arrays["kspace"]))).numpy()
    np.testing.assert_allclose(coil_images, seen, atol=1e-5)
    expected = rss_complex(to_tensor(seen), dim=1).numpy()
    np.testing.assert_allclose(arrays["reconstruction_rss"], expected, rtol=1e-4, atol=1e-5)


def test_coil_data_keeps_its_coils(tmp_path):
    data = random_complex(2, 3, 12, 10)
    (path,) = convert(configuration(saved(tmp_path, data), tmp_path / "out", challenge="multicoil"))
    expected = rss_complex(to_tensor(data), dim=1).numpy()
    np.testing.assert_allclose(read(path)[0]["reconstruction_rss"], expected, rtol=1e-5)


@pytest.mark.parametrize("challenge", ["singlecoil", "multicoil"])
@pytest.mark.parametrize("recon_size", [(18, 18), (24, 22)])
def test_fastmri_and_we_read_the_result(tmp_path, images, challenge, recon_size):
    coils = 2 if challenge == "multicoil" else None
    source = saved(tmp_path, images)
    (path,) = convert(
        configuration(source, tmp_path, challenge=challenge, coils=coils, recon_size=recon_size)
    )
    (info,) = list_volumes(path.parent, challenge, needs=("target",))
    side = recon_size if recon_size[1] <= 20 else (20, 20)
    assert info.image_size == side
    assert info.acquired_columns == (0, 20)
    mask_func = RandomMaskFunc([0.2], [2])
    unet = SliceDataset(path.parent, challenge, UnetDataTransform(challenge, mask_func))
    assert len(unet) == 6
    assert unet[5].image.shape == unet[5].target.shape == side
    if challenge == "multicoil":
        varnet = SliceDataset(path.parent, challenge, VarNetDataTransform(mask_func))
        assert varnet[0].masked_kspace.shape == (2, 24, 20, 2)


def test_nothing_is_overwritten_and_nothing_is_half_done(tmp_path, images):
    source = saved(tmp_path, images)
    (path,) = convert(configuration(source, tmp_path / "out"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"source\.h5 exists; nothing is overwritten"):
        convert(configuration(source, tmp_path / "out"))
    assert path.read_bytes() == before
    images[5, 3, 3] = np.nan
    bad = saved(tmp_path, images, "bad.npy")
    with pytest.raises(InputError, match="slice 5 holds NaN"):
        convert(configuration(bad, tmp_path / "half", slices_per_volume=2))
    assert list((tmp_path / "half").rglob("*")) == []


@pytest.mark.parametrize(
    ("array", "changes", "message"),
    [
        (np.ones((2, 8, 8), np.float32), {}, "real-valued .* --complex_axis"),
        (np.ones((2, 8, 8), bool), {}, "holds bool, expected numbers"),
        (np.ones((2, 8, 8), np.complex64), {"complex_axis": 0}, "is complex already"),
        (np.ones((3, 8, 8), np.float32), {"complex_axis": 0}, "has 3 entries, expected 2"),
        (np.ones((2, 8, 8), np.float32), {"complex_axis": 3}, "--complex_axis: given 3"),
        (np.ones(8, np.complex64), {}, r"shape \(8,\); name its axes with --axes"),
        (np.ones((2, 3, 8, 8), np.complex64), {}, r"\(2, 3, 8, 8\); give --challenge multicoil"),
        (np.ones((2, 8, 8), np.complex64), {"challenge": "multicoil"}, "give --coils"),
        (np.ones((0, 8, 8), np.complex64), {}, "is empty"),
        (np.zeros((2, 8, 8), np.complex64), {}, "zero everywhere"),
        (np.zeros((2, 8, 8), np.complex64), {"kind": "kspace"}, "all samples are zero"),
        (np.full((2, 8, 8), 1e60 + 0j), {}, "too large"),
        (np.full((2, 8, 8), np.inf + 0j), {}, "slice 0 holds NaN, infinite"),
        (np.ones((2, 8, 8), np.complex64), {"recon_size": (9, 8)}, "--recon_size: 9 8"),
        (np.ones((2, 8, 8), np.complex64), {"key": "nope"}, r"no dataset 'nope' \(found: source"),
        (np.ones((2, 8, 8), np.complex64), {"group_key": "g"}, "--group_key: no dataset 'g'"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, array, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        convert(configuration(saved(tmp_path, array), tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.h5"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "freeze_split"),
        ({"split": "holdout"}, "--split: given holdout, allowed: train, val"),
        ({"kind": "video"}, "--kind: given video"),
        ({"challenge": "both"}, "--challenge: given both"),
        ({"group_key": "g", "slices_per_volume": 2}, "give one of the two"),
        ({"slices_per_volume": 0}, "--slices_per_volume: given 0"),
        ({"coils": 2}, "only with --challenge multicoil"),
        ({"challenge": "multicoil", "coils": 0}, "--coils: given 0"),
        ({"challenge": "multicoil", "coils": 2, "coil_maps": "m.npy"}, "give one of the two"),
        ({"recon_size": (8,)}, "--recon_size: given 8"),
        ({"recon_size": (8, 0)}, "--recon_size: given 0"),
        ({"prefix": "../up"}, "--prefix: '../up'"),
    ],
)
def test_flags_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        configuration(tmp_path / "x.npy", tmp_path, **changes)


def test_sources_that_cannot_be_read_are_refused(tmp_path, images):
    (tmp_path / "broken.h5").write_bytes(b"not hdf5")
    (tmp_path / "broken.npy").write_bytes(b"not numpy")
    (tmp_path / "image.png").write_bytes(b"no scan")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=images, b=images)
    for name, message in {
        "absent.h5": "no such file",
        "broken.h5": "not a file of plain arrays",
        "broken.npy": "not a file of plain arrays",
        "objects.npy": "plain arrays",
        "image.png": "allowed are",
        "two.npz": "--key: needed, .* holds: a, b",
    }.items():
        with pytest.raises(InputError, match=message):
            convert(configuration(tmp_path / name, tmp_path / "out"))


def test_groups_and_maps_that_do_not_fit_are_refused(tmp_path, images):
    source = tmp_path / "s.npz"
    np.savez(
        source,
        image=images,
        short=np.arange(5),
        split=np.arange(6) / 2,
        paths=np.array(["a/b"] * 6),
        zeros=np.array(["1", "01", "1", "1", "1", "1"]),
        scale=np.full(6, np.nan),
    )
    for changes, message in (
        ({"group_key": "short"}, r"short has shape \(5,\), expected \(6,\)"),
        ({"group_key": "split"}, "whole numbers or words"),
        ({"group_key": "paths"}, "cannot be part of a file name"),
        ({"group_key": "zeros"}, "differ only in leading zeros"),
        ({"scale_key": "scale"}, "--scale_key: scale must hold finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            convert(configuration(source, tmp_path / "out", key="image", **changes))
    maps = saved(tmp_path, random_complex(3, 24, 21), "maps.npy")
    for path, message in (
        (maps, r"expected \(coils, 24, 20\)"),
        (tmp_path / "absent.npy", "no such file"),
    ):
        with pytest.raises(InputError, match=f"--coil_maps: .*{message}"):
            convert(
                configuration(
                    source, tmp_path / "out", key="image", challenge="multicoil", coil_maps=path
                )
            )


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    return ended.value.code


def test_the_command_line(tmp_path, paired, monkeypatch, capsys):
    out = tmp_path / "out"
    words = [paired[0], "--out", out, "--split", "val", "--key", "image", "--complex-axis", 1]
    words += ["--scale_key", "scale", "--group_key", "block", "--volumes", 3, "--recon_size", 8, 8]
    assert run_main(monkeypatch, *words) == 0
    assert "1 volumes written to" in capsys.readouterr().out
    (path,) = out.rglob("*.h5")
    assert path == out / "singlecoil_val" / "pairs_003.h5"
    assert run_main(monkeypatch, *words) == 2
    assert capsys.readouterr().err == f"error: --out: {path} exists; nothing is overwritten\n"


def test_the_script(tmp_path, script):
    done = script("fastmri_plugin/convert.py", "x.npy", "--out", tmp_path, "--split", "test")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --split: given test")
    assert done.stderr.count("\n") == 1
