"""A run inside a job: failures are counted, given up, and cut off by the grace time."""

from __future__ import annotations

from cluster.job import TrainingJob, place_of
from cluster.queues import make_queue
from cluster.sweep_folder import SweepFolder


def test_failures_are_counted_by_place_and_once_per_attempt(tmp_path):
    record = SweepFolder(tmp_path).record("a")

    def fail_here() -> None:
        raise KeyError("here")

    places = set()
    for _ in range(2):
        try:
            fail_here()
        except KeyError as error:
            places.add(place_of(error))
    try:
        {}["other"]
    except KeyError as error:
        places.add(place_of(error))
    assert len(places) == 2
    first, second = sorted(places)
    for place, attempt in ((first, "1.0"), (first, "1.0"), (second, "1.1"), (first, "1.2")):
        with record.change() as content:
            content.add_failure(place, f"traceback of {attempt}", attempt)
    assert record.read().failures == {first: 2, second: 1}
    assert record.read().reason == "traceback of 1.2"


def test_processes_of_one_job_that_fail_at_different_places(tmp_path, monkeypatch):
    """The first to fail counts; the others, cut off by it, neither crash nor take the count back."""

    def fails(message: str) -> Exception:
        try:
            raise ValueError(message) if message == "first" else OSError(message)
        except (ValueError, OSError) as error:
            return error

    record = SweepFolder(tmp_path).record("a")
    job, queue = TrainingJob("a", "mri", {}, str(tmp_path), "slurm", 5), make_queue("slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    given_up = []
    for attempt in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(attempt))
        errors = [fails("first"), fails("second")]
        given_up.append([job._failed(queue, record, error) for error in errors])
    assert given_up == [[False, False], [False, False], [True, True]]
    assert list(record.read().failures.values()) == [3]


def test_failures_that_move_about_come_to_an_end(tmp_path):
    record = SweepFolder(tmp_path).record("a")
    job = TrainingJob("a", "mri", {}, str(tmp_path), "local", 5)
    for number in range(9):
        with record.change() as content:
            content.add_failure(f"place {number}", "text", f"attempt {number}")
    assert job._failed(make_queue("local"), record, ValueError("one more"))


def test_a_given_up_run_is_not_trained_again_by_a_job_left_in_the_queue(tmp_path):
    folder = SweepFolder(tmp_path)
    with folder.record("a").change() as content:
        content.failed = True
    job = TrainingJob("a", "no such task", {}, str(tmp_path), "local", 5)
    assert job() == "failed before"
