"""The eight symmetries of the square: each once, undone, and the same for batches as for images."""

from __future__ import annotations

import torch

from img2img_recon.symmetries import ORIENTATIONS, invert_orientation, orient, orient_each


def test_they_are_the_eight_symmetries_of_the_square() -> None:
    image = torch.rand(2, 5, 5)
    turned = [orient(image, number) for number in range(ORIENTATIONS)]
    expected = [
        torch.rot90(flipped, quarter, (-2, -1))
        for flipped in (image, image.flip(-1))
        for quarter in range(4)
    ]
    for one in expected:
        assert sum(torch.equal(one, other) for other in turned) == 1
    assert torch.equal(turned[0], image)


def test_they_are_undone_on_images_that_are_no_squares() -> None:
    image = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    turned = [orient(image, number) for number in range(ORIENTATIONS)]
    assert len({(tuple(view.shape), *view.flatten().tolist()) for view in turned}) == 8
    for number, view in enumerate(turned):
        assert torch.equal(invert_orientation(view, number), image)


def test_each_image_of_a_batch_by_its_own_number() -> None:
    images, numbers = torch.rand(9, 3, 6, 6), torch.tensor([3, 7, 0, 1, 6, 5, 2, 4, 7])
    each = orient_each(images, numbers)
    for image, number, one in zip(images, numbers.tolist(), each, strict=True):
        assert torch.equal(one, orient(image, number))
