"""Sweep files: expansion, ids, errors with key and line, the paper's grids and their parameter counts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.estimate import estimates
from cluster.resources import Resources
from cluster.runs import restored_sweep, stored_sweep
from cluster.sweep_file import read_sweep
from img2img_recon.support.errors import InputError

SWEEPS = Path(__file__).resolve().parents[2] / "cluster" / "sweeps"
SHIPPED = sorted(path.stem for path in SWEEPS.glob("*.yaml"))

# The tables of the paper; the last three sweeps are our own.
MIXER_64, MIXER_96, MIXER_128 = 1_661_312, 2_404_928, 3_443_456
MIXER_F8, MIXER_192 = 6_605_568, 12_192_896
COUNTS: dict[str, dict[str, set[int]]] = {
    "fig2_left": {
        "img2img_mixer": {MIXER_64, MIXER_96, MIXER_128, MIXER_F8, MIXER_192},
        "unet": {3_340_767, 6_817_503},
        "vit": {3_680_460, 6_394_028},
        "linear_mixer": {3_482_380},
        "original_mixer": {6_869_123},
        "multires_mixer": {6_451_136},
    },
    "fig2_middle": {"img2img_mixer": {MIXER_128}, "unet": {3_340_767}, "vit": {3_680_460}},
    "fig2_right": {"img2img_mixer": {MIXER_F8}, "unet": {6_817_503}, "vit": {6_394_028}},
    "fig3_left": {"img2img_mixer": {7_785_472}, "unet": {7_756_097}, "vit": {8_029_000}},
    "fig3_right": {"img2img_mixer": {7_785_472}, "unet": {7_756_097}, "vit": {8_029_000}},
    "table1": {
        "img2img_mixer": {
            3_452_908,
            3_460_440,
            MIXER_128,
            3_456_768,
            6_809_188,
            6_824_664,
            MIXER_F8,
            6_862_344,
        }
    },
    "table2": {"img2img_mixer": {MIXER_128}, "unet": {3_340_767}, "vit": {3_680_460}},
    "ablations": {
        "img2img_mixer": {MIXER_128, MIXER_F8},
        "linear_mixer": {3_482_380},
        "original_mixer": {6_869_123},
        "multires_mixer": {6_451_136},
    },
    "smoke": {},
    "small_rates": {
        "img2img_mixer": {182_848},
        "linear_mixer": {208_000},
        "original_mixer": {206_019},
        "multires_mixer": {184_976},
        "vit": {221_448, 221_936},
        "unet": {189_503, 188_103},
    },
    "mri_unrolled": {},
    "small_scaling": {"img2img_mixer": {18_080, 43_968, 182_848}},
}
# Sizes that the paper does not have, on the same curves.
OWN_READING = {"fig2_left": {"unet", "vit"}, "fig3_left": {"img2img_mixer", "unet", "vit"}}


def write(folder: Path, content: Any) -> Path:
    path = folder / "one.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def mri(**more: Any) -> dict[str, Any]:
    return {"name": "one", "task": "mri", "base": {"challenge": "singlecoil"}, **more}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweeps_expand_to_the_published_networks(name):
    sweep = read_sweep(SWEEPS / f"{name}.yaml")
    assert sweep.name == name
    assert len({run.id for run in sweep.runs}) == len(sweep.runs)
    found: dict[str, set[int]] = {}
    for run, cost in zip(sweep.runs, estimates(sweep), strict=True):
        found.setdefault(run.config["model"], set()).add(cost.parameters)
        if name not in ("smoke", "small_rates"):  # these do not say how many images they have
            assert cost.gpu_hours is not None
            assert 0 < cost.gpu_hours < 1000
    for model, counts in COUNTS[name].items():
        if model in OWN_READING.get(name, ()):
            assert counts < found[model]
        else:
            assert counts == found[model]


def test_training_set_sizes_and_seeds_of_the_papers_figures():
    middle, right = (read_sweep(SWEEPS / f"fig2_{part}.yaml") for part in ("middle", "right"))
    for sweep in (middle, right):
        sizes = {run.config["train_images"] for run in sweep.runs}
        assert sizes == {1000, 4000, 10_000, 40_000, 100_000}
        assert {run.config["seed"] for run in sweep.runs} == {0, 1, 2}
    slices = read_sweep(SWEEPS / "fig3_right.yaml")
    shares = {run.tags["train_slices"]: run.config["sample_rate"] for run in slices.runs}
    assert set(shares) == {2000, 10_000, 17_000, 34_742}
    for count, share in shares.items():
        assert round(share * 34_742) == pytest.approx(count, abs=1)
    assert {cost.train_images for cost in estimates(slices)} == set(shares)
    assert all(
        "data_path" in read_sweep(SWEEPS / f"{n}.yaml").lacking for n in SHIPPED if n != "smoke"
    )


def test_estimated_hours_follow_the_stated_formula(tmp_path):
    sweep = read_sweep(SWEEPS / "table2.yaml")
    hours = {
        run.config["model"]: cost.gpu_hours
        for run, cost in zip(sweep.runs, estimates(sweep), strict=True)
    }
    # one epoch of 4000 images at a third of the published 98 images/s
    assert hours["img2img_mixer"] == pytest.approx(4000 * 3 / 98 / 3600)
    # other sizes cost what their operations do; per layer, by hand: height and width MLPs
    # 2 x 2 x 4 x 64 x 64 x 64 x 128, channels 2 x 4 x 128^2 x 4096
    layer = 2 * (2 * 2 * 4 * 64 * 64 * 64 * 128) + 2 * 2 * 4 * 128 * 128 * 4096
    ends = 2 * 4096 * 48 * 128 + 2 * 4096 * 128 * 2048 + 2 * 65536 * 128 * 3
    base = {"train_images": 4000, "max_epochs": 1, "depth": 4}
    content = {"task": "gaussian", "needs": ["data_path"], "base": base}
    (short,) = estimates(read_sweep(write(tmp_path, content)))
    ratio = (4 * layer + ends) / (16 * layer + ends)
    assert short.gpu_hours == pytest.approx(ratio * 4000 * 3 / 98 / 3600, rel=1e-6)


def shuffled(draw: random.Random, value: Any) -> Any:
    """The same content with keys, axes and axis values in another order."""
    if isinstance(value, dict):
        keys = list(value)
        draw.shuffle(keys)
        return {key: shuffled(draw, value[key]) for key in keys}
    return value


FLAGS = {
    "seed": st.integers(0, 99),
    "batch_size": st.integers(1, 8),
    "lr": st.sampled_from([1e-3, 5e-4, 0.01]),
    "precision": st.sampled_from(["32-true", "bf16-mixed"]),
    "accel": st.sampled_from([4, [4], [4, 8]]),
    "embed_dim": st.integers(8, 64),
}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(FLAGS)), st.none(), min_size=1, max_size=4),
    st.data(),
    st.integers(0, 2**16),
)
def test_ids_depend_on_content_alone(tmp_path_factory, keys, data, number):
    """Reordering keys, axes and values changes no id; every other value changes it."""
    draw = random.Random(number)
    axes = {
        key: data.draw(st.lists(FLAGS[key], min_size=1, max_size=3, unique_by=repr)) for key in keys
    }
    axes = {
        key: [v for i, v in enumerate(values) if key != "accel" or v != 4 or [4] not in values]
        for key, values in axes.items()
    }
    content = mri(axes={"grid": axes})
    folder = tmp_path_factory.mktemp("ids")
    ids = [run.id for run in read_sweep(write(folder, content)).runs]
    other = shuffled(draw, content)
    other["axes"]["grid"] = {k: draw.sample(v, len(v)) for k, v in other["axes"]["grid"].items()}
    assert {run.id for run in read_sweep(write(folder, other)).runs} == set(ids)
    # the same runs as rows of a list, one value moved from the axes to the base
    rows = [{k: run.config[k] for k in keys} for run in read_sweep(write(folder, content)).runs]
    listed = read_sweep(write(folder, mri(axes={"list": rows})))
    assert [run.id for run in listed.runs] == ids
    # a further value only adds
    key = next(iter(keys))
    if key == "seed":
        axes[key] = [*axes[key], 1000]
        more = {run.id for run in read_sweep(write(folder, mri(axes={"grid": axes}))).runs}
        assert set(ids) < more


def test_what_does_not_change_the_result_does_not_change_the_id(tmp_path):
    base = {"challenge": "singlecoil", "seed": 3}
    (one,) = read_sweep(write(tmp_path, mri(base=base))).runs
    for same in ({"num_workers": 3}, {"accelerator": "cpu"}, {"strategy": "auto"}, {"accel": None}):
        (other,) = read_sweep(write(tmp_path, mri(base={**base, **same}))).runs
        assert other.id == one.id, same
    (cheaper,) = read_sweep(write(tmp_path, mri(base=base, resources={"timeout_min": 7}))).runs
    assert cheaper.id == one.id
    (wider,) = read_sweep(write(tmp_path, mri(base=base, resources={"nodes": 2}))).runs
    assert wider.id != one.id, "two nodes see a larger batch"
    (other,) = read_sweep(write(tmp_path, mri(base=base | {"seed": 4}))).runs
    assert other.id != one.id


def test_numbers_are_read_as_they_are_meant(tmp_path):
    text = "task: mri\nbase: {challenge: singlecoil, lr: 1e-3, sample_rate: 1}\n"
    (one,) = read_sweep(write(tmp_path, text)).runs
    assert one.config["lr"] == 0.001
    assert isinstance(one.config["sample_rate"], float)


def test_numbers_and_dates_stay_text_where_text_is_meant(tmp_path):
    text = (
        "task: pairs\nname: 2024-01-31\n"
        "base: {data_path: 010, val_scenes: [6, 010, 1e3, '09']}\n"
        "resources: {account: 0012345, partition: 1e3, constraint: inf, qos: 2024-02-30,"
        " timeout_min: 1-12:00:00}\n"
    )
    sweep = read_sweep(write(tmp_path, text))
    (one,) = sweep.runs
    assert sweep.name == "2024-01-31"
    assert one.config["val_scenes"] == ["6", "010", "1e3", "09"]
    assert one.config["data_path"] == str(Path.cwd() / "010")
    asked = one.resources
    assert (asked.account, asked.partition, asked.constraint) == ("0012345", "1e3", "inf")
    assert (asked.qos, asked.minutes) == ("2024-02-30", 2160)


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path):
    text = "task: gaussian\nbase: {max_epochs: 1e1, batch_size: 1e-3}\n"
    with pytest.raises(InputError, match=r"one.yaml:2: base.batch_size: given 1e-3; allowed"):
        read_sweep(write(tmp_path, text))
    (one,) = read_sweep(write(tmp_path, text.replace("1e-3", "2"))).runs
    assert one.config["max_epochs"] == 10
    with pytest.raises(InputError, match=r"one.yaml:2: base.max_epochs: given 1:30; allowed"):
        read_sweep(write(tmp_path, text.replace("1e1", "1:30")))


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("data_path=my #1 data", "data_path", "my #1 data"),
        ("data_path=[1] a: b", "data_path", "[1] a: b"),
        ("val_scenes=010", "val_scenes", ["010"]),
        ("val_scenes=[010, 6]", "val_scenes", ["010", "6"]),
        ("lr=1e-3", "lr", 0.001),
    ],
)
def test_changes_take_the_value_as_it_stands(tmp_path, change, key, value):
    path = write(tmp_path, "task: pairs\nbase: {data_path: elsewhere}\n")
    (one,) = read_sweep(path, changes=[change]).runs
    given = one.config[key]
    assert given == (str(Path.cwd() / value) if key == "data_path" else value)


def test_a_folder_behind_a_link_is_the_same_run(tmp_path, monkeypatch):
    """What a link leads to is another folder on another machine."""
    (tmp_path / "disk7").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk7")
    path = write(
        tmp_path, mri(base={"challenge": "singlecoil", "data_path": str(tmp_path / "data")})
    )
    (linked,) = read_sweep(path).runs
    (tmp_path / "data").unlink()
    (tmp_path / "data").mkdir()
    (plain,) = read_sweep(path).runs
    assert linked.id == plain.id


def test_other_spellings_of_a_flag_are_the_flag(tmp_path):
    (one,) = read_sweep(
        write(tmp_path, mri(base={"challenge": "singlecoil", "accelerations": 8}))
    ).runs
    (same,) = read_sweep(write(tmp_path, mri(base={"challenge": "singlecoil", "accel": [8]}))).runs
    assert one.config["accel"] == [8]
    assert one.id == same.id


def test_rows_bring_resources_and_tags_and_group_into_arrays(tmp_path):
    rows = [
        {"model": "unet", "chans": 4, "tags": {"kind": "small"}},
        {"model": "unet", "chans": 8, "resources": {"gpus_per_node": 2}},
    ]
    content = mri(axes={"list": rows, "grid": {"seed": [0, 1]}}, resources={"timeout_min": 9})
    sweep = read_sweep(write(tmp_path, content))
    groups = sweep.groups
    assert [len(ids) for _, ids in groups] == [2, 2]
    assert groups[1][0].processes_per_node == 2
    runs = {run.id: run for run in sweep.runs}
    small, large = (runs[ids[0]] for _, ids in groups)
    assert large.config["devices"] == "2"
    assert large.config["accelerator"] == "gpu"
    assert "accelerator" not in small.config
    assert small.tags == {"kind": "small"}
    assert {run.resources.minutes for run in sweep.runs} == {9}


def test_site_file_and_changes(tmp_path):
    (tmp_path / "data").mkdir()
    site = tmp_path / "site.yaml"
    site.write_text(
        yaml.safe_dump(
            {
                "resources": {"partition": "gpu", "timeout_min": 5},
                "base": {"mri": {"data_path": str(tmp_path / "data")}, "gaussian": {"sigma": 5}},
            }
        )
    )
    path = write(tmp_path, mri(needs=["data_path"], resources={"timeout_min": 9}))
    assert read_sweep(path).lacking == ("data_path",)
    sweep = read_sweep(path, site, ["seed=7", "accel=[4, 8]"])
    (run,) = sweep.runs
    assert run.resources == Resources(partition="gpu", timeout_min="9")
    assert run.config["data_path"] == str(tmp_path / "data")
    assert (run.config["seed"], run.config["accel"]) == (7, [4, 8])
    assert not sweep.lacking
    with pytest.raises(InputError, match=r"^--set: given sed=7, allowed: KEY=VALUE"):
        read_sweep(path, site, ["sed=7"])
    with pytest.raises(InputError, match=r"^--set: seed=x: "):
        read_sweep(path, site, ["seed=x"])


def test_a_stored_sweep_comes_back(tmp_path):
    sweep = read_sweep(SWEEPS / "fig3_right.yaml")
    stored = {"name": sweep.name, "task": sweep.task, **stored_sweep(sweep, "key")}
    back = restored_sweep(stored, sweep.file)
    assert back.runs == sweep.runs
    assert back.plots == sweep.plots


HEAD = "name: one\ntask: mri\n"
BASE = "base:\n  challenge: singlecoil\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: one\ntask: mrt\n", r"one.yaml:2: task: given mrt, allowed: mri, gaussian, pairs$"),
        (HEAD + "bases: {}\n", r"one.yaml:3: bases: unknown key \(did you mean base\?\)"),
        (HEAD + BASE + "  epochs: 3\n", r"one.yaml:5: base.epochs: unknown key .*max_epochs"),
        (HEAD + BASE + "  run: x\n", r"one.yaml:5: base.run: unknown key"),
        (HEAD + BASE + "  lr: fast\n", r"one.yaml:5: base.lr: given fast"),
        (HEAD + BASE + "  max_epochs: 0\n", r"one.yaml:5: base.max_epochs: given 0"),
        (HEAD + BASE + "  seed: 1\n  seed: 2\n", r"one.yaml:6: base.seed: given twice$"),
        (HEAD + "base: 3\n", r"one.yaml:3: base: given 3, allowed: a mapping"),
        (HEAD + "base: {}\n", r"one.yaml:3: .*challenge: missing"),
        (HEAD + BASE + "axes:\n  grid:\n    seed: []\n", r"one.yaml:7: axes.grid.seed: given nothing, allowed"),
        (HEAD + BASE + "axes:\n  grid:\n    seed: 1\n", r"one.yaml:7: axes.grid.seed: given 1, allowed: a list"),
        (HEAD + BASE + "axes:\n  list: []\n", r"one.yaml:6: axes.list: given nothing, allowed: at least"),
        (HEAD + BASE + "axes:\n  line: []\n", r"one.yaml:6: axes.line: unknown key"),
        (
            HEAD + BASE + "axes:\n  zip:\n    seed: [1, 2]\n    lr: [0.1]\n",
            r"one.yaml:8: axes.zip.lr: has 1 values, seed has 2$",
        ),
        (
            HEAD + BASE + "axes:\n  zip: {seed: [1]}\n  grid:\n    seed: [1, 2]\n",
            r"one.yaml:8: axes.grid.seed: seed is an axis of zip already$",
        ),
        (
            HEAD + BASE + "axes:\n  grid:\n    seed: [1, 1]\n",
            r"one.yaml:7: axes.grid.seed: the same run as axes.grid.seed",
        ),
        (
            HEAD + BASE + "axes:\n  list:\n  - seed: 1\n  - sed: 2\n",
            r"one.yaml:8: axes.list\[1\].sed: unknown key \(did you mean seed\?\)",
        ),
        (HEAD + BASE + "resources:\n  nodes: 0\n", r"one.yaml:6: resources.nodes: given 0; allowed: .* above 0$"),
        (HEAD + BASE + "resources:\n  nodes: two\n", r"one.yaml:6: resources.nodes: given two; allowed: a whole"),
        (HEAD + BASE + "resources:\n  gpus: 1\n", r"one.yaml:6: resources.gpus: unknown key.*gpus_per_node"),
        (
            HEAD + BASE + "resources:\n  grace_s: 200\n",
            r"one.yaml:6: resources.grace_s: given 200, allowed: less than signal_delay_s",
        ),
        (
            HEAD + BASE + "  devices: '4'\nresources: {tasks_per_node: 2}\n",
            r"one.yaml:5: base.devices: given 4, but the job starts 2 processes",
        ),
        (
            HEAD + BASE + "resources: {timeout_min: 2}\n",
            r"one.yaml:5: resources.*: given 120, allowed: less than timeout_min",
        ),
        (HEAD + BASE + "plots:\n- {x: seed}\n", r"one.yaml:6: plots\[0\].y: missing"),
        (
            HEAD + BASE + "plots:\n- {x: seed, y: psnr, lines: true}\n",
            r"one.yaml:6: plots\[0\].lines: given yes, allowed: a column's name or a list of them",
        ),
        (HEAD + BASE + "  seed: {\n", r"one.yaml:\d+: not valid YAML"),
        ("- 1\n", r"one.yaml:1: expected the keys of a sweep"),
    ],
)  # fmt: skip
def test_bad_sweep_files_name_key_and_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_sweep(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml: no such file$"):
        read_sweep(tmp_path / "nowhere.yaml")
