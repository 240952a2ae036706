"""A page that reconstructs MRI scans: give a file, look through its slices.

python -m fastmri_plugin.app
python -m fastmri_plugin.app --port 8000 --host 0.0.0.0
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmri_plugin.reconstruct import ReconstructConfig
from img2img_recon.support.cli import config_from, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.page import PageConfig, Say, handler, serve

if TYPE_CHECKING:
    import numpy as np

    from fastmri_plugin.slices import SliceFunction

TITLE = "Reconstruct an MRI scan"
ABOUT = (
    "A file of any format that `reconstruct.py` reads; of a BART pair both files, of a DICOM series all of them. "
    "With an acceleration a fully sampled scan is undersampled retrospectively. Not for diagnosis."
)
AUTOMATIC = "automatic"
ACCELERATIONS = [("as measured", 0), *((f"{accel}x", accel) for accel in (2, 4, 6, 8))]
ERROR_SCALE = 5


@lru_cache(maxsize=2)
def _opened(model: str) -> SliceFunction:
    from fastmri_plugin.slices import slice_function

    return slice_function(model)


def show_slice(
    files: Sequence[Path], out: Path, say: Say, model: str, accel: int, index: int | None
) -> tuple[list[tuple[np.ndarray, str]], int, int]:
    """One slice of a scan, as pictures.

    Args:
        files: of the scan.
        out: not used, nothing is written.
        say: told what was chosen on reading.
        model: `AUTOMATIC`, or as `reconstruct.py --model`.
        accel: acceleration of a retrospective undersampling; 0 for none.
        index: which slice, from 0; None, or one beyond the last, takes the middle.

    Returns:
        Grey pictures, uint8 (h, w), with captions: mask, zero-filled, reconstruction, with an acceleration also
        target and error; which slice it is, and of how many.

    Raises:
        InputError: files that are not one scan, or cannot be reconstructed so.
    """
    from fastmri_plugin.readers import find_scans, open_scan
    from fastmri_plugin.scans import ScanJob
    from img2img_recon.support.progress import silent

    scans, _ = find_scans(files if len(files) == 1 else [files[0].parent])
    if len(scans) != 1:
        raise InputError(f"{len(scans)} scans ({scans[0].name}, {scans[1].name} ...); give one")
    given = {"scans": [str(scans[0])], "out": str(out), "accel": [accel] if accel else None}
    given["model"] = None if model == AUTOMATIC else model
    config = config_from(ReconstructConfig, given)
    job = ScanJob(config, scans[0], scans[0].name, say, silent)
    with open_scan(scans[0], config) as scan:
        words = dict.fromkeys(("zero_filled", job.prepare(scan)))
        if index is None or index >= scan.num_slices:
            index = scan.num_slices // 2
        mask, images = job.images(scan, index, {word: _opened(word) for word in words})
        return _pictures(mask, images, scan.shape[2:]), index, scan.num_slices


def _pictures(
    mask: np.ndarray, images: dict[str, np.ndarray], size: tuple[int, int]
) -> list[tuple[np.ndarray, str]]:
    """Mask and images, and with a target scores and the last one's error, all in the target's window."""
    import numpy as np

    from img2img_recon.figures import WINDOW_PERCENTILE, label_of
    from img2img_recon.metrics import volume_scores

    target = images.get("target")
    *_, last = images
    top = float(np.percentile(images[last] if target is None else target, WINDOW_PERCENTILE)) or 1.0

    def grey(image: np.ndarray) -> np.ndarray:
        return (np.clip(image / top, 0, 1) * 255).round().astype(np.uint8)

    def caption(name: str) -> str:
        if target is None or name == "target" or not target.any():
            return label_of(name)
        scores = volume_scores(target[None], images[name][None], data_range=float(target.max()))
        return f"{label_of(name)}: SSIM {scores['ssim']:.3f}, PSNR {scores['psnr']:.1f} dB"

    columns = np.uint8(255) * np.broadcast_to(mask, size)
    pictures = [(columns, f"mask: {mask.sum()} of {mask.size} measured")]
    pictures += [
        (grey(images[name]), caption(name)) for name in sorted(images, key="target".__eq__)
    ]
    if target is not None:
        error = grey(ERROR_SCALE * np.abs(images[last] - target))
        pictures.append((error, f"{ERROR_SCALE} x |{label_of(last)} - target|"))
    return pictures


def build(gr: Any) -> None:
    """Lay out the page's components; `gr` is the module gradio."""
    from fastmri_plugin.shipped import shipped
    from fastmri_plugin.slices import CLASSICAL

    def work(*given: Any) -> tuple[Any, Any]:
        pictures, index, count = show_slice(*given)
        return pictures, gr.Slider(value=index, maximum=max(count - 1, 1), interactive=count > 1)

    with gr.Row():
        with gr.Column(scale=1):
            files = gr.File(label="Scan", file_count="multiple", height=120)
            model = gr.Dropdown(
                [AUTOMATIC, *CLASSICAL, *shipped()], value=AUTOMATIC, label="Reconstruction"
            )
            accel = gr.Radio(ACCELERATIONS, value=0, label="Acceleration")
            index = gr.Slider(0, 1, 0, step=1, label="Slice", interactive=False, elem_id="slice")
            told = gr.Textbox(label="Found", lines=3, elem_id="told")
        views = gr.Gallery(
            label="Mask and images",
            columns=2,
            height=700,
            object_fit="contain",
            format="png",
            buttons=["fullscreen"],
            scale=3,
            elem_id="views",
        )
    answer, outputs = handler(work, (None, gr.skip())), [views, index, told]
    files.upload(answer, [files, model, accel, gr.State(None)], outputs)
    changes = [model.input, accel.input, index.input]
    gr.on(changes, answer, [files, model, accel, index], outputs, trigger_mode="always_last")


@script
def main(words: Sequence[str] | None = None) -> None:
    """Serve the page as the command line says."""
    config = parse_config(PageConfig, words, description=TITLE, prog="python -m fastmri_plugin.app")
    serve(config, TITLE, ABOUT, build)


if __name__ == "__main__":
    main()
