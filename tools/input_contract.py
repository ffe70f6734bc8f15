"""How an image becomes the network's input, as values for files of other projects; `int4core.preprocess` does it."""

from __future__ import annotations

from typing import Any

from int4core.preprocess import INPUT_RANGE, INT8_LIMIT, MEAN, STD


def as_values() -> dict[str, Any]:
    """The steps in their order, plain enough for JSON."""
    return {
        "resize_short_side": 256,
        "interpolation": "bilinear (Pillow, antialiased)",
        "centre_crop": 224,
        "channels": "RGB",
        "layout": "NCHW",
        "divide_by": 255,
        "mean": list(MEAN),
        "std": list(STD),
        "quantise": f"clamp(round_half_even(x * {INT8_LIMIT} / {INPUT_RANGE}), -{INT8_LIMIT}, {INT8_LIMIT})",
        "dtype": "int8",
    }
