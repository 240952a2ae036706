"""Frozen splits against fastMRI's masks and transforms, and what must not leak into them."""

import json
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from fastmri.data.mri_data import SliceDataset
from fastmri.data.subsample import RandomMaskFunc
from fastmri.data.transforms import UnetDataTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmri_plugin.freeze_split import (
    FreezeConfig,
    deal_accelerations,
    freeze_split,
    main,
    verify_split,
)
from fastmri_plugin.listing import list_volumes
from fastmri_plugin.volumes import TARGET_KEYS
from img2img_recon.support.cli import config_from, run_script
from img2img_recon.support.errors import InputError


def configuration(data, folder, **changes):
    values = {
        "data_path": data,
        "challenge": "singlecoil",
        "out": folder,
        "split": "train",
    }
    return config_from(FreezeConfig, {**values, **changes})


def manifest_of(folder):
    return json.loads((folder / "MANIFEST.json").read_text())


@pytest.fixture(scope="module")
def frozen(tiny_data, tmp_path_factory):
    made = {}

    def get(challenge):
        if challenge not in made:
            out = tmp_path_factory.mktemp("frozen") / challenge
            made[challenge] = freeze_split(
                configuration(tiny_data(challenge), out, challenge=challenge)
            )
        return made[challenge]

    return get


@pytest.mark.parametrize("challenge", ["singlecoil", "multicoil"])
def test_a_frozen_volume_is_fastmris_validation_input(tiny_data, frozen, challenge):
    source = tiny_data(challenge) / f"{challenge}_train"
    test = frozen(challenge) / f"{challenge}_test"
    dealt = {
        entry["name"]: entry["acceleration"] for entry in manifest_of(frozen(challenge))["volumes"]
    }
    assert set(dealt.values()) == {4, 8}
    stored = SliceDataset(test, challenge, UnetDataTransform(challenge))
    for acceleration in (4, 8):
        mask_func = RandomMaskFunc([0.32 / acceleration], [acceleration])
        drawn = SliceDataset(source, challenge, UnetDataTransform(challenge, mask_func))
        assert len(drawn) == len(stored)
        for ours, theirs in zip(stored, drawn, strict=False):
            assert (ours.fname, ours.slice_num) == (theirs.fname, theirs.slice_num)
            if dealt[ours.fname] == acceleration:
                torch.testing.assert_close(ours.image, theirs.image)


@pytest.mark.parametrize("challenge", ["singlecoil", "multicoil"])
def test_what_is_stored_and_what_must_not_be(tiny_data, frozen, challenge):
    key = TARGET_KEYS[challenge]
    folder = frozen(challenge)
    infos = list_volumes(folder / f"{challenge}_test", challenge)
    sources = list_volumes(tiny_data(challenge) / f"{challenge}_train", challenge)
    assert [info.name for info in infos] == [info.name for info in sources]
    for info, source in zip(infos, sources, strict=True):
        with h5py.File(info.path) as volume, h5py.File(source.path) as full:
            assert set(volume) == {"kspace", "mask", "ismrmrd_header"}
            assert set(volume.attrs) == {
                "acquisition",
                "patient_id",
                "acceleration",
                "num_low_frequency",
            }
            mask = volume["mask"][()].astype(bool)
            kspace = volume["kspace"][()]
            assert kspace.dtype == np.complex64
            assert not kspace[..., ~mask].any()
            np.testing.assert_array_equal(kspace[..., mask], full["kspace"][()][..., mask])
            assert volume["ismrmrd_header"][()] == full["ismrmrd_header"][()]
            assert volume.attrs["num_low_frequency"] == round(
                len(mask) * 0.32 / volume.attrs["acceleration"]
            )
            target_path = folder / "targets" / f"{challenge}_test" / info.name
            with h5py.File(target_path) as target:
                assert set(target) == {key}
                np.testing.assert_array_equal(target[key][()], full[key][()])
                assert target.attrs["acceleration"] == volume.attrs["acceleration"]
                for name in ("max", "norm", "acquisition", "patient_id"):
                    assert target.attrs[name] == full.attrs[name]


def test_freezing_again_gives_the_same_bytes(tiny_data, frozen, tmp_path):
    again = freeze_split(configuration(tiny_data("singlecoil"), tmp_path / "again"))
    assert manifest_of(again) == manifest_of(frozen("singlecoil"))
    other = freeze_split(
        configuration(tiny_data("singlecoil"), tmp_path / "other", mask_type="equispaced_fraction")
    )
    assert manifest_of(other)["files"] != manifest_of(again)["files"]


