"""Freeze a test split: masks are drawn once, stored with the k-space, and targets are kept apart.

    python fastmri_plugin/freeze_split.py --data_path DATA --challenge singlecoil --out DIR
    python fastmri_plugin/freeze_split.py --verify DIR

The public fastMRI leaderboard is offline; such a split stands in for it. It holds

    DIR/{challenge}_test/NAME.h5          masked k-space, mask, header, acceleration; no target
    DIR/targets/{challenge}_test/NAME.h5  what the scorer compares with
    DIR/MANIFEST.json                     checksums of files and sources, parameters of masks

A volume's mask is the one that fastMRI draws for it in validation, from its name and acceleration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastmri_plugin import Challenge
from fastmri_plugin.masks import MaskSpec, usual_center_fraction
from img2img_recon.support.cli import flag, parse_config, script
from img2img_recon.support.errors import InputError, named
from img2img_recon.support.files import make_folder_once, write_json
from img2img_recon.support.progress import Track, bar, silent
from img2img_recon.support.types import NonNegativeInt, PositiveInt, UnitShare

MANIFEST = "MANIFEST.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True)
class FreezeConfig:
    """Make a test split with stored masks from fully sampled volumes, or verify one.

    Give --data_path, --challenge and --out to make a split, or only --verify.
    """

    data_path: Path | None = flag(None, help="fastMRI data folder with {challenge}_{split}")
    challenge: Challenge | None = flag(None, help="whether volumes have a coil axis")
    out: Path | None = flag(None, help="folder to make; must not exist")
    split: str = flag("val", help="fully sampled split to freeze")
    accel: tuple[PositiveInt, ...] = flag(
        (4, 8), help="accelerations to deal out evenly, one per volume", aliases=("accelerations",)
    )
    center_fractions: tuple[UnitShare, ...] | None = flag(
        None,
        help="share of the columns kept at the centre, per acceleration; default: 0.32 / acceleration",
    )
    mask_type: Literal["random", "equispaced_fraction"] = flag("random", help="fastMRI's mask type")
    seed: NonNegativeInt = flag(0, help="seed that deals the accelerations out")
    verify: Path | None = flag(None, help="frozen folder to check against its manifest")

    def __post_init__(self) -> None:
        needed = {"--data_path": self.data_path, "--challenge": self.challenge, "--out": self.out}
        if self.verify is not None:
            if any(value is not None for value in needed.values()):
                raise InputError(f"--verify: give it alone, without {', '.join(needed)}")
            return
        for name, value in needed.items():
            if value is None:
                raise InputError(f"{name}: needed, unless --verify is given")
        if not self.accel or len(set(self.accel)) < len(self.accel):
            given = " ".join(map(str, self.accel))
            raise InputError(f"--accel: given {given or 'nothing'}, expected different numbers")
        self.masks()

    def masks(self) -> MaskSpec:
        """The masks that the flags describe; each acceleration is dealt to volumes of its own.

        Raises:
            InputError: values that are not allowed, or do not go together.
        """
        fractions = self.center_fractions or tuple(map(usual_center_fraction, self.accel))
        return MaskSpec(self.mask_type, self.accel, fractions)


def deal_accelerations(
    names: Sequence[str], accelerations: Sequence[int], seed: int
) -> dict[str, int]:
    """Give every volume one acceleration, each as often as the others (to within one).

    Depends on the set of names and the seed only, not on the names' order.
    """
    import numpy as np

    shuffled = sorted(names)
    np.random.default_rng(seed).shuffle(shuffled)
    dealt = {
        name: accelerations[position % len(accelerations)] for position, name in enumerate(shuffled)
    }
    return dict(sorted(dealt.items()))


def file_sha256(path: Path) -> str:
    """Hash a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def freeze_split(
    config: FreezeConfig,
    *,
    report: Callable[[str], None] = lambda message: None,
    track: Track = silent,
) -> Path:
    """Make the frozen split that `config` describes; it is complete or absent.

    Returns:
        The folder made.

    Raises:
        InputError: the folder exists, or the source split cannot be used.
    """
    from fastmri_plugin.frozen import freeze_into
    from fastmri_plugin.listing import list_volumes, split_folder, volume_paths

    if config.data_path is None or config.challenge is None or config.out is None:
        raise ValueError("freeze_split needs a data_path, a challenge and an out folder")
    challenge, out, spec = config.challenge, config.out, config.masks()
    fractions = dict(zip(spec.accelerations, spec.center_fractions, strict=True))
    if out.exists():
        raise InputError(f"--out: {out} exists; nothing is overwritten")
    with named("--data_path"):
        source = split_folder(config.data_path, challenge, config.split)
    volumes = list_volumes(source, challenge, needs=("target", "full"), report=report, track=track)
    spec.check(volumes)
    dealt = deal_accelerations([info.name for info in volumes], config.accel, config.seed)

    def fill(folder: Path) -> None:
        entries = []
        for info in track(volumes, "freezing volumes", len(volumes)):
            acceleration, fraction = dealt[info.name], fractions[dealt[info.name]]
            mask = freeze_into(folder, info, config.mask_type, acceleration, fraction)
            entries.append(
                {
                    "name": info.name,
                    "acceleration": acceleration,
                    "center_fraction": fraction,
                    "num_low_frequency": round(info.num_columns * fraction),
                    "num_columns": info.num_columns,
                    "sampled_columns": int(mask.sum()),
                    "source_sha256": file_sha256(info.path),
                }
            )
        test = f"{challenge}_test"
        paths = [*volume_paths(folder / test), *volume_paths(folder / "targets" / test)]
        write_json(
            folder / MANIFEST,
            {
                "version": MANIFEST_VERSION,
                "challenge": challenge,
                "source_split": config.split,
                "mask_type": config.mask_type,
                "mask_seed": "code points of the file name, as fastMRI",
                "seed": config.seed,
                "center_fractions": {str(accel): value for accel, value in fractions.items()},
                "volumes": entries,
                "files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths},
            },
        )

    return make_folder_once(out, fill)


