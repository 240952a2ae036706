"""Reconstruct a split with trained runs and other methods.

python fastmri_plugin/reconstruct.py --run RUN --challenge singlecoil --data_path DIR --test_split test --out FOLDER
python fastmri_plugin/reconstruct.py --method tv --challenge singlecoil --test_path FOLDER --data_path DIR --out OUT
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmri_plugin.flags import SplitFlags
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(SplitFlags):
    """Reconstruct a split with trained runs and other methods, into a folder per method."""

    out: Path | None = flag(
        None,
        help="folder to make; default, of one run: RUN/predictions/, named by the data",
        basic=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None and len(self.run or ()) != 1:
            raise InputError("--out: needed, unless one --run is given")


@script
def main(words: Sequence[str] | None = None) -> None:
    """Reconstruct what the command line says and print the folder made."""
    config = parse_config(ReconstructConfig, words)
    from fastmri_plugin.splits import default_out, open_split, reconstruct_into
    from img2img_recon.training.runner import report

    out = config.out
    if out is None:
        (run,) = config.run or ()
        if not run.is_dir():
            raise InputError(f"--out: needed, {run} is not a run folder")
    split = open_split(config, report)
    print(reconstruct_into(out or default_out(run, split.folder), split))


if __name__ == "__main__":
    main()
