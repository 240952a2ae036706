"""From run folders to the table: finished, missing and half-written runs; ten thousand of them; progress."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from cluster.resources import Resources
from cluster.runs import Run
from cluster.states import run_states
from cluster.sweep import main
from cluster.sweep_folder import SweepFolder
from cluster.table import collect, progress_of, write_table
from img2img_recon.training.run_folder import RunFolder
from tests.benchmarks.queue import FoldersBenchmark, claim_finished, measure_folders


def run_of(number: int, **tags: Any) -> Run:
    config = {"model": "unet", "seed": number}
    return Run(f"{number:010x}", "gaussian", config, {"seed": number}, tags, Resources())


def finish(folder: RunFolder, number: int, **more: Any) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    config = {
        "task": "gaussian",
        "model": "unet",
        "seed": number,
        "train_images": 10,
        "max_epochs": 4,
    }
    folder.config_file.write_text(json.dumps(config))
    images = {"a.png": {"psnr": 30.0, "ssim": 0.8}, "b.png": {"psnr": 32.0, "ssim": 0.9}}
    metrics = {
        "task": "gaussian",
        "model": "unet",
        "parameters": 100 + number,
        "fit_seconds": 8.0,
        "protocol": "paper",
        "sigma": 30.0,
        "images": {"unet": images, "noisy": {}},
        "mean": {"unet": {"psnr": 31.0 + number, "ssim": 0.85}, "noisy": {"psnr": 18.6}},
    }
    folder.metrics_file.write_text(json.dumps(metrics | more))


def test_rows_hold_what_the_run_says_and_nothing_else(tmp_path):
    folder = SweepFolder(tmp_path)
    runs = [run_of(0, kind="small"), run_of(1)]
    for number, run in enumerate(runs):
        finish(folder.run(run.id), number)
    table = collect(runs, folder)
    assert not table.unfinished
    assert table.rows[0] == {
        "id": runs[0].id, "task": "gaussian", "model": "unet", "train_images": 10, "seed": 0,
        "kind": "small", "parameters": 100, "fit_seconds": 8.0, "protocol": "paper", "sigma": 30.0,
        "images_per_s": 5.0, "scored": 2, "psnr": 31.0, "ssim": 0.85, "noisy_psnr": 18.6,
    }  # fmt: skip
    assert table.scores[runs[1].id]["psnr"] == {"a.png": 30.0, "b.png": 32.0}
    write_table(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows[0]["kind"] == "small"
    assert rows[1]["kind"] == "", "an absent value stays absent"
    assert [float(row["psnr"]) for row in rows] == [31.0, 32.0]


def test_images_per_second_count_every_crop(tmp_path):
    folder = SweepFolder(tmp_path)
    run = run_of(0)
    finish(folder.run(run.id), 0)
    config = json.loads(folder.run(run.id).config_file.read_text())
    folder.run(run.id).config_file.write_text(json.dumps(config | {"crops_per_image": 3}))
    assert collect([run], folder).rows[0]["images_per_s"] == 15.0


def test_missing_and_half_written_runs_are_reported_with_their_reason(tmp_path):
    folder = SweepFolder(tmp_path)
    runs = [run_of(number) for number in range(7)]
    paths = [folder.run(run.id) for run in runs]
    for number, path in enumerate(paths[1:], start=1):
        finish(path, number)
    paths[2].metrics_file.unlink()
    paths[3].metrics_file.write_text('{"model": "unet", "mean": {"un')
    paths[4].metrics_file.write_text("[]")
    finish(paths[5], 5, mean={"vit": {"psnr": 1.0}})
    paths[6].config_file.unlink()
    table = collect(runs, folder)
    assert [row["id"] for row in table.rows] == [runs[1].id]
    reasons = [table.unfinished[run.id] for run in (runs[0], *runs[2:])]
    assert reasons[0] == "not started"
    assert reasons[1] == "no metrics.json yet"
    assert reasons[2].startswith("metrics.json cannot be read")
    assert reasons[3] == "metrics.json is no mapping"
    assert reasons[4] == "metrics.json lacks the mean scores of its model"
    assert reasons[5].startswith("config.json cannot be read")


def test_many_runs(tmp_path):
    """No file is read for the state of a finished run; all of them for the table (timed in BENCHMARKS.md)."""
    folder = SweepFolder(tmp_path)
    runs = [run_of(number) for number in range(500)]
    for number, run in enumerate(runs[:-3]):
        finish(folder.run(run.id), number)
    states = run_states(folder, [run.id for run in runs])
    assert [states[run.id].state for run in runs] == ["done"] * 497 + ["missing"] * 3
    assert len(collect(runs, folder).rows) == 497


def test_benchmark_of_many_folders():
    report = measure_folders(FoldersBenchmark(runs=20, repeats=1))
    assert report["runs"] == 20
    assert len(report["status"]) == len(report["collect"]) == 1


def test_a_sweep_remembers_with_which_flags_it_was_submitted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("{task: gaussian, base: {sigma: 30}, axes: {grid: {seed: [1, 2]}}}")
    claim_finished(Path("one.yaml"), ("sigma=25",))
    for words in (["status"], ["collect"], ["status", "--set", "sigma=25"]):
        main([words[0], "one.yaml", *words[1:]])
        assert "2 done" in (said := capsys.readouterr().out) or "2 of 2 runs" in said, words
    main(["status", "one.yaml", "--set", "sigma=50"])
    assert "2 missing" in capsys.readouterr().out
    # a text that has changed since is expanded anew, with the same flags
    Path("one.yaml").write_text(
        "{task: gaussian, base: {sigma: 30}, axes: {grid: {seed: [1, 2, 3]}}}"
    )
    main(["status", "one.yaml"])
    assert "2 done, 1 missing" in capsys.readouterr().out


def log(folder: RunFolder, number: int, text: str) -> None:
    path: Path = folder.path / "logs" / f"csv-{number}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_progress_is_read_from_the_newest_log_that_has_any(tmp_path):
    folder = RunFolder(tmp_path)
    assert progress_of(folder) == ""
    log(
        folder,
        0,
        "epoch,step,train_loss,val_metrics/psnr,val_metrics/ssim\n0,5,0.5,,\n0,5,,27.125,0.7\n",
    )
    assert progress_of(folder) == "epoch 1, psnr 27.12"
    folder.config_file.write_text('{"max_epochs": 40}')
    log(folder, 9, "epoch,step,train_loss,val_metrics/psnr\n2,15,0.5,\n3,19,,29.5\n")
    log(folder, 10, "epoch,step\n")
    assert progress_of(folder) == "epoch 4 of 40, psnr 29.5"
