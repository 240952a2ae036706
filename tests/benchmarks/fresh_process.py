"""One call in an interpreter of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def call_in_fresh_process(module: str, function: str, *arguments: object) -> Any:
    """Call a function in an interpreter of its own, whose memory and allocator nothing has used before.

    Unlike multiprocessing, the new process never runs this one's main module.

    Args:
        module: what the new process imports.
        function: of that module; its result must be what JSON can hold.
        arguments: likewise.

    Raises:
        RuntimeError: the process failed or was ended; with the last line that it said.
    """
    code = (
        f"import json, sys; from {module} import {function}; "
        f"print(json.dumps({function}(*json.loads(sys.argv[1]))))"
    )
    package_parent = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"ended with {done.returncode}, out of memory?")
    return json.loads(done.stdout.splitlines()[-1])
