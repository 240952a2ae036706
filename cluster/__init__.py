"""SLURM through submitit: scaling sweeps as job arrays of ordinary training runs, their results and figures."""
