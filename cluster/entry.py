"""The program of every job: submitit's, with the cluster's warning kept waiting until the job can take it.

Imports take seconds. A warning (SIGUSR2) that arrives meanwhile would end the process, and the run with it;
blocked, it is delivered when `cluster.jobs` has its handlers in place.
"""

from __future__ import annotations

import signal


def main() -> None:
    """Block the warning, then do what `python -m submitit.core._submit FOLDER` does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    from submitit.core._submit import submitit_main

    submitit_main()


if __name__ == "__main__":
    main()
