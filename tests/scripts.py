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
from pathlib import Path

HEAVY = ["torch", "pytorch_lightning", "fastmri", "fastmri.data", "fastmri.pl_modules", "h5py"]
HEAVY += ["skimage.metrics", "scipy.ndimage", "matplotlib.pyplot", "rich.table", "tensorboard"]


def run_script(
    words: Sequence[object],
    *,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 400,
) -> subprocess.CompletedProcess[str]:
    """What `python WORDS` does, with what it says."""
    line = [str(word) for word in words]
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return subprocess.run(
            [sys.executable, *line],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=cwd,
            env=env,
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder, name)) for name in ("out", "err")]
        arguments = (line, os.fspath(cwd or os.getcwd()), dict(env or os.environ), files)
        process = context.Process(target=_script, args=arguments)
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(line, timeout)
        said = [Path(file).read_text(errors="replace") for file in files]
    assert process.exitcode is not None
    return subprocess.CompletedProcess(line, process.exitcode, *said)


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
