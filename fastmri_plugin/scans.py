"""From scans of any format to pictures: `reconstruct.py SCAN`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmri_plugin.espirit import LEAST_WIDTH, centre_width
from fastmri_plugin.readers import find_scans, open_scan
from fastmri_plugin.readers.scan import Scan
from fastmri_plugin.reconstruct import ReconstructConfig
from fastmri_plugin.scan_files import SUFFIXES, write_scan
from fastmri_plugin.score_tables import scores_table
from fastmri_plugin.scoring import score_volume
from fastmri_plugin.slices import (
    SliceFunction,
    default_model,
    is_undersampled,
    measured_samples,
    slice_function,
)
from img2img_recon.figures import reconstruction_panel
from img2img_recon.support.errors import InputError, named
from img2img_recon.support.files import writable_folder, write_json
from img2img_recon.support.progress import Track

Report = Callable[[str], None]
COMPARED = ("zero_filled", "l1_wavelet")


def reconstruct_scans(
    config: ReconstructConfig, out: Path, report: Report, track: Track
) -> list[Path]:
    """Reconstruct every scan into `out`; one that cannot be read does not keep the others from it.

    Returns:
        The files written.

    Raises:
        InputError: a scan that cannot be reconstructed; of several, after the others are done.
    """
    paths, others = find_scans(config.scans)
    if others:
        report(f"{len(others)} files of no known format left out, {others[0].name} first")
    names = _names(paths)
    writable_folder(out, "--out")
    written: list[Path] = []
    failed: list[InputError] = []
    for path, name in zip(paths, names, strict=True):
        try:
            written += ScanJob(config, path, name, report, track).run(out)
        except InputError as error:
            if len(paths) == 1:
                raise
            failed.append(error)
            report(f"left out: {error}")
    if failed:
        raise InputError(
            f"{len(failed)} of {len(paths)} scans could not be reconstructed: {failed[0]}"
        )
    return written


def _names(paths: list[Path]) -> list[str]:
    """Names of the results, without endings or folders unless they would be the same.

    Raises:
        InputError: a scan is given twice.
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    names = []
    for path, (*_, name) in zip(paths, parts, strict=True):
        names.append(Path(name.removesuffix(".gz")).stem if path.is_file() else name)
    for count in range(1, max(map(len, parts), default=1)):
        often = Counter(names)
        names = [
            n if often[n] == 1 else "_".join(p[1:][-count:])
            for n, p in zip(names, parts, strict=True)
        ]
    often = Counter(names)
    for path, name in zip(paths, names, strict=True):
        if often[name] > 1:
            raise InputError(f"{path} is given {often[name]} times")
    return names


