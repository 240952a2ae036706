"""Figures of the untrained study; its numbers and tables are tested with the script."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from denoise_tasks.untrained_report import _psnr_axis


def test_the_right_axis_shows_the_psnr_of_the_error_on_the_left():
    axis = Figure().subplots()
    axis.loglog([1, 2], [1e-1, 1e-3])
    right = _psnr_axis(axis)
    # Where the left axis says 0.01, halfway up in display, the right one must say 20 dB.
    for mse, decibel in ((1e-1, 10), (1e-2, 20), (1e-3, 30)):
        left_height = axis.transData.transform((1, mse))[1]
        assert right.transData.transform((1, decibel))[1] == pytest.approx(left_height)
