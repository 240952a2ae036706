"""Reconstruct a split into a leaderboard submission, or check a submission.

python fastmri_plugin/export_submission.py --run RUN --data_path DATA --challenge singlecoil --out FILE.zip
python fastmri_plugin/export_submission.py --validate FILE.zip --data_path DATA --challenge singlecoil
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmri_plugin.flags import SplitFlags
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ExportConfig(SplitFlags):
    """Reconstruct a split with a trained run or a method into a leaderboard submission, or check one.

    Give --run or --method and --out to make a submission, or --validate to check one.
    """

    out: Path | None = flag(None, help="zip file to write", basic=True)
    validate: Path | None = flag(None, help="zip file to check", basic=True)
    overwrite: bool = flag(False, help="replace --out if it exists", basic=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = len(self.run or ()) + len(self.method or ())
        if self.validate is not None:
            if given or self.out is not None:
                raise InputError("--validate: give it without --run, --method and --out")
            return
        if given != 1:
            raise InputError("--run, --method: give one of the two, unless --validate is given")
        if self.out is None:
            raise InputError("--out: needed, unless --validate is given")
        if self.out.exists() and not self.overwrite:
            raise InputError(f"--out: {self.out} exists; give --overwrite to replace it")


@script
def main(words: Sequence[str] | None = None) -> None:
    """Export and check, or check, as the command line says; every problem on a line of its own."""
    config = parse_config(ExportConfig, words)
    from fastmri_plugin.listing import list_volumes
    from fastmri_plugin.splits import find_split, open_split
    from fastmri_plugin.submission import check_submission, write_submission
    from fastmri_plugin.volumes import own_mask
    from img2img_recon.support.progress import bar, silent
    from img2img_recon.training.runner import report

    track, mask_of = bar if config.progress else silent, own_mask
    if config.validate is not None:
        path = config.validate
        folder = find_split(config, report)
        infos = list_volumes(folder, config.challenge, report=report, track=track)
    elif config.out is not None:
        path, split = config.out, open_split(config, report)
        infos, mask_of = split.infos, split.masks.mask_of
        (method,) = split.methods.values()
        made = method.reconstruct(infos, split.masks, track)
        write_submission(made, infos, path, overwrite=config.overwrite)
    found = check_submission(path, infos, mask_of=mask_of, track=track)
    for problem in found.problems:
        print(f"{path}: {problem}", file=sys.stderr)
    if found.problems:
        raise InputError(f"{path}: not valid, {len(found.problems)} problem(s) listed above")
    print(f"valid submission: {found.summary()}")


if __name__ == "__main__":
    main()
