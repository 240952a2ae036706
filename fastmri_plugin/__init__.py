"""Accelerated MRI with fastMRI's data, masks, modules, scores and submissions."""

from typing import Literal

Challenge = Literal["singlecoil", "multicoil"]
