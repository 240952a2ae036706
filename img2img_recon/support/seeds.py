"""Seeds for everything random: each depends on what it is for, not on what was drawn before it."""

from __future__ import annotations

import zlib


def seed_of(*parts: int | str) -> int:
    """A 32-bit seed that depends on all parts and on nothing else."""
    return zlib.crc32("|".join(map(str, parts)).encode())
