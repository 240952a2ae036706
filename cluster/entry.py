"""The program of every job, with the cluster's warning kept waiting until the job can take it.

python -m cluster.entry LOGS     submitit's program for a job of an array
python -m cluster.entry FILE     a pickled job of this machine

Imports take seconds. A warning (SIGUSR2) that arrives meanwhile would end the process, and the run with it;
blocked, it is delivered when `cluster.job` has its handlers in place.
"""

from __future__ import annotations

import pickle
import signal
import sys
from pathlib import Path


def main() -> None:
    """Block the warning, then run the job."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    job = Path(sys.argv[1])
    if job.is_dir():
        from submitit.core._submit import submitit_main

        submitit_main()
    else:
        pickle.loads(job.read_bytes())()


if __name__ == "__main__":
    main()
