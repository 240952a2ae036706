"""Methods side by side on the same noisy images: cases in, scores and tables out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from denoise_tasks.cases import Case
from denoise_tasks.methods import Denoiser
from denoise_tasks.noise import LEAST_SIGMA, clip_and_round, image_units, oracle_sigma
from img2img_recon.metrics import image_scores
from img2img_recon.noise_level import estimate_sigma
from img2img_recon.perceptual_metrics import LABELS, Score, settings
from img2img_recon.support.errors import InputError
from img2img_recon.support.progress import Track, silent

SSIM_SETTINGS = (
    "SSIM: scikit-image, Gaussian window (sigma 1.5, 11 x 11), use_sample_covariance=False, data_range 1, "
    "mean over channels"
)
PROTOCOL_NOTES = {
    "paper": "protocol paper: 256 x 256 centre, divided by its maximum, noisy and denoised image clipped to [0, 1]",
    "standard": "protocol standard: value / 255, noise of numpy seed 0 for every image, not clipped; "
    "denoised image clipped and rounded to 8 bits",
    "pairs": "real noise: noisy and clean image / 255; denoised image clipped and rounded to 8 bits",
}

MIN_SCORED = 11  # side of SSIM's window
# Pixels of the images that are held while a slow method's processes work on them: 0.4 GB each of clean and
# noisy ones.
CHUNK_PIXELS = 32_000_000

Draw = Callable[[int, Case, Mapping[str, np.ndarray], np.ndarray], None]
SigmaSource = Literal["given", "oracle", "estimated"]


class Row(NamedTuple):
    """The scores of one method on one image, by their names."""

    image: str
    method: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """Scores of all methods under one noise level.

    Attributes:
        title: what was denoised.
        protocol: a key of `PROTOCOL_NOTES`.
        rows: one per image and method, in order.
    """

    title: str
    protocol: str
    rows: list[Row]

    def methods(self) -> list[str]:
        """Methods in the order in which they were run."""
        return list(dict.fromkeys(row.method for row in self.rows))

    def columns(self) -> list[str]:
        """What the scores are of."""
        return list(self.rows[0].scores)

    def scores(self, method: str) -> dict[str, Mapping[str, float]]:
        """Scores of a method by image."""
        return {row.image: row.scores for row in self.rows if row.method == method}

    def means(self) -> Iterator[tuple[str, int, dict[str, float]]]:
        """Method, number of images and mean scores: over all images, then over those that all methods have."""
        scores = {method: self.scores(method) for method in self.methods()}
        common = set.intersection(*(set(rows) for rows in scores.values()))
        most = max(len(rows) for rows in scores.values())
        for method, rows in scores.items():
            if len(rows) == most:
                yield method, most, mean_scores(rows)
        if 0 < len(common) < most:
            for method, rows in scores.items():
                subset = {name: rows[name] for name in rows if name in common}
                yield method, len(common), mean_scores(subset)


def mean_scores(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of every score over images."""
    keys = next(iter(rows.values())).keys()
    return {key: float(np.mean([scores[key] for scores in rows.values()])) for key in keys}


def score_cases(
    title: str,
    cases: Sequence[Case],
    methods: Sequence[Denoiser],
    *,
    sigma_source: SigmaSource = "given",
    slow_images: int | None = None,
    workers: int | None = None,
    draw: Draw | None = None,
    panels: int = 0,
    metrics: Mapping[str, Score] = {},
    track: Track = silent,
) -> Result:
    """Denoise every case with every method and score it, beside the noisy image as it is.

    Args:
        title: of the result.
        cases: of one protocol.
        methods: of different names.
        sigma_source: what methods that need the noise are told: `given` (what was added; of real noise
            the `oracle`), `oracle` (from the clean image) or `estimated`.
        slow_images: slow methods only on the first so many cases; None for all.
        workers: processes for slow methods.
        draw: called for the first `panels` cases with number, case, images by method and the clean one.
        panels: how many to draw.
        metrics: more scores, of `img2img_recon.perceptual_metrics`.
        track: progress.

    Raises:
        InputError: an image that cannot be used.
    """
    rows = []
    slow = any(method.slow for method in methods)
    number = 0
    for chunk in chunks(track(cases, title, len(cases)), CHUNK_PIXELS if slow else 1):
        outputs: list[dict[str, np.ndarray]] = [{"noisy": noisy} for _, _, noisy in chunk]
        for method in methods:
            chosen = chunk
            if method.slow and slow_images is not None:
                chosen = chunk[: max(slow_images - number, 0)]
            denoised = method.denoise_many(
                [noisy for _, _, noisy in chosen],
                [_sigma(method, sigma_source, *one) for one in chosen],
                workers=workers,
                track=track,
            )
            for images, image in zip(outputs, denoised, strict=False):
                images[method.name] = clip_and_round(image, cases[0].protocol)
        for (case, clean, _), images in zip(chunk, outputs, strict=True):
            for name, image in images.items():
                more = {key: score(clean[None], image[None]) for key, score in metrics.items()}
                scores = image_scores(clean, image, data_range=1) | more
                rows.append(Row(case.name, name, scores))
            if draw is not None and number < panels:
                draw(number, case, images, clean)
            number += 1
    return Result(title, cases[0].protocol, rows)


