"""Pictures that are all looked at before the first result is written: which are broken, how noisy are the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track

if TYPE_CHECKING:
    from denoise_tasks.pictures import PicturePages

# Pixels of decoded pictures that are kept from checking to denoising, 0.4 GB in colour; others are read again.
KEPT_PIXELS = 1 << 25


class CheckedPictures:
    """Pictures that have all been decoded once, with the noise of those whose noise was asked for.

    A broken one is known before the first result is written. As many as `KEPT_PIXELS` allows stay decoded;
    a single one always does, and of files of several pages none.

    Attributes:
        broken: of the files that cannot be used, why not.
        sigmas: of the others, the noise of every page, of 255 grey levels; None where it is not known.
    """

    def __init__(
        self,
        sources: Sequence[Path],
        estimates: bool,
        track: Track,
        report: Callable[[str], None],
    ) -> None:
        """Read them.

        Args:
            sources: the files.
            estimates: whether the noise is estimated.
            track: progress.
            report: told black and white of files that leave them open.

        Raises:
            InputError: a single one that cannot be read or written again.
        """
        self.broken: list[str] = []
        self.sigmas: dict[Path, list[float | None]] = {}
        self._pages: dict[Path, PicturePages] = {}
        self._room = KEPT_PIXELS
        self._report = report
        for path in track(sources, "checking", len(sources)):
            try:
                self._check(path, estimates)
            except InputError as error:
                if len(sources) == 1:
                    raise
                self.broken.append(str(error))

    def _check(self, path: Path, estimates: bool) -> None:
        from denoise_tasks.picture_span import extent, joined, span_of
        from denoise_tasks.pictures import PicturePages, check_target
        from img2img_recon.noise_level import estimate_sigma

        pages, extents, found = PicturePages(path), dict[Any, list[Any]](), []
        for picture in pages:
            dtype = picture.samples.dtype
            if dtype != "uint8":
                extents.setdefault(dtype, []).append(extent(picture.samples, path))
                picture = replace(picture, span=span_of(extents[dtype][-1], dtype))
            check_target(picture, path, path)
            level = 255 * estimate_sigma(picture.pixels) if estimates else None
            found.append((dtype, level, picture.width))
        pages.spans = {dtype: span_of(joined(every), dtype) for dtype, every in extents.items()}
        for span in filter(None, pages.spans.values()):
            units = "sigma is of 255 steps between them"
            self._report(f"{path}: black is {span.black:g}, white is {span.white:g}; {units}")
        self.sigmas[path] = [
            level and level * width / pages.width(dtype) for dtype, level, width in found
        ]
        self._pages[path] = pages
        self._room -= pages.files[0].shape[0] * pages.files[0].shape[1]
        if len(pages) == 1 and (self._room >= 0 or len(self._pages) == 1):
            pages.keep(picture)

    def __len__(self) -> int:
        """How many files can be used."""
        return len(self.sigmas)

    def __iter__(self) -> Iterator[tuple[Path, PicturePages]]:
        """The usable files in order; each is forgotten when it has been given."""
        for path in self.sigmas:
            pages = self._pages.pop(path)
            try:
                if len(pages) == 1:
                    pages.keep()
            except InputError as error:  # taken away or changed since it was checked
                self.broken.append(str(error))
                continue
            yield path, pages
