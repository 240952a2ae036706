"""Which changes of a configuration a run folder goes on with, and what its record says."""

from __future__ import annotations

import json

import pytest

from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import RunFolder, data_digest

CONFIG = {"max_epochs": 4, "halve_at_epoch": 3, "devices": "auto", "data_path": "/a", "lr": 0.1}
DATA = data_digest([("one.png", (4, 4)), ("two.png", (5, 4))])


def test_more_epochs_other_devices_and_moved_data_go_on_and_are_recorded(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.claim(CONFIG, data=DATA)
    run.metrics_file.write_text("{}")
    longer = CONFIG | {"max_epochs": 8, "halve_at_epoch": 6, "devices": "2", "data_path": "/b"}
    changes = run.claim(longer, dry=True, data=DATA)
    assert (changes["max_epochs"], "halve_at_epoch" in changes) == ([4, 8], False)
    assert run.config() == CONFIG
    assert run.metrics_file.exists()
    run.claim(longer, data=DATA)
    assert run.config() == longer | {"halve_at_epoch": 3}
    assert not run.metrics_file.exists()
    # The same longer run once more, where it was broken off or is finished, changes nothing.
    run.metrics_file.write_text("{}")
    for _ in range(2):
        assert run.claim(longer, data=DATA) == {}
        assert run.config() == longer | {"halve_at_epoch": 3}
    assert run.metrics_file.exists()
    (step,) = json.loads(run.environment_file.read_text())["continued"]
    assert step["changed"]["data_path"] == ["/a", "/b"]
    moved = RunFolder(run.path.rename(tmp_path / "renamed"))
    assert moved.claim(longer | {"halve_at_epoch": 3}, data=DATA) == {}


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"max_epochs": 3}, DATA),
        ({"lr": 0.2}, DATA),
        ({"halve_at_epoch": 2}, DATA),
        ({"data_path": "/b"}, data_digest([("one.png", (4, 4)), ("two.png", (5, 5))])),
        ({"data_path": "/b"}, ""),
    ],
)
def test_what_would_change_the_result_is_refused_and_nothing_is_touched(tmp_path, change, data):
    run = RunFolder(tmp_path)
    run.claim(CONFIG, data=DATA)
    before = run.environment_file.read_text()
    with pytest.raises(InputError, match=f"another configuration .{next(iter(change))}"):
        run.claim(CONFIG | change, data=data)
    assert run.config() == CONFIG
    assert run.environment_file.read_text() == before
