"""The integer types a model speaks of: `u4`, `s4`, `u7`, `s8`, `u16`, `s16`, `u31`, `s32`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from int4core.errors import shown


@dataclass(frozen=True)
class IntType:
    """An integer type of `bits` bits; `u7` and `u31` are the non-negative halves of s8 and s32."""

    signed: bool
    bits: int

    @property
    def name(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.bits}"

    @property
    def lo(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1


U4 = IntType(False, 4)
S4 = IntType(True, 4)
U7 = IntType(False, 7)
S8 = IntType(True, 8)
U16 = IntType(False, 16)
S16 = IntType(True, 16)
U31 = IntType(False, 31)
S32 = IntType(True, 32)

INT_TYPES = {t.name: t for t in (U4, S4, U7, S8, U16, S16, U31, S32)}

_MODE = re.compile(r"[suf][0-9]{1,2}")


def split_mode(mode: str) -> tuple[str, ...]:
    """Split a `compute_mode` into its type names: `u4s4s32` -> (`u4`, `s4`, `s32`).

    Raises ValueError when `mode` is not a run of type names.
    """
    names = tuple(_MODE.findall(mode))
    if not names or "".join(names) != mode:
        raise ValueError(f"compute_mode {shown(mode)} is not a run of type names such as u4s4s32")
    return names
