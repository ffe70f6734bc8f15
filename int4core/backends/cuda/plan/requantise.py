"""A requantisation: what a Quantize layer does to sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from int4core.layers import UInt16Array


@dataclass(frozen=True, eq=False)
class Rescale:
    """A requantisation: factors (K,) over 2^shift."""

    factor: UInt16Array
    shift: int

    @property
    def wide(self) -> npt.NDArray[np.int64]:
        return self.factor.astype(np.int64)

    @property
    def scale(self) -> npt.NDArray[np.float64]:
        scale: npt.NDArray[np.float64] = np.ldexp(self.factor.astype(np.float64), -self.shift)
        return scale

    @property
    def nudged(self) -> npt.NDArray[np.float32]:
        """The next float32 above each factor / 2^shift; the plain value where no half can occur (shift 0)."""
        plain = self.scale.astype(np.float32)
        return plain if self.shift == 0 else np.nextafter(plain, np.float32(np.inf))
