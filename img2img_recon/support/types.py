"""Number types of flags, with their bounds: jsonargparse's, which a type checker takes for plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    UnitShare: TypeAlias = float
    OpenUnitInterval: TypeAlias = float
else:
    from jsonargparse.typing import (
        NonNegativeFloat,
        NonNegativeInt,
        OpenUnitInterval,
        PositiveFloat,
        PositiveInt,
        restricted_number_type,
    )

    UnitShare = restricted_number_type("UnitShare", float, [(">", 0), ("<=", 1)])

__all__ = [
    "NonNegativeFloat",
    "NonNegativeInt",
    "OpenUnitInterval",
    "PositiveFloat",
    "PositiveInt",
    "UnitShare",
]
