"""Trackers with their own packages: a broken training goes on under the same run, offline, in a folder.

IMG2IMG_EXTERNAL=1 python -m pytest tests/external/test_trackers.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from img2img_recon.training.run_folder import RunFolder
from tests.external.environments import PROJECT, environment, only_if_asked

PACKAGES = ("wandb==0.31.0", "mlflow-skinny==3.17.2")

pytestmark = only_if_asked


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with the packages, which sees this one's."""
    return environment("trackers", PACKAGES)


# The runs of one mlflow store, read by mlflow, and the messages in wandb's files (LevelDB's log format).
READ = """
import json, struct, sys
from pathlib import Path
import mlflow
from wandb.proto.wandb_internal_pb2 import Record

def messages(data):
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := -place % 32768) and left < 7:
            place += left
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""

logs = Path(sys.argv[1])
client = mlflow.MlflowClient((logs / "mlruns").as_uri())
(experiment,) = [one for one in client.search_experiments() if one.name == "img2img_recon"]
runs = client.search_runs([experiment.experiment_id])
found = {"mlflow": [
    {"id": run.info.run_id, "status": run.info.status, "params": run.data.params,
     "steps": sorted({point.step for point in client.get_metric_history(run.info.run_id, "train_loss")}),
     "epochs": [p.value for p in client.get_metric_history(run.info.run_id, "val_metrics/psnr")]}
    for run in runs
], "wandb": []}
for file in sorted(logs.glob("wandb/offline-run-*/*.wandb")):
    rows, config, name = [], {}, None
    for record in messages(file.read_bytes()):
        name = record.run.run_id or name
        for item in (*record.run.config.update, *record.config.update):
            config[item.key] = json.loads(item.value_json)
        rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    psnr = [row["val_metrics/psnr"] for row in rows if "val_metrics/psnr" in row]
    found["wandb"].append({"id": name, "config": config, "psnr": psnr})
print(json.dumps(found))
"""


def test_wandb_and_mlflow_go_on_after_a_break(python, tmp_path):
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")},
        **{"WANDB_MODE": "offline", "PYTHONPATH": str(PROJECT), "MLFLOW_ALLOW_FILE_STORE": "true"},
    }

    def call(*words: object) -> str:
        done = subprocess.run(
            [python, *map(str, words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    words = ("--task", "gaussian", "--run", "RUN", "--embed_dim", 4, "--depth", 1, "--no_progress")
    tiny = ("--crops_per_image", 4, "--logger", "wandb", "mlflow", "csv", "--accelerator", "cpu")
    for epochs in (1, 3):  # the second goes on with another number of epochs
        call(PROJECT / "denoise_tasks/train.py", *words, *tiny, "--max_epochs", epochs)
    run = RunFolder(tmp_path / "RUN")
    found = json.loads(call("-c", READ, run.path / "logs"))
    ids = json.loads((run.path / "logs/loggers.json").read_text())
    (kept,) = found["mlflow"]
    assert (kept["id"], kept["status"]) == (ids["mlflow"], "FINISHED")
    assert kept["params"]["options/embed_dim"] == "4"
    assert kept["params"]["sigma"] == "30.0"
    first, second = found["wandb"]
    assert first["id"] == second["id"] == ids["wandb"]
    assert first["config"]["options"]["embed_dim"] == 4
    assert second["config"]["max_epochs"] == 3
    psnr = [*first["psnr"], *second["psnr"]]
    assert len(psnr) == 3
    assert kept["epochs"] == pytest.approx(psnr)
    (table,) = run.path.glob("logs/csv-*/metrics.csv")
    logged = [line for line in table.read_text().splitlines() if line]
    assert all(any(f"{score:.6f}"[:6] in line for line in logged) for score in psnr)