def test_verify_names_what_differs(frozen, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(frozen("singlecoil"), folder)
    assert verify_split(folder) == 6
    changed, missing = sorted((folder / "singlecoil_test").iterdir())[:2]
    with h5py.File(changed, "a") as volume:
        volume["kspace"][0, 0, 0] = 1
    missing.unlink()
    (folder / "targets" / "extra.h5").write_bytes(b"")
    with pytest.raises(InputError, match="--verify") as caught:
        verify_split(folder)
    message = str(caught.value)
    assert f"missing: singlecoil_test/{missing.name}" in message
    assert f"changed: singlecoil_test/{changed.name}" in message
    assert "not listed: targets/extra.h5" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "not a JSON"), ("[]", "no files"), ("{}", "no files")],
)
def test_verify_needs_a_manifest(tmp_path, content, message):
    if content is not None:
        (tmp_path / "MANIFEST.json").write_text(content)
    with pytest.raises(InputError, match=f"--verify: .*{message}"):
        verify_split(tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    names=st.sets(st.integers(0, 999), min_size=1, max_size=30).map(
        lambda numbers: [f"file{number}.h5" for number in numbers]
    ),
    accelerations=st.sampled_from([(4,), (4, 8), (2, 4, 8)]),
    seed=st.integers(0, 2**31),
    order=st.randoms(use_true_random=False),
)
def test_accelerations_are_dealt_evenly_whatever_the_order(names, accelerations, seed, order):
    dealt = deal_accelerations(names, accelerations, seed)
    assert set(dealt) == set(names)
    counts = [list(dealt.values()).count(acceleration) for acceleration in accelerations]
    assert sum(counts) == len(names)
    assert max(counts) - min(counts) <= 1
    shuffled = names.copy()
    order.shuffle(shuffled)
    assert deal_accelerations(shuffled, accelerations, seed) == dealt


def test_the_seed_deals_differently():
    names = [f"file{k}.h5" for k in range(20)]
    assert deal_accelerations(names, (4, 8), 0) != deal_accelerations(names, (4, 8), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accel": (0,)}, "--accel: given 0"),
        ({"accel": (4, -8)}, "--accel: given -8"),
        ({"accel": (4, 4)}, "--accel: given 4 4"),
        ({"accel": ()}, "--accel: given nothing"),
        ({"center_fractions": (0.0, 0.1)}, "--center_fractions: given 0"),
        ({"center_fractions": (0.1, 1.5)}, "--center_fractions: given 1.5"),
        ({"center_fractions": (0.1,)}, "--center_fractions: given 1 for 2"),
        ({"mask_type": "spiral"}, "--mask_type: given spiral"),
        ({"challenge": "both"}, "--challenge: given both"),
        ({"challenge": None}, "--challenge: needed"),
        ({"out": None}, "--out: needed"),
        ({"data_path": None}, "--data_path: needed"),
        ({"seed": -1}, "--seed: given -1"),
        ({"split": "challenge"}, "--data_path: .* no folder singlecoil_challenge"),
        ({"split": "test"}, "no target"),
        (
            {"mask_type": "equispaced_fraction", "center_fractions": (0.3, 0.3)},
            "--center_fractions: 0.3 at 4x leaves no column",
        ),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_left(tiny_data, tmp_path, changes, message):
    source = tiny_data("singlecoil")
    with pytest.raises(InputError, match=message) as caught:
        freeze_split(configuration(source, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_masked_source_is_refused(tiny_data, tmp_path):
    folder = tmp_path / "data" / "singlecoil_val"
    shutil.copytree(tiny_data("singlecoil") / "singlecoil_val", folder)
    for path in folder.iterdir():
        with h5py.File(path, "a") as volume:
            volume["mask"] = np.arange(volume["kspace"].shape[-1]) % 2
    with pytest.raises(InputError, match="stores a mask already"):
        freeze_split(configuration(tmp_path / "data", tmp_path / "out", split="val"))


def test_an_existing_folder_is_left_alone(tiny_data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"--out: .* exists"):
        freeze_split(configuration(tiny_data("singlecoil"), tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_verify_stands_alone(tmp_path):
    with pytest.raises(InputError, match="--verify: give it alone"):
        FreezeConfig(verify=tmp_path, out=tmp_path)


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["freeze_split.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    return ended.value.code


def test_the_command_line(tiny_data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    words = ["--data-path", tiny_data("singlecoil"), "--challenge", "singlecoil", "--out", out]
    assert run_main(monkeypatch, *words, "--accel", 4, 8) == 0
    assert "2 volumes frozen in" in (printed := capsys.readouterr().out)
    assert "1 at 4x, 1 at 8x" in printed
    assert run_main(monkeypatch, "--verify", out) == 0
    assert "4 files are as the manifest says" in capsys.readouterr().out
    assert run_main(monkeypatch, *words) == 2
    assert capsys.readouterr().err == f"error: --out: {out} exists; nothing is overwritten\n"


def test_the_script(tmp_path, script):
    done = script("fastmri_plugin/freeze_split.py", "--verify", tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: --verify: {tmp_path / 'MANIFEST.json'} cannot be read")
    assert done.stderr.count("\n") == 1
