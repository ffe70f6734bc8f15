"""Eight images drawn in integers, and the sums that the bundled model gives for them.

`python -m tests.int4core.golden` writes the sums anew, for another model: from the NumPy engine, once the plain
reference of `tests.int4core.networks` agrees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from int4core.engine import Engine
from int4core.model import Model
from tests.int4core.networks import reference_trace
from tests.paths import ROOT

SUMS = Path(__file__).with_name("golden_sums.npy")
"""int32 (8, 1000): the last layer's, before the output scale."""

MODEL = ROOT / "model"
COUNT, SIDE = 8, 224

Ints: TypeAlias = npt.NDArray[Any]


def images() -> npt.NDArray[np.int8]:
    """int8 (8, 3, 224, 224): a textured shape before a slope, with grain; the last one is grain alone.

    Nothing but wrapping 32-bit integers, so that every machine and every NumPy draws the same.
    """
    return np.stack([_image(number) for number in range(COUNT)])


def _image(number: int) -> npt.NDArray[np.int8]:
    y, x = np.indices((SIDE, SIDE), np.int32)
    dy, dx = y - SIDE // 2 - 3 * number, x - SIDE // 2 + 5 * number
    radius = 44 + 5 * number
    shapes = (
        dx * dx + dy * dy < radius * radius,
        np.maximum(abs(dx), abs(dy)) < radius,
        abs(dx) + abs(dy) < radius,
        abs(dx * dx + dy * dy - radius * radius) < 24 * radius,
        np.minimum(abs(dx), abs(dy)) < radius // 3,
        (2 * dy < radius) & (abs(dx) < radius + dy),
        (dx * dx + dy * dy < radius * radius) & ((dx - 30) ** 2 + dy * dy > radius * radius),
    )
    textures = ((x + y) // 12 % 2, x // 9 % 2, (x // 14 + y // 14) % 2, (x % 16 < 8) & (y % 16 < 8))
    channels = []
    for channel in range(3):
        grain = _mixed((number * 3 + channel) * SIDE * SIDE + y * SIDE + x)
        if number == COUNT - 1:
            channels.append(grain & 255)
            continue
        shade = 60 * (number + channel) % 97
        value = 40 + shade + ((channel - 1) * x + (number % 3 - 1) * y) // 4
        object_value = 30 + (71 * number + 83 * channel) % 200 - 40 * textures[number % 4]
        value = np.where(shapes[number], object_value, value) + (grain & 31) - 16
        channels.append(np.clip(value, 0, 255))
    return (np.stack(channels) - 128).astype(np.int8)


def _mixed(index: Ints) -> Ints:
    """Well-mixed bits of an index, 0 and above, as int64 (xor-shift-multiply)."""
    bits = index.astype(np.uint32)
    for multiplier in (0x7FEB352D, 0x846CA68B):
        bits = (bits ^ bits >> np.uint32(16)) * np.uint32(multiplier)
    return (bits ^ bits >> np.uint32(15)).astype(np.int64)


def main() -> None:
    model, x = Model.load(MODEL), images()
    with Engine(model) as engine:
        sums = engine.accumulators(x)
    reference = np.concatenate([reference_trace(model.network, x[i : i + 1])["fc"] for i in range(COUNT)])
    assert np.array_equal(sums, reference), "the engine and the plain reference disagree"
    np.save(SUMS, sums)


if __name__ == "__main__":
    main()
