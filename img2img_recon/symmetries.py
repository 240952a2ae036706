"""The eight flips and quarter turns of an image, by number."""

from __future__ import annotations

import torch
from torch import Tensor

ORIENTATIONS = 8
# Bit 0 of the number flips rows, bit 1 flips columns, bit 2 transposes; each undoes itself.
_STEPS = (
    lambda image: image.flip(-2),
    lambda image: image.flip(-1),
    lambda image: image.transpose(-2, -1),
)


def orient(image: Tensor, number: int) -> Tensor:
    """Flip and turn `image` (..., H, W) by a number from 0 (as it is) to 7."""
    for bit, step in enumerate(_STEPS):
        if number & 1 << bit:
            image = step(image)
    return image


def invert_orientation(image: Tensor, number: int) -> Tensor:
    """Undo `orient` of the same number."""
    for bit, step in reversed(tuple(enumerate(_STEPS))):
        if number & 1 << bit:
            image = step(image)
    return image


def orient_each(images: Tensor, numbers: Tensor) -> Tensor:
    """`orient` for a batch of squares, each by its own number, without waiting for the device.

    Args:
        images: (B, C, h, h).
        numbers: int64 (B,).
    """
    for bit, step in enumerate(_STEPS):
        chosen = numbers.bitwise_and(1 << bit).bool().view(-1, 1, 1, 1)
        images = torch.where(chosen, step(images), images)
    return images
