"""A page that denoises pictures: drop one, compare before and after, download it.

python -m denoise_tasks.app
python -m denoise_tasks.app --port 8000 --host 0.0.0.0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from denoise_tasks.denoise import DenoiseConfig, denoise_files
from img2img_recon.support.cli import config_from, parse_config, script
from img2img_recon.support.errors import InputError
from img2img_recon.support.page import PageConfig, Say, handler, serve

TITLE = "Denoise a picture"
ABOUT = (
    "PNG, JPEG, TIFF, WebP, AVIF or BMP. The noise is estimated and removed; the result has the picture's own format, "
    "with its metadata."
)
AUTOMATIC = "automatic"
SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp")  # by browsers


def choices() -> list[str | tuple[str, str]]:
    """Everything that denoises, with labels; automatic is the package's network for grey or for colour."""
    from denoise_tasks.methods import METHODS
    from img2img_recon.figures import label_of
    from img2img_recon.trained import shipped

    networks = [name for name in shipped() if name.startswith("denoise-")]
    labels = [(name, name) for name in networks] + [(label_of(name), name) for name in METHODS]
    return [AUTOMATIC, *labels]


def denoise_upload(
    files: Sequence[Path], out: Path, say: Say, method: str, sigma: str, strength: float
) -> tuple[tuple[Path, Path], Path]:
    """What `denoise.py` makes of one picture.

    Args:
        files: the picture.
        out: folder of the result.
        say: told the noise that was found, and warnings.
        method: `AUTOMATIC`, a network's name or a method's.
        sigma: the noise, of 255 grey levels, as `--sigma` takes it; empty estimates it.
        strength: share of the noise that is removed, 0 to 1.

    Returns:
        Files that a browser shows, before and after, and the result.

    Raises:
        InputError: several files, or what `denoise_files` refuses.
    """
    from denoise_tasks.methods import METHODS

    if len(files) != 1:
        raise InputError(f"{len(files)} files; give one picture")
    kind = "method" if method in METHODS else "model"
    given: dict[str, Any] = {"inputs": [str(files[0])], "out": str(out), "progress": False}
    given |= {"strength": strength, "sigma": sigma.strip() or "auto"}
    given[kind] = None if method == AUTOMATIC else method
    (result,), _ = denoise_files(config_from(DenoiseConfig, given), say)
    return _shown(files[0], result), result


def _shown(before: Path, after: Path) -> tuple[Path, Path]:
    """The files, or 8-bit PNGs of their first pages, of equal black and white."""
    from denoise_tasks.picture_span import extent, span_of
    from denoise_tasks.pictures import PicturePages, write_picture

    if before.suffix.lower() in SHOWN:
        return before, after
    pages = [next(iter(PicturePages(path))) for path in (before, after)]
    samples = pages[0].samples
    span = span_of(extent(samples, before), samples.dtype)
    shown = (before.with_name("before.png"), before.with_name("after.png"))
    for path, page in zip(shown, pages, strict=True):
        write_picture(path, replace(page, span=span).pixels)
    return shown


def build(gr: Any) -> None:
    """Lay out the page's components; `gr` is the module gradio."""
    with gr.Row():
        with gr.Column(scale=1):
            picture = gr.File(label="Picture", height=120)
            method = gr.Dropdown(choices(), value=AUTOMATIC, label="Method")
            sigma = gr.Textbox(label="Noise, of 255 grey levels", placeholder="estimated")
            strength = gr.Slider(0, 1, 1, step=0.05, label="Strength")
            button = gr.Button("Denoise", variant="primary")
            told = gr.Textbox(label="Found", lines=2, elem_id="told")
            result = gr.DownloadButton("Download", elem_id="result")
        slider = gr.ImageSlider(
            label="Before and after", type="filepath", max_height=700, scale=3, elem_id="slider"
        )
    gr.on(
        [picture.upload, button.click],
        handler(denoise_upload, (None, None)),
        [picture, method, sigma, strength],
        [slider, result, told],
    )


@script
def main(words: Sequence[str] | None = None) -> None:
    """Serve the page as the command line says."""
    config = parse_config(PageConfig, words, description=TITLE, prog="python -m denoise_tasks.app")
    serve(config, TITLE, ABOUT, build)


if __name__ == "__main__":
    main()
