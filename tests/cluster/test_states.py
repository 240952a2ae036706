"""The state of a run from its folder, its record and its queue."""

from __future__ import annotations

from cluster.queues.local import claimed
from cluster.states import run_states
from tests.cluster.cases import make, states_of


def test_a_run_of_another_machine_is_gone_when_nobody_works_on_its_submission(tmp_path):
    sweep, folder = make(tmp_path, [0, 1])
    first, second = (run.id for run in sweep.runs)
    submission = folder.add_submission(
        "local", {first: "123", second: "queued"}, {"host": "elsewhere", "pid": 1}
    )
    with claimed(submission):
        assert states_of(sweep, folder) == ["running", "pending"]
    assert states_of(sweep, folder) == ["failed", "failed"]
    assert "elsewhere" in run_states(folder, [first])[first].detail
