"""Windows and macOS: nothing that a user imports needs what only Linux or only POSIX has."""

import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("img2img_recon", "fastmri_plugin", "denoise_tasks", "cluster")
SCRIPTS = (
    *(f"fastmri_plugin/{name}.py" for name in ("train", "reconstruct", "evaluate")),
    *(f"fastmri_plugin/{name}.py" for name in ("export_submission", "convert", "freeze_split")),
    *(f"denoise_tasks/{name}.py" for name in ("train", "evaluate", "denoise", "untrained")),
    "cluster/sweep.py",
    "cluster/launch.py",
)
# Needs a package that is not among the pinned ones.
EXTERNAL = {"img2img_recon.deepinv"}
POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
# Run before anything else is imported: what Windows lacks is not there.
HIDE = (
    f"POSIX = {POSIX}"
    + """
import os, signal, sys
for name in POSIX:
    sys.modules[name] = None
for owner, names in (
    (os, "fork forkpty getuid geteuid getpgid killpg setsid sched_getaffinity getloadavg mkfifo"),
    (signal, "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGQUIT SIGSTOP SIGUSR1 SIGUSR2"),
):
    for name in names.split():
        if hasattr(owner, name):
            delattr(owner, name)
"""
)
IMPORT_ALL = (
    HIDE
    + """
import importlib, json
failed = {}
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except BaseException as error:
        failed[module] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""
)
RUN = (
    HIDE + "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def modules() -> list[str]:
    return [
        item.name
        for package in PACKAGES
        for item in pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
        if item.name not in EXTERNAL
    ]


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=300,
    )


@pytest.mark.slow
def test_every_module_is_imported_without_what_windows_lacks():
    names = modules()
    assert len(names) > 40
    done = python(IMPORT_ALL, *names)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_the_hiding_hides():
    done = python(IMPORT_ALL, "fcntl", "pty", "json")
    assert set(json.loads(done.stdout)) == {"fcntl", "pty"}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts_without_what_windows_lacks(script):
    done = python(RUN, str(ROOT / script), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_no_module_names_what_posix_alone_has():
    # Also inside of functions, which importing does not run.
    for module in modules():
        file = importlib.util.find_spec(module).origin
        for line in Path(str(file)).read_text(encoding="utf-8").splitlines():
            words = line.replace(",", " ").split()
            if words[:1] in (["import"], ["from"]):
                assert not POSIX & {*words}, (module, line)
            assert "os.fork(" not in line, module
            assert 'get_context("fork")' not in line, module
