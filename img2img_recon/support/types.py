"""Types of flags with their bounds: jsonargparse's, which a type checker takes for plain numbers and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    PositiveInt: TypeAlias = int
    Port: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    UnitShare: TypeAlias = float
    OpenUnitInterval: TypeAlias = float
    Devices: TypeAlias = str
    Strategy: TypeAlias = str
    ShareBelowOne: TypeAlias = float
    GreyLevels: TypeAlias = float
    GreyLevelsOrNone: TypeAlias = float
    ClosedUnitInterval: TypeAlias = float
    Seed: TypeAlias = int
else:
    from jsonargparse import typing
    from jsonargparse.typing import restricted_number_type, restricted_string_type

    PositiveInt, NonNegativeInt = typing.PositiveInt, typing.NonNegativeInt
    PositiveFloat, NonNegativeFloat = typing.PositiveFloat, typing.NonNegativeFloat
    OpenUnitInterval, ClosedUnitInterval = typing.OpenUnitInterval, typing.ClosedUnitInterval
    UnitShare = restricted_number_type("UnitShare", float, [(">", 0), ("<=", 1)])
    ShareBelowOne = restricted_number_type("ShareBelowOne", float, [(">=", 0), ("<", 1)])
    # A noise's standard deviation where white is 255.
    GreyLevels = restricted_number_type("GreyLevels", float, [(">", 0), ("<=", 255)])
    # The same of a picture, which may have none; more than 100 is no picture.
    GreyLevelsOrNone = restricted_number_type("GreyLevelsOrNone", float, [(">=", 0), ("<=", 100)])
    Port = restricted_number_type("Port", int, [(">=", 1), ("<=", 65535)])
    # What numpy's generators take.
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 1 << 32)])
    Devices = restricted_string_type(
        "Devices", r"(auto|-1|\d+(,\d+)*)\Z", "auto, a number, or indices as 0,1"
    )
    Strategy = restricted_string_type(
        "Strategy",
        r"(auto|single_device|(ddp|fsdp|deepspeed|xla)\w*)\Z",
        "auto, ddp, fsdp, deepspeed or another that Lightning knows",
    )
