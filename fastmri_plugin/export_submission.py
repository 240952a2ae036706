"""Reconstruct a split with a trained run into a leaderboard submission, or check a submission.

python fastmri_plugin/export_submission.py --data_path DATA ... --checkpoint RUN --out FILE.zip
python fastmri_plugin/export_submission.py --data_path DATA ... --validate FILE.zip
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fastmri_plugin.submission import MaskOf, check_submission, stored_mask, write_submission
from fastmri_plugin.volumes import TARGET_KEYS, Challenge, VolumeInfo, list_volumes, split_folder
from img2img_recon.support.cli import flag, parse_config, run_script
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import bar

Split = Literal["test", "challenge", "val"]


@dataclass(frozen=True)
class ExportConfig:
    """Reconstruct a split with a trained run into a leaderboard submission, or check a submission.

    Give --checkpoint and --out to make a submission, or --validate to check one.
    """

    data_path: Path = flag(help="folder with {challenge}_{test_split}")
    challenge: Challenge = flag(help="which fastMRI challenge")
    checkpoint: Path | None = flag(None, help="run folder or checkpoint file of train.py")
    out: Path | None = flag(None, help="zip file to write")
    validate: Path | None = flag(None, help="zip file to check")
    test_split: Split = flag("test", help="split to reconstruct, or that was reconstructed")
    overwrite: bool = flag(False, help="replace --out if it exists")
    accelerator: Literal["auto", "cpu", "gpu"] = flag("auto", help="where the network runs")
    batch_size: int = flag(1, help="slices per batch (of one size)")
    num_workers: int = flag(0, help="loader processes")

    def __post_init__(self) -> None:
        for name, given, allowed in (
            ("challenge", self.challenge, tuple(TARGET_KEYS)),
            ("test_split", self.test_split, get_args(Split)),
        ):
            if given not in allowed:
                raise InputError(f"--{name}: given {given}, allowed: {', '.join(allowed)}")
        if self.validate is not None and (self.checkpoint is not None or self.out is not None):
            raise InputError("--validate: give it without --checkpoint and --out")
        if self.validate is None and (self.checkpoint is None or self.out is None):
            name = "--checkpoint" if self.checkpoint is None else "--out"
            raise InputError(f"{name}: needed, unless --validate is given")
        if self.batch_size < 1:
            raise InputError(f"--batch_size: given {self.batch_size}, allowed: 1 or more")
        if self.num_workers < 0:
            raise InputError(f"--num_workers: given {self.num_workers}, allowed: 0 or more")


def export(
    config: ExportConfig, infos: Sequence[VolumeInfo], checkpoint: Path, out: Path
) -> MaskOf:
    """Reconstruct `infos` with `checkpoint` into the archive `out`; return the masks it used.

    Raises:
        InputError: a checkpoint that cannot be used or is another challenge's, an archive that
            exists.
    """
    if out.exists() and not config.overwrite:
        raise InputError(f"--out: {out} exists; give --overwrite to replace it")
    # Lightning and the networks: only an export needs them.
    from fastmri_plugin.inference import load_reconstructor, reconstruct_volumes
    from img2img_recon.training.trainer import pick_device

    reconstructor = load_reconstructor(checkpoint)
    if reconstructor.challenge != config.challenge:
        raise InputError(
            f"--challenge: given {config.challenge}, but {checkpoint} was trained for "
            f"{reconstructor.challenge}"
        )
    reconstructions = reconstruct_volumes(
        reconstructor,
        infos,
        device=pick_device(config.accelerator),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        track=bar,
    )
    write_submission(reconstructions, infos, out, config.challenge, overwrite=config.overwrite)
    return reconstructor.mask_of


def main(words: Sequence[str] | None = None) -> None:
    """Export and check, or check, as the command line says; every problem on a line of its own."""
    config = parse_config(ExportConfig, words)
    folder = split_folder(config.data_path, config.challenge, config.test_split)
    infos = list_volumes(folder, config.challenge, track=bar)
    mask_of: MaskOf = stored_mask
    path = config.validate
    if config.checkpoint is not None and config.out is not None:
        path = config.out
        mask_of = export(config, infos, config.checkpoint, path)
    assert path is not None
    report = check_submission(path, infos, config.challenge, mask_of=mask_of, track=bar)
    for problem in report.problems:
        print(f"{path}: {problem}", file=sys.stderr)
    if report.problems:
        raise InputError(f"{path}: not valid, {len(report.problems)} problem(s) listed above")
    print(f"valid submission: {report.summary()}")


if __name__ == "__main__":
    run_script(main)
