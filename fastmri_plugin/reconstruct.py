"""Reconstruct scans of many formats, or a fastMRI split with trained runs and other methods.

python fastmri_plugin/reconstruct.py SCAN [SCAN ...] --out DIR
python fastmri_plugin/reconstruct.py SCAN --accel 4 --out DIR --model RUN
python fastmri_plugin/reconstruct.py --run RUN --challenge singlecoil --data_path DIR --test_split test --out FOLDER
python fastmri_plugin/reconstruct.py --method tv --challenge singlecoil --test_path FOLDER --data_path DIR --out OUT
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from fastmri_plugin import Challenge
from fastmri_plugin.flags import ReadFlags, SplitFlags
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError

OF_SPLITS = ("run", "method", "test_path", "data_path")
OF_SCANS = ("model", "mask", "key", "axes", "kind", "phase")


class _CallableModule(ModuleType):
    """Importing this script sets `fastmri_plugin.reconstruct`, the function's name; so the module does its work too."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from fastmri_plugin.slices import reconstruct

        return reconstruct(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig(SplitFlags, ReadFlags):
    """Reconstruct scans (fastMRI, raw ISMRMRD, BART, MATLAB, NIfTI, DICOM, twix, arrays), or a split of fastMRI's.

    Given scans or folders of them, OUT holds of each a volume, NIfTI and a mosaic. Without, --run and --method
    are applied to a split, into a folder per method.
    """

    scans: tuple[Path, ...] = flag((), help="scans, or folders of scans", positional=True)
    out: Path | None = flag(
        None,
        help="folder to make; default, of one run on a split: RUN/predictions/, named by the data",
        basic=True,
    )
    model: str | None = flag(
        None,
        help="of scans: tv, l1_wavelet, zero_filled, a network's name, run folder or file; default: a network of the "
        "package that fits, else l1_wavelet",
        basic=True,
    )
    mask: Literal["from-zeros", "all"] | None = flag(
        None,
        help="columns measured in scans; default: the stored mask, else from zeros, which is said",
        basic=True,
    )
    overwrite: bool = flag(False, help="replace results of scans that exist", basic=True)
    challenge: Challenge = flag(
        "singlecoil", help="which challenge's split", group="data", basic=True
    )

    def __post_init__(self) -> None:
        SplitFlags.__post_init__(self)
        ReadFlags.__post_init__(self)
        for name in OF_SPLITS if self.scans else OF_SCANS:
            if getattr(self, name) is not None:
                where = (
                    "a split, not scans (they take --model)"
                    if self.scans
                    else "scans, give at least one"
                )
                raise InputError(f"--{name}: for {where}")
        if self.out is None and (self.scans or len(self.run or ()) != 1):
            raise InputError("--out: needed, unless one --run is applied to a split")


@script
def main(words: Sequence[str] | None = None) -> None:
    """Reconstruct what the command line says and print the folder or files made."""
    config = parse_config(ReconstructConfig, words)
    out = config.out
    if config.scans:
        from fastmri_plugin.readers import check_paths

        # A wrong path is said before torch is imported.
        check_paths(config.scans)
    from fastmri_plugin.splits import default_out, open_split, reconstruct_into
    from img2img_recon.support.progress import bar, silent
    from img2img_recon.training.runner import report

    if config.scans and out is not None:
        from fastmri_plugin.scans import reconstruct_scans

        for path in reconstruct_scans(config, out, report, bar if config.progress else silent):
            print(path)
        return
    if out is None:
        (run,) = config.run or ()
        if not run.is_dir():
            raise InputError(f"--out: needed, {run} is not a run folder")
    split = open_split(config, report)
    print(reconstruct_into(out or default_out(run, split.folder), split))


if __name__ == "__main__":
    main()
