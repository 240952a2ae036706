"""Scripts run as a person runs them, in processes forked from one in which the libraries are imported.

So a script starts in milliseconds where a new interpreter needs seconds for torch and Lightning. What a new interpreter
would show (how long a script imports, what it imports) is tested with real ones.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

HEAVY = ["torch", "pytorch_lightning", "fastmri", "fastmri.data", "fastmri.pl_modules", "h5py"]
HEAVY += ["skimage.metrics", "scipy.ndimage", "matplotlib.pyplot", "rich.table", "tensorboard"]
SAID = ("out", "err")  # files: the standard output and the standard error


def run_script(
    words: Sequence[object],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 400,
) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` does, with what it says."""
    line = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        process = start_script(line, Path(folder), cwd=cwd, env=env)
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(line, timeout)
        said = [Path(folder, name).read_text(errors="replace") for name in SAID]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(line, process.exitcode, *said)


def start_script(
    words: Sequence[object],
    said: Path,
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
) -> BaseProcess:
    """The process of `python WORDS`, which has begun; the files SAID of the folder hold what it says."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload(HEAVY)
    files = [str(said / name) for name in SAID]
    line = [str(word) for word in words]
    arguments = (line, os.fspath(cwd or os.getcwd()), dict(env or os.environ), files)
    process = context.Process(target=_script, args=arguments)
    process.start()
    return process


def _script(words: list[str], folder: str, environment: dict[str, str], files: list[str]) -> None:
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    # Scripts that start pools and loaders do so as in an interpreter that somebody started.
    multiprocessing.current_process()._config["daemon"] = False
    multiprocessing.set_start_method(None, force=True)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).resolve().parent)
    runpy.run_path(words[0], run_name="__main__")
