"""Accelerated MRI with fastMRI's data, masks, modules, scores and submissions."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fastmri_plugin.shipped import load
    from fastmri_plugin.slices import reconstruct

Challenge = Literal["singlecoil", "multicoil"]
__all__ = ["Challenge", "load", "reconstruct"]


def __getattr__(name: str) -> Any:
    # Command lines import this package; numpy and torch come with what is asked for.
    if name == "load":
        from fastmri_plugin.shipped import load

        return load
    if name == "reconstruct":
        from fastmri_plugin.slices import reconstruct

        return reconstruct
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
