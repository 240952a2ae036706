"""The saturating power law: known laws come back, intervals cover them, figures are drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from cluster.runs import Plot, Sweep, stored_sweep
from cluster.scaling import draw, draw_all, fit_law, fit_scaling, lines_of
from cluster.sweep import main
from cluster.sweep_folder import SweepFolder
from cluster.table import Table
from img2img_recon.support.errors import InputError
from tests.cluster.test_table import finish, run_of

SIZES = np.array([1e3, 4e3, 1e4, 4e4, 1e5])


@settings(max_examples=50, deadline=None)
@given(st.floats(20, 40), st.floats(0.2, 10), st.floats(0.1, 2))
def test_a_known_law_comes_back(limit, gain, exponent):
    scores = limit - gain * (SIZES / 1e4) ** -exponent
    law = fit_law(SIZES, scores)
    assert law(SIZES) == pytest.approx(scores, abs=1e-3 * gain)
    assert law.limit == pytest.approx(limit, abs=0.05 * gain)
    assert law.exponent == pytest.approx(exponent, rel=0.02)


def test_noisy_scores_give_what_a_general_fitter_gives():
    rng = np.random.default_rng(0)
    x = np.geomspace(1e3, 1e6, 12)
    y = 31 - 2 * (x / 1e4) ** -0.4 + rng.normal(0, 0.05, x.shape)
    law = fit_law(x, y)
    (limit, gain, exponent), _ = curve_fit(
        lambda x, a, b, c: a - b * (x / law.scale) ** -c, x, y, p0=(30, 1, 0.5)
    )
    assert law[:3] == pytest.approx((limit, gain, exponent), rel=1e-3)


def test_falling_scores_are_not_explained_by_a_law_that_falls():
    law = fit_law(SIZES, np.array([30.0, 29, 28, 27, 26]))
    assert law.gain == 0
    assert law(SIZES) == pytest.approx(np.full(5, 28.0))


def test_too_few_sizes():
    with pytest.raises(InputError, match="a fit needs 3 different sizes, given 2"):
        fit_law(np.array([1.0, 1.0, 2.0]), np.zeros(3))


def experiment(rng: np.random.Generator, seeds: int = 4, images: int = 30):
    """Scores around 30 - 2 (x / 1e4)^-0.5, with noise of images (shared by all runs) and of seeds."""
    difficulty = rng.normal(0, 1.0, images)
    difficulty -= difficulty.mean()
    return {
        float(x): [
            30 - 2 * (x / 1e4) ** -0.5 + difficulty + rng.normal(0, 0.05) for _ in range(seeds)
        ]
        for x in SIZES
    }


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for number in range(40):
        interval = fit_scaling(experiment(rng), replicates=100, seed=number).intervals["exponent"]
        hits += interval.low <= 0.5 <= interval.high
    assert hits >= 30


def test_images_are_drawn_together_so_that_their_difficulty_moves_the_limit_only():
    rng = np.random.default_rng(2)
    result = fit_scaling(experiment(rng), replicates=200)
    limit, exponent = result.intervals["limit"], result.intervals["exponent"]
    assert limit.high - limit.low > 0.4, "the draw of images is in the limit"
    assert exponent.high - exponent.low < 0.3, "and not in the exponent"
    for mean, spread in zip(result.mean, result.spread, strict=True):
        assert spread.low < mean < spread.high


def table_of(rows: list[dict]) -> Table:
    scores = {row["id"]: {"psnr": {"a": row["psnr"] - 1, "b": row["psnr"] + 1}} for row in rows}
    return Table(rows, scores)


def rows_of(model: str, sizes: list[int]) -> list[dict]:
    return [
        {
            "id": f"{model}{x}{seed}",
            "model": model,
            "parameters": x,
            "psnr": 30 - 100 / x + seed / 10,
        }
        for x in sizes
        for seed in (0, 1)
    ]


def test_figure_and_report(tmp_path):
    table = table_of(rows_of("unet", [100, 200, 400, 800]) + rows_of("vit", [100, 300]))
    plot = Plot(x="parameters", y="psnr", published={"unet": [[250, 29]], "bm3d": [[9, 28]]})
    report = draw(tmp_path / "f.png", table, plot, replicates=50)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert report["unet"]["x"] == [100, 200, 400, 800]
    assert report["unet"]["runs"] == 8
    assert report["unet"]["law"]["exponent"] == pytest.approx(1, rel=0.05)
    assert report["vit"]["law"] == "no fit: 2 sizes, 3 are needed"
    assert set(report) == {"unet", "vit"}, "published points are drawn, not reported as ours"
    json.dumps(report)


def test_only_images_that_all_runs_share_are_compared():
    table = table_of(rows_of("unet", [100, 200]))
    del table.scores["unet1000"]["psnr"]["b"]
    lines = lines_of(table, Plot(x="parameters", y="psnr"))
    assert {len(scores) for runs in lines["unet"].values() for scores in runs} == {1}
    table.scores["unet2000"]["psnr"] = {"c": 1.0}
    with pytest.raises(InputError, match="runs of unet were scored on different images"):
        lines_of(table, Plot(x="parameters", y="psnr"))


def test_lines_of_several_columns(tmp_path):
    rows = rows_of("unet", [100, 200, 400])
    for row in rows:
        row["seed"] = int(row["id"][-1])
    plot = Plot(x="parameters", y="psnr", lines=["model", "seed"])
    assert set(lines_of(table_of(rows), plot)) == {"unet, 0 seed", "unet, 1 seed"}
    report = draw(tmp_path / "f.png", table_of(rows), plot, replicates=20)
    assert report["unet, 1 seed"]["runs"] == 3


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(InputError, match=r"^plots: no finished run has depth, psnr, model"):
        lines_of(table_of(rows_of("unet", [100])), Plot(x="depth", y="psnr"))
    sweep = Sweep("s", tmp_path / "s.yaml", "mri", ())
    with pytest.raises(InputError, match="no plots in it"):
        draw_all(Table(), sweep, tmp_path)


def test_the_plot_command_draws_from_run_folders_alone(tmp_path, monkeypatch, capsys):
    """A sweep's folder that was copied from a cluster: no SLURM, no task package is asked."""
    import hashlib

    monkeypatch.chdir(tmp_path)
    file = tmp_path / "s.yaml"
    file.write_text("task: gaussian\n")
    runs = tuple(run_of(number) for number in range(4))
    sweep = Sweep("s", file, "gaussian", runs, (Plot(x="parameters", y="psnr"),))
    text = "\0".join(["[]", file.read_text(), "", str(tmp_path)])
    folder = SweepFolder(tmp_path / "sweeps_out" / "s")
    folder.claim("s", "gaussian", stored_sweep(sweep, hashlib.sha256(text.encode()).hexdigest()))
    for number, run in enumerate(runs[:3]):
        finish(folder.run(run.id), number)
    main(["plot", str(file), "--replicates", "20"])
    captured = capsys.readouterr()
    assert "without 1 runs that have no result" in captured.err
    report = json.loads((folder.path / "figures/s-psnr-parameters.json").read_text())
    assert report["unet"]["x"] == [100, 101, 102]
    main(["collect", str(file), "--out", str(tmp_path / "t.csv")])
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("t.csv: 3 of 4 runs")
    assert f"no result: {runs[3].id}: not started" in captured.err
