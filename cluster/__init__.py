"""Scaling sweeps as job arrays of ordinary training runs."""

from pathlib import Path

# Resources and flags for all sweeps of a place, if it is in the working directory.
SITE_FILE = Path("cluster_site.yaml")