def verify_split(folder: Path, *, track: Track = silent) -> int:
    """Compare every file of a frozen split with its manifest.

    Returns:
        How many files were compared.

    Raises:
        InputError: naming each file that is missing, changed or not in the manifest.
    """
    from fastmri_plugin.listing import SUFFIXES

    manifest = _read_manifest(folder)
    # Hidden files are not part of a split: macOS puts one beside every file that it copies.
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    }
    missing = sorted(set(manifest) - present)
    changed = [
        name
        for name in track(sorted(set(manifest) & present), "checking files", len(manifest))
        if file_sha256(folder / name) != manifest[name]
    ]
    extra = sorted(present - set(manifest))
    differences = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("changed", changed), ("not listed", extra))
        if names
    ]
    if differences:
        raise InputError(
            f"--verify: {folder} differs from its {MANIFEST}; {'; '.join(differences)}"
        )
    return len(manifest)


def _read_manifest(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    try:
        content: Any = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"--verify: {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"--verify: {path} is not a JSON file") from None
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise InputError(f"--verify: {path} lists no files")
    return files


@script
def main(words: Sequence[str] | None = None) -> None:
    """Freeze or verify, as the command line says."""
    config = parse_config(FreezeConfig, words)
    from img2img_recon.training.runner import report

    if config.verify is not None:
        print(f"{verify_split(config.verify, track=bar)} files are as the manifest says")
        return
    folder = freeze_split(config, report=report, track=bar)
    volumes = json.loads((folder / MANIFEST).read_text())["volumes"]
    counts = [
        f"{sum(entry['acceleration'] == acceleration for entry in volumes)} at {acceleration}x"
        for acceleration in config.accel
    ]
    print(f"{len(volumes)} volumes frozen in {folder}: {', '.join(counts)}")


if __name__ == "__main__":
    main()
