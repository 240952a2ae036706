"""What is checked before a sweep is submitted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster import submission
from cluster.states import RunState
from cluster.sweep_file import read_sweep
from cluster.sweep_folder import SweepFolder
from img2img_recon.support.errors import InputError
from tests.cluster.cases import hand_in, make


def test_a_run_folder_that_the_sweep_did_not_make_is_refused(tmp_path):
    sweep, folder = make(tmp_path, [0])
    folder.claim("case", "mri", {})
    stranger = folder.run(sweep.runs[0].id).path
    stranger.mkdir(parents=True)
    (stranger / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a run that this sweep has not submitted"):
        hand_in(sweep, folder, "local")
    other = tmp_path / "files"
    other.mkdir()
    (other / "letter.txt").touch()
    with pytest.raises(InputError, match=r"holds files but no sweep\.json"):
        hand_in(sweep, SweepFolder(other), "local")


def test_an_unreadable_data_folder_is_named_with_its_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"task: mri\nbase:\n  challenge: singlecoil\n  data_path: {tmp_path / 'no'}\n")
    with pytest.raises(InputError, match=r"s\.yaml:4: base\.data_path: .*no is not a folder"):
        hand_in(read_sweep(path), SweepFolder(tmp_path / "out"), "local")

    path.write_text(f"task: pairs\nbase:\n  data_path: {tmp_path / 'no'}\n")
    with pytest.raises(InputError, match=r"s\.yaml:3: base\.data_path: .*no is not a folder"):
        hand_in(read_sweep(path), SweepFolder(tmp_path / "out"), "local")


def test_a_queue_out_of_reach_does_not_keep_others_from_being_cancelled(tmp_path, monkeypatch):
    _, folder = make(tmp_path, [0, 1])
    folder.claim("case", "mri", {})
    folder.add_submission("slurm", {"old": "17_0"}, {})
    folder.add_submission("local", {"one": "1", "two": "1"}, {})
    taken = []

    def states(_, run_ids):
        if "old" in run_ids:
            raise InputError("--cluster slurm: SLURM is not installed here")
        return {run_id: RunState("running" if run_id == "two" else "done") for run_id in run_ids}

    monkeypatch.setattr(submission, "run_states", states)
    monkeypatch.setattr(submission, "make_queue", lambda _: SimpleNamespace(cancel=taken.extend))
    with pytest.raises(InputError, match="not installed here; 1 runs of other queues were cancel"):
        submission.cancel(folder, ["old", "one", "two"])
    assert taken == ["two"]