@dataclass
class ScanJob:
    """One scan, with what was asked for: `run` makes files of it, `images` shows a slice."""

    config: ReconstructConfig
    path: Path
    name: str
    report: Report
    track: Track

    def say(self, note: str) -> None:
        """Report a choice, once."""
        self.report(f"{self.path}: {note}")

    def run(self, out: Path) -> list[Path]:
        """Reconstruct the slices one at a time and write the results."""
        files = [out / f"{self.name}{suffix}" for suffix in SUFFIXES]
        existing = [file for file in files if file.exists()]
        if existing and not self.config.overwrite:
            raise InputError(f"--out: {existing[0]} exists; give --overwrite to replace it")
        with open_scan(self.path, self.config) as scan:
            model = self.prepare(scan)
            if self.config.accel is not None:
                return self._compare(scan, model, out)
            functions = {model: slice_function(model)}
            slices = [self.images(scan, i, functions)[1][model] for i in self._slices(scan)]
            return write_scan(out, self.name, np.stack(slices), scan)

    def prepare(self, scan: Scan) -> str:
        """Report what was chosen on reading, and choose the model.

        Raises:
            InputError: undersampling asked for of a scan that is undersampled.
        """
        for note in scan.notes:
            self.say(note)
        measured = self._measured(scan, scan.kspace(scan.num_slices // 2), say=True)
        if self.config.accel is not None and is_undersampled(measured):
            raise InputError(
                f"--accel: {self.path} is undersampled already; leave --accel out to reconstruct it"
            )
        model = self._model(scan, measured)
        if scan.shape[1] > 1 and model != "zero_filled" and is_undersampled(measured):
            width = centre_width(measured)
            if width < LEAST_WIDTH:
                self.say(
                    f"the fully sampled centre is {width} wide; coil maps come from it, and from less than "
                    f"{LEAST_WIDTH} they are poor"
                )
        return model

    def images(
        self, scan: Scan, index: int, functions: Mapping[str, SliceFunction]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What functions make of one slice, with --accel undersampled retrospectively.

        Returns:
            The mask, bool (W,) or (H, W), and magnitudes, float32 (h, w), by name: with --accel the
            `target`, then those of the functions.
        """
        kspace, size = scan.kspace(index), scan.image_size
        mask = self._measured(scan, kspace)
        images: dict[str, np.ndarray] = {}
        with named(f"{self.path}: slice {index}"):
            if self.config.accel is not None:
                images["target"] = slice_function("zero_filled")(kspace, mask, size)
                mask = mask & self._drawn(scan)
            for name, function in functions.items():
                images[name] = np.zeros(size, np.float32)
                if mask.any():
                    images[name] = function(kspace * mask, mask, size)
        return mask, images

    def _drawn(self, scan: Scan) -> np.ndarray:
        return self.config.masks().drawn(self.path.name, scan.shape[3])

    def _slices(self, scan: Scan) -> Iterable[int]:
        return self.track(range(scan.num_slices), self.name, scan.num_slices)

    def _measured(self, scan: Scan, kspace: np.ndarray, say: bool = False) -> np.ndarray:
        """What was measured of a slice, (W,) or (H, W): the stored mask, else by its zeros."""
        choice = self.config.mask
        if choice == "all":
            return np.ones(scan.shape[3], bool)
        if scan.mask is not None and choice is None:
            if say:
                self.say(f"stored mask: {scan.mask.sum()} of {len(scan.mask)} columns measured")
            return scan.mask
        measured = measured_samples(kspace)
        if say and choice is None and is_undersampled(measured):
            what = "columns" if measured.ndim == 1 else "samples of each slice"
            self.say(
                f"undersampled, no mask stored: taken from the zeros, {measured.sum()} of {measured.size} {what} "
                "(--mask all takes every column as measured)"
            )
        return measured

    def _model(self, scan: Scan, measured: np.ndarray) -> str:
        if self.config.model is not None:
            return self.config.model
        if self.config.accel is None and not is_undersampled(measured):
            self.say(
                "fully sampled: the image is its root-sum-of-squares (--accel 4 compares methods)"
            )
            return "zero_filled"
        model = default_model(scan.shape[1], measured)
        other = "--model takes another"
        if model.startswith("mri-") and scan.acquisition:
            # A file names its sequence, not the organ: whoever knows it can tell whether the network fits.
            anatomy = model.split("-")[1]
            other = f"trained on {anatomy}s alone, this scan is {scan.acquisition!r}; {other}"
        self.say(f"reconstructed with {model} ({other})")
        return model

    def _compare(self, scan: Scan, model: str, out: Path) -> list[Path]:
        """Undersample retrospectively and set methods beside the fully sampled image."""
        from rich.console import Console

        words = tuple(dict.fromkeys((*COMPARED, model)))
        functions = {Path(word).name: slice_function(word) for word in words}
        drawn = self._drawn(scan)
        made = [self.images(scan, index, functions)[1] for index in self._slices(scan)]
        volumes = {name: np.stack([images[name] for images in made]) for name in made[0]}
        target = volumes.pop("target")
        scores = {name: {self.name: score_volume(target, v)} for name, v in volumes.items()}
        middle = scan.num_slices // 2
        accel = "x, ".join(map(str, self.config.accel or ()))
        kept = f"{drawn.sum()} of {len(drawn)} columns"
        title = f"{self.name}, slice {middle}: {accel}x, undersampled retrospectively ({kept})"
        written = write_scan(out, self.name, volumes[Path(model).name], scan)
        panel, table = out / f"{self.name}_compared.png", out / f"{self.name}_compared.json"
        pictures = {name: volume[middle] for name, volume in volumes.items()}
        reconstruction_panel(panel, pictures, target[middle], title=title)
        columns = np.flatnonzero(drawn).tolist()
        write_json(table, {"retrospective": True, "columns": columns, "scores": scores})
        Console().print(scores_table(scores))
        return [*written, panel, table]
