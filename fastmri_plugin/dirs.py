"""`fastmri_dirs.yaml` in the working directory: where fastMRI's users say their data and logs are."""

from __future__ import annotations

from pathlib import Path

from img2img_recon.support.errors import InputError

DIRS_FILE = Path("fastmri_dirs.yaml")


def configured_data_path(anatomy: str) -> Path | None:
    """The data folder that the file names for "knee" or "brain"; None without file or entry.

    fastMRI writes a template with made-up paths into that file; those count as not set.

    Raises:
        InputError: a file that is no YAML mapping, or a path that is not a folder.
    """
    value = _entry(f"{anatomy}_path")
    if value is None or value == Path(f"/path/to/{anatomy}"):
        return None
    if not value.is_dir():
        raise InputError(f"{DIRS_FILE}: {anatomy}_path is {value}, which is not a folder")
    return value


def log_path() -> Path:
    """Where runs go: the file's `log_path`, else the working directory."""
    return _entry("log_path") or Path()


def _entry(key: str) -> Path | None:
    if not DIRS_FILE.is_file():
        return None
    import yaml

    try:
        content = yaml.safe_load(DIRS_FILE.read_bytes())
    except yaml.YAMLError as error:
        raise InputError(f"{DIRS_FILE}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{DIRS_FILE}: expected the keys knee_path, brain_path and log_path")
    value = content.get(key)
    return None if value is None else Path(str(value)).expanduser()
