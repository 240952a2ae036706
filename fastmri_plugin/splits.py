"""Applying trained runs and other methods to a split: the one way, whatever becomes of the reconstructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmri_plugin.demo_data import demo_folder
from fastmri_plugin.dirs import configured_data_path
from fastmri_plugin.flags import DataFlags, SplitFlags
from fastmri_plugin.inspection import Need
from fastmri_plugin.listing import list_volumes, split_folder
from fastmri_plugin.masks import MaskSpec
from fastmri_plugin.methods import Reconstructor, make_method
from fastmri_plugin.trained import TrainedNetwork
from fastmri_plugin.volumes import VolumeInfo, write_reconstruction
from img2img_recon.support.errors import InputError, named
from img2img_recon.support.files import make_folder_once
from img2img_recon.support.progress import Track, bar, silent

Report = Callable[[str], None]


@dataclass(frozen=True)
class OpenSplit:
    """A split with all that is applied to it, looked up and checked.

    Attributes:
        folder: of the volumes.
        infos: the volumes.
        masks: for volumes that store none.
        methods: by names that differ.
        track: progress bars, if wanted.
    """

    folder: Path
    infos: list[VolumeInfo]
    masks: MaskSpec
    methods: dict[str, Reconstructor]
    track: Track


def find_data(data: DataFlags, report: Report, track: Track) -> tuple[Path, bool]:
    """The data folder, and whether it is the built-in synthetic one (made now if need be)."""
    given = data.data_path or configured_data_path(data.anatomy)
    if given is not None:
        return given, False
    report(
        "No --data_path and no fastmri_dirs.yaml: using the built-in synthetic data (phantoms, not "
        "patients) and settings fit for a laptop."
    )
    return demo_folder(data.challenge, track), True


def find_split(flags: SplitFlags, report: Report) -> Path:
    """The folder of the volumes.

    Raises:
        InputError: it is not there.
    """
    if flags.test_path is not None:
        if not flags.test_path.is_dir():
            raise InputError(f"--test_path: {flags.test_path} is not a folder")
        return flags.test_path
    data_path, _ = find_data(flags, report, bar if flags.progress else silent)
    with named("--data_path"):
        return split_folder(data_path, flags.challenge, flags.test_split)


def open_split(flags: SplitFlags, report: Report) -> OpenSplit:
    """Load the runs and methods, list the volumes, settle masks and what methods have to choose.

    Volumes that have a mask of their own keep it. The others get the masks that the flags describe, by default
    those that the runs were trained with. What a method has to choose (a regularization) it takes from
    a run whose training chose it, else it chooses on the data's training volumes.

    Raises:
        InputError: nothing to apply, or something that cannot be used.
    """
    track = bar if flags.progress else silent
    methods = _named_methods(flags)
    runs = [method for method in methods.values() if isinstance(method, TrainedNetwork)]
    for run in runs:
        if run.challenge != flags.challenge:
            raise InputError(
                f"--challenge: given {flags.challenge}, but {run.source} was trained for {run.challenge}"
            )
    masks = _masks(flags, runs)
    folder = find_split(flags, report)
    needs: tuple[Need, ...] = ("limits",) if "fastmri_varnet" in {run.model for run in runs} else ()
    infos = list_volumes(folder, flags.challenge, needs=needs, report=report, track=track)
    masks.check(infos)
    if flags.gives_masks() and (others := masks.others(infos)):
        report(f"{folder}: {others}")
    stored = {name: settings for run in reversed(runs) for name, settings in run.chosen.items()}
    for method in methods.values():
        if method.chooses:
            _settle(method, stored, flags, masks, track)
    return OpenSplit(folder, infos, masks, methods, track)


def _named_methods(flags: SplitFlags) -> dict[str, Reconstructor]:
    """The runs, then the other methods; runs of one model are told apart by their folders' names."""
    options: dict[str, Any] = {
        "accelerator": flags.accelerator,
        "batch_size": flags.batch_size,
        "num_workers": flags.num_workers,
    }
    methods: list[Reconstructor] = [TrainedNetwork(run, **options) for run in flags.run or ()]
    methods += [make_method(word, **options) for word in flags.method or ()]
    if not methods:
        raise InputError("--run, --method: give at least one of the two")
    counts = Counter(method.name for method in methods)
    for method in methods:
        if counts[method.name] > 1 and isinstance(method, TrainedNetwork):
            method.name = f"{method.name}-{method.source.resolve().stem}"
    by_name = {method.name: method for method in methods}
    if len(by_name) < len(methods):
        raise InputError(
            "--run, --method: the same thing, or folders of the same name, given twice"
        )
    return by_name


def _masks(flags: SplitFlags, runs: Sequence[TrainedNetwork]) -> MaskSpec:
    if flags.gives_masks() or not runs:
        return flags.masks()
    trained = [(run.masks, run.source) for run in runs if run.masks is not None]
    for masks, source in trained[1:]:
        if masks != trained[0][0]:
            raise InputError(
                f"--accel: needed, {trained[0][1]} and {source} were trained with different masks"
            )
    return trained[0][0] if trained else flags.masks()


def _settle(
    method: Reconstructor,
    stored: Mapping[str, Mapping[str, Any]],
    flags: SplitFlags,
    masks: MaskSpec,
    track: Track,
) -> None:
    if method.name in stored:
        method.settings = stored[method.name]
        return
    place = f"--method: {method.name} has to choose its settings on training volumes"
    if flags.test_path and not (flags.data_path or configured_data_path(flags.anatomy)):
        raise InputError(f"{place}; give --data_path, or a run that chose them")
    data_path, _ = find_data(flags, lambda message: None, track)
    needs: tuple[Need, ...] = ("target",)
    with named(place):
        folder = split_folder(data_path, flags.challenge, "train")
        train = list_volumes(folder, flags.challenge, needs=needs, track=track)
    method.choose(train, masks, track)


def reconstruct_into(out: Path, split: OpenSplit) -> Path:
    """Write every method's reconstructions into `out`, a folder per method; it is whole or absent.

    Raises:
        InputError: the folder exists, or a volume cannot be reconstructed.
    """
    if out.exists():
        raise InputError(f"--out: {out} exists and is not overwritten; give another")

    def fill(temporary: Path) -> None:
        for name, method in split.methods.items():
            for fname, volume in method.reconstruct(split.infos, split.masks, split.track):
                write_reconstruction(temporary / name / fname, volume)

    return make_folder_once(out, fill)


def default_out(run: Path, folder: Path) -> Path:
    """Where reconstructions of a folder go by default: RUN/predictions/, named by the data."""
    source = folder.resolve()
    return run / "predictions" / f"{source.parent.name}-{source.name}"
