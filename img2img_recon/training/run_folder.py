"""The run folder: everything a training run makes, and all that is needed to repeat it.

RUN/config.json          the resolved configuration; a folder belongs to one configuration
RUN/config.yaml          the same as flags, which --config reads
RUN/environment.json     git revision, package versions, machine
RUN/checkpoints/         best.ckpt, last.ckpt
RUN/logs/                what --logger writes here
RUN/reconstructions/     volumes or images
RUN/figures/
RUN/metrics.json         written last: a run with it is finished
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from img2img_recon.support.errors import InputError
from img2img_recon.support.files import TEMPORARY, locked, writable_folder, write_json

RECORDED_PACKAGES = (
    "torch",
    "fastmri",
    "pytorch-lightning",
    "numpy",
    "h5py",
    "sigpy",
    "scikit-image",
    "bm3d",
    "submitit",
)

# Where a run computes; it may change when the run goes on.
PLACES = ("devices", "num_nodes", "strategy")
STAYS = ("halve_at_epoch",)  # where the recipe of the first, shorter run had it


def data_digest(files: Iterable[Any]) -> str:
    """Ten hexadecimal digits of what identifies files of data: names, sizes, headers; not where they lie."""
    text = json.dumps(sorted(str(one) for one in files))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:10]


def config_hash(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that tell configurations apart, independent of the order of their keys."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def environment() -> dict[str, Any]:
    """Git revision of the project, package versions and the kind of machine."""
    here = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *words],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    revision = git("rev-parse", "HEAD")
    versions: dict[str, str | None] = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "git_revision": revision,
        "git_dirty": None if revision is None else bool(git("status", "--porcelain")),
        "command": sys.argv,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
    }


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def flags_file(self) -> Path:
        """The resolved configuration as flags."""
        return self.path / "config.yaml"

    @property
    def environment_file(self) -> Path:
        """What the run was made with, and how it went on."""
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """The results; its presence says that the run is finished."""
        return self.path / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The newest state, from which the run resumes."""
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The state with the best validation score."""
        return self.checkpoints / "best.ckpt"

    @property
    def figures(self) -> Path:
        """Folder of PNG panels."""
        return self.path / "figures"

    @property
    def reconstructions(self) -> Path:
        """Folder of reconstructed volumes or images."""
        return self.path / "reconstructions"

    def config(self) -> dict[str, Any]:
        """The stored configuration.

        Raises:
            InputError: the folder is no run folder.
        """
        try:
            return json.loads(self.config_file.read_text())
        except FileNotFoundError:
            raise InputError(f"{self.path}: no run folder (it holds no config.json)") from None
        except ValueError:
            raise InputError(f"{self.config_file}: not valid JSON") from None

    def metrics(self) -> dict[str, Any] | None:
        """The stored results, None while the run is not finished."""
        try:
            return json.loads(self.metrics_file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def claim(self, config: Mapping[str, Any], dry: bool = False, data: str = "") -> dict[str, Any]:
        """Make the folder this configuration's, or find that it already is, or that it can go on with it.

        A run goes on with more epochs, on other devices, and with data that were moved: `continued` in
        environment.json then says what changed.

        Args:
            config: the resolved configuration.
            dry: only check; write nothing.
            data: a digest of the data's files, which tells moved data from others.

        Returns:
            What changed, by key: the stored value and the new one.

        Raises:
            InputError: it belongs to another configuration (the differing keys are named), holds other
                files, or cannot be written to. Nothing in it is changed then.
        """
        wanted = json.loads(json.dumps(config, default=str))
        if self.config_file.exists():
            stored = self.config()
            changes = {
                key: [stored.get(key), wanted.get(key)]
                for key in sorted(stored.keys() | wanted.keys())
                if stored.get(key) != wanted.get(key)
            }
            differing = [key for key in changes if not self._goes_on(changes, key, data)]
            if differing:
                key = differing[0]
                more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
                raise InputError(
                    f"--run: {self.path} belongs to another configuration "
                    f"({key}: {stored.get(key)!r} there, {wanted.get(key)!r} here{more}); "
                    "give another --run or the same flags"
                )
            # Asked for with the longer run, so that the same command goes on with it; it stays where it was.
            kept = self.stays(wanted)
            changed = {key: change for key, change in changes.items() if key not in kept}
            if changed and not dry:
                self._record(changes)
                if "max_epochs" in changes:
                    self.metrics_file.unlink(missing_ok=True)
                write_json(self.config_file, wanted | kept)
            return changed
        own = ("environment.json",)  # left behind by a run killed while it claimed the folder
        if self.path.is_dir() and any(
            item.name not in own and not item.name.startswith(".") for item in self.path.iterdir()
        ):
            raise InputError(
                f"--run: {self.path} holds files but no config.json; give a new or empty folder"
            )
        if dry:
            return {}
        writable_folder(self.path, "--run")
        write_json(self.config_file, wanted)
        write_json(self.environment_file, environment() | {"data": data})
        return {}

    def stays(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What stays as it is stored, whatever a configuration asks that the run goes on with."""
        stored = self.config() if self.config_file.exists() else {}
        return {
            key: stored[key] for key in STAYS if key in stored and stored[key] != config.get(key)
        }

    def _goes_on(self, changes: Mapping[str, list[Any]], key: str, data: str) -> bool:
        """Whether the run goes on as the same one with this change."""
        old, new = changes[key]
        if key == "max_epochs":
            return None not in (old, new) and new > old
        if key in STAYS:
            # The same longer run once more asks for the same later halving.
            asked = [one["changed"].get(key) for one in self._environment().get("continued", ())]
            return bool(old) and bool(new) and ("max_epochs" in changes or [old, new] in asked)
        if key == "init":
            return None not in (old, new) and old.split("@")[-1] == new.split("@")[-1]
        if key == "data_path":
            return bool(data) and self._environment().get("data") == data
        return key in PLACES

    def _environment(self) -> dict[str, Any]:
        try:
            return json.loads(self.environment_file.read_text())
        except (OSError, ValueError):
            return {}

    def _record(self, changes: Mapping[str, Any]) -> None:
        """Add to the run's record what changed, and what it changed on."""
        stored, now = self._environment(), environment()
        step = {key: now[key] for key in ("git_revision", "command", "system")} | {
            "changed": changes
        }
        continued = [*stored.get("continued", ()), step]
        write_json(self.environment_file, stored | {"continued": continued})

    def remove_leftovers(self) -> None:
        """Delete temporaries that killed writers left; only for who holds the lock."""
        for leftover in self.path.rglob(f"{TEMPORARY}*"):
            if leftover.is_file():
                leftover.unlink()

    def is_locked(self) -> bool:
        """Whether a process works in the folder."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with self.locked():
                return False
        except InputError:
            return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in the folder at the same time.

        The lock goes with the process, so a killed run leaves none behind.
        """
        writable_folder(self.path, "--run")
        busy = f"--run: another process is working in {self.path}"
        with locked(self.path / ".lock", 0, busy):
            yield
