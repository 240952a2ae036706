"""The script that compares: runs and methods on the same noise, splits as in training, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from denoise_tasks import cases
from denoise_tasks import evaluate as evaluate_script
from denoise_tasks.evaluate import EvaluateConfig, evaluate
from img2img_recon.support.cli import parse_config
from img2img_recon.support.errors import InputError
from tests.denoise_tasks.conftest import gaussian, make_run, of_pairs, train


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["paper", "standard"])
def test_scores_from_files_are_those_of_training(photos, tmp_path, protocol):
    """Scored from the file and from the cache: the same images, the same noise."""
    metrics = train(gaussian(photos, tmp_path / "run", protocol=protocol, test_share=0.2))
    common = {"run": (tmp_path / "run",), "sigma": (30,), "progress": False}
    [result] = evaluate(
        EvaluateConfig(
            **common,
            method=("tv",),
            data_path=photos,
            split="val",
            protocol=protocol,
            out=tmp_path / "out",
        )
    )
    for row in result.rows:
        name = "img2img_mixer" if row.method == "run" else row.method
        assert row.scores["psnr"] == pytest.approx(
            metrics["images"][name][row.image]["psnr"], abs=1e-4
        )
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert len(rows) == 9
    assert [row["image"] for row in rows if row["image"].startswith("mean")] == ["mean of 2"] * 3
    table = (tmp_path / "out" / "results.md").read_text()
    assert all(f"| {row.image} | " in table for row in result.rows)
    assert {row["method"] for row in rows} == {"noisy", "tv", "run"}
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "Gaussian window" in content["ssim"]
    assert protocol in content["results"][0]["protocol"]
    assert content["methods"]["run"]["trained_for_sigma"] == 30
    assert len(list((tmp_path / "out" / "panels").glob("*.png"))) == 2
    with pytest.raises(InputError, match=r"--out: .*results.json exists; give --overwrite"):
        evaluate(EvaluateConfig(**common, data_path=photos, out=tmp_path / "out"))
    with pytest.raises(InputError, match="--split: test of --data_path"):
        evaluate(EvaluateConfig(**common, data_path=tmp_path, split="test", out=tmp_path / "new"))


ODD_NAMES = (
    *(
        "sale $5_$6.png",
        "# 1.png",
        "'q' \"d\".png",
        "[bold]x[1].png",
        "-dash.png",
        "tab\tline\n.png",
    ),
    *("a,b;c.png", "<b>&x|y.png", "a" * 251 + ".png", "\u5199" * 83 + ".png", "x y.png", "x_y.png"),
    os.fsdecode(b"caf\xe9.png"),
)


def test_names_of_any_kind_in_tables_and_panels(tmp_path, capsys):
    data, run, out = tmp_path / "$data [1]", make_run(tmp_path / "[bold]run $1"), tmp_path / "out"
    data.mkdir()
    for number, name in enumerate(ODD_NAMES):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3)).astype(np.uint8)
        with (data / name).open("wb") as file:
            Image.fromarray(pixels).save(file, "PNG")
    words = ["--run", str(run), "--data_path", str(data), "--out", str(out), "--sigma", "25"]
    evaluate_script.main([*words, "--panels", "20", "--accelerator", "cpu"])
    assert len(list((out / "panels").iterdir())) == len(ODD_NAMES)
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        found = {row["image"] for row in csv.DictReader(file) if row["method"] == "noisy"}
    as_text = {name.encode(errors="backslashreplace").decode() for name in ODD_NAMES}
    assert found == {*as_text, f"mean of {len(ODD_NAMES)}"}
    [_, *rows] = (out / "results.md").read_text(encoding="utf-8").split("| image |")[1].splitlines()
    assert {row.replace("\\|", "").count("|") for row in rows if row} == {4}
    content = json.loads((out / "results.json").read_text())
    assert set(content["results"][0]["images"]["noisy"]) == set(ODD_NAMES)
    assert "[bold]run $1" in capsys.readouterr().out


@pytest.mark.slow
def test_pairs_are_scored_on_the_scenes_that_were_held_out(pairs, tmp_path):
    train(of_pairs(pairs, tmp_path / "run", val_scenes=("tree",)))
    [result] = evaluate(
        EvaluateConfig(
            run=(tmp_path / "run",),
            method=("tv",),
            data_path=pairs,
            split="val",
            out=tmp_path / "out",
            progress=False,
        )
    )
    assert {row.image.split("/")[0] for row in result.rows} == {"tree"}
    means = {method: scores["psnr"] for method, _, scores in result.means()}
    assert means["tv"] > means["noisy"] + 2, "total variation was not told the noise"


@pytest.mark.slow
def test_slow_methods_on_a_subset(photos, tmp_path):
    [result] = evaluate(
        EvaluateConfig(
            method=("bm3d", "tv", "bm3d_channelwise"),
            slow_images=1,
            data_path=photos,
            limit=2,
            sigma=(25,),
            out=tmp_path,
            panels=0,
            num_workers=1,
            progress=False,
        )
    )
    means = [(method, count) for method, count, _ in result.means()]
    whole, common = [("noisy", 2), ("tv", 2)], ["noisy", "bm3d", "tv", "bm3d_channelwise"]
    assert sorted(means[:2]) == whole
    assert sorted(means[2:]) == sorted((method, 1) for method in common)
    scores = {method: mean for method, count, mean in result.means() if count == 1}
    assert scores["bm3d"]["psnr"] > scores["noisy"]["psnr"] + 3


def test_validation_blocks(tmp_path, monkeypatch):
    clean = np.random.default_rng(0).integers(60, 200, (2, 1, 16, 16, 3), dtype=np.uint8)
    monkeypatch.setattr(cases, "read_validation", lambda *paths: (clean + 20, clean))
    words = ["--method", "tv", "--sidd_validation", "n.mat", "c.mat", "--out", str(tmp_path)]
    [result] = evaluate(parse_config(EvaluateConfig, [*words, "--limit", "1"]))
    assert [row.image for row in result.rows] == ["image 0 block 0"] * 2
    assert result.scores("noisy")["image 0 block 0"]["psnr"] == pytest.approx(
        20 * np.log10(255 / 20)
    )


def test_what_runs_were_trained_for_is_noted(tmp_path, photos, capsys):
    make_run(tmp_path / "one", data_path=str(photos))
    words = ["--run", tmp_path / "one", "--data_path", photos, "--sigma", 25, 50, "--limit", 1]
    evaluate_script.main([*map(str, words), "--out", str(tmp_path / "out"), "--no_progress"])
    said = " ".join(capsys.readouterr().err.split())
    assert "note: one was trained for sigma 25, not 50" in said
    assert "trained under the protocol paper, and is scored under standard" in said
    assert "note: one was trained on images of" in said


def test_the_packages_own_network_is_scored_at_its_levels(tmp_path, photos, capsys):
    words = ["--run", "denoise-color", "--data_path", photos, "--sigma", 50, 90, "--limit", 1]
    evaluate_script.main([*map(str, words), "--out", str(tmp_path / "out"), "--no_progress"])
    said = " ".join(capsys.readouterr().err.split())
    assert "note: denoise-color was trained for sigma 0 to 75, not 90" in said
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["methods"]["denoise-color"]["trained_for_sigma"] == [0, 75]
    with pytest.raises(InputError, match="needs a --run that says how the data were split"):
        evaluate_script.main([*map(str, words), "--split", "test", "--out", str(tmp_path / "no")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--method tv", "give either --data_path or --sidd_validation"),
        ("--data_path {photos}", "--run: nothing to evaluate"),
        ("--method tv --data_path {photos} --sigma 0", "--sigma: given 0"),
        ("--method tv --data_path {photos} --sigma 25 0.1", "That is --sigma 25.5"),
        ("--method tv --data_path {photos} --slow_images 0", "--slow_images: given 0"),
        ("--method nlm --data_path {photos} --sigma 9", "--method: given nlm, allowed: bm3d"),
        ("--method tv --method tv --data_path {photos} --sigma 9", "tv is given twice"),
        ("--method tv --data_path {photos}", "no noisy/clean pair in it.*give --sigma"),
        ("--method tv --data_path {photos} --protocol paper", "--protocol: only with --sigma"),
        ("--method tv --data_path {photos} --sigma 9 --split test", "--split: test needs a --run"),
        ("--method tv --sidd_validation {photos} {photos} --split val", "--split: given val"),
        ("--method tv --sidd_validation {photos} {photos} --sigma 3", "--sigma: only with"),
        ("--method tv --sidd_validation {photos}", "--sidd_validation: given"),
        ("--run {tmp} --data_path {photos} --sigma 30", "no checkpoint"),
        ("--method tv --data_path {broken} --sigma 30", r"0\.png"),
        ("--method tv --data_path {black} --sigma 30 --protocol paper", r"0.png: .*all-black"),
    ],
)
def test_bad_evaluations(photos, tmp_path, words, said):
    from PIL import Image

    places = {"photos": photos, "tmp": tmp_path}
    for name in ("broken", "black"):
        places[name] = tmp_path / name
        shutil.copytree(photos, places[name])
    (places["broken"] / "class0" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("RGB", (48, 48)).save(places["black"] / "class0" / "0.png")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=said) as caught:
        evaluate(parse_config(EvaluateConfig, [*words.format(**places).split(), "--out", str(out)]))
    assert "\n" not in str(caught.value)
    assert not [path for path in out.rglob("*") if path.is_file()]


def test_results_are_not_written_where_there_is_a_file(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--out: "):
        evaluate(
            EvaluateConfig(method=("tv",), data_path=photos, sigma=(30,), out=tmp_path / "file")
        )


def test_runs_that_do_not_go_together(photos, tmp_path):
    make_run(tmp_path / "a" / "run", data_path=str(photos))
    make_run(tmp_path / "b" / "run", data_path=str(photos))
    make_run(tmp_path / "grey", data_path=str(photos), channels=1)
    make_run(tmp_path / "other", data_path=str(photos), split_seed=7)

    def refused(said: str, *runs: str, **flags) -> None:
        with pytest.raises(InputError, match=said):
            evaluate(
                EvaluateConfig(
                    run=tuple(tmp_path / run for run in runs),
                    data_path=photos,
                    sigma=(30,),
                    out=tmp_path / "out",
                    **flags,
                )
            )

    refused("run is given twice", "a/run", "b/run")
    refused("different numbers of channels", "a/run", "grey")
    refused(r"were split differently \(split_seed: 42 and 7\)", "a/run", "other", split="val")
    refused("trained with --test_share 0", "a/run", split="test")