def chunks(
    cases: Iterable[Case], pixels: int
) -> Iterator[list[tuple[Case, np.ndarray, np.ndarray]]]:
    """Cases with their clean and noisy images, so many at once that they have about `pixels` pixels.

    Raises:
        InputError: an image that is too small to score.
    """
    chunk: list[tuple[Case, np.ndarray, np.ndarray]] = []
    held = 0
    for case in cases:
        clean, noisy = case.load()
        if min(clean.shape[:2]) < MIN_SCORED:
            raise InputError(
                f"{case.name}: {clean.shape[0]} x {clean.shape[1]} is too small to score"
            )
        chunk.append((case, clean, noisy))
        held += clean.shape[0] * clean.shape[1]
        if held >= pixels:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _sigma(
    method: Denoiser, source: SigmaSource, case: Case, clean: np.ndarray, noisy: np.ndarray
) -> float | None:
    """What a method is told of the noise, in image units."""
    if not method.needs_sigma:
        return None
    if source == "estimated":
        # Methods take no noise for an error.
        return max(estimate_sigma(noisy), image_units(LEAST_SIGMA))
    if source == "oracle" or case.sigma is None:
        return oracle_sigma(noisy, clean)
    return image_units(case.sigma)


def to_json(results: Sequence[Result], details: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, per image and mean; null where a score is infinite (equal images)."""

    def finite(scores: Mapping[str, float]) -> dict[str, float | None]:
        return {key: value if math.isfinite(value) else None for key, value in scores.items()}

    return {
        **details,
        "ssim": SSIM_SETTINGS,
        **settings(results[0].columns()),
        "results": [
            {
                "title": result.title,
                "protocol": PROTOCOL_NOTES[result.protocol],
                "means": [
                    {"method": method, "images": count, **finite(scores)}
                    for method, count, scores in result.means()
                ],
                "images": {
                    method: {image: finite(one) for image, one in result.scores(method).items()}
                    for method in result.methods()
                },
            }
            for result in results
        ],
    }


def to_csv(results: Sequence[Result]) -> str:
    """One row per noise level, image and method; the means as image `mean of N`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["data", "protocol", "image", "method", *results[0].columns()])
    for result in results:
        rows = list(result.rows)
        rows += [
            Row(f"mean of {count}", method, scores) for method, count, scores in result.means()
        ]
        for image, method, scores in rows:
            figures = [f"{value:.{4 if key == 'psnr' else 5}f}" for key, value in scores.items()]
            writer.writerow([result.title, result.protocol, image, method, *figures])
    return text.getvalue()


def figures(scores: Mapping[str, float]) -> list[str]:
    """Scores as tables for reading show them."""
    return [f"{value:.{2 if key == 'psnr' else 4}f}" for key, value in scores.items()]


def _settings(result: Result) -> list[str]:
    found = settings(result.columns())
    return [f"{LABELS[name]}: {setting}" for name, setting in found.items()]


def to_markdown(results: Sequence[Result], label: Callable[[str], str]) -> str:
    """For reading: per noise level a table of the means and one of every image (scores in the same order)."""
    lines = []
    for result in results:
        lines += [
            f"### {result.title}",
            "",
            ". ".join([PROTOCOL_NOTES[result.protocol], SSIM_SETTINGS, *_settings(result)]) + ".",
            "",
            f"| method | images | {' | '.join(map(LABELS.__getitem__, result.columns()))} |",
            f"| --- | --- |{' --- |' * len(result.columns())}",
        ]
        lines += [
            f"| {label(method)} | {count} | {' | '.join(figures(scores))} |"
            for method, count, scores in result.means()
        ]
        methods = result.methods()
        lines += [
            "",
            f"| image | {' | '.join(map(label, methods))} |",
            f"| --- |{' --- |' * len(methods)}",
        ]
        by_method = {method: result.scores(method) for method in methods}
        for image in dict.fromkeys(row.image for row in result.rows):
            cells = [
                " / ".join(figures(rows[image])) if image in rows else "-"
                for rows in by_method.values()
            ]
            name = " ".join(image.replace("|", r"\|").split())
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)
