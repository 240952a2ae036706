"""The benchmark of unrolled reconstruction runs and compares like with like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import unrolled


def test_report_of_small_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unrolled, "call_in_fresh_process", lambda *given: 1.0)
    words = "--rows 64 --columns 48 --recon_size 32 --coils 3 --repeats 1"
    unrolled.main([*words.split(), "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report) == set(unrolled.NETWORKS)
    ours, theirs = (report[name]["parameters"] for name in unrolled.NETWORKS[:2])
    assert theirs == pytest.approx(ours, rel=0.02)
    assert all(row["seconds"] > 0 and len(row["ratio"]) == 3 for row in report.values())
    assert report[unrolled.NETWORKS[0]]["ratio"] == [1, 1, 1]
