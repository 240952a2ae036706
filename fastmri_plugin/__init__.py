"""Accelerated MRI with fastMRI's data, masks, modules, scores and submissions."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fastmri_plugin.shipped import load

Challenge = Literal["singlecoil", "multicoil"]
__all__ = ["Challenge", "load"]


def __getattr__(name: str) -> Any:
    # Command lines import this package; torch comes with the first network only.
    if name == "load":
        from fastmri_plugin.shipped import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
