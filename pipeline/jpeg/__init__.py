"""The exact JPEG decoder on the GPU: from a file's bytes to Pillow's pixels, or to the network's int8 sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.jpeg.decoder import Decoder

__all__ = ["Decoder"]


def __getattr__(name: str) -> Any:
    # Loaders parse headers and need no GPU, nor what compiles for one.
    if name == "Decoder":
        from pipeline.jpeg.decoder import Decoder

        return Decoder
    raise AttributeError(f"module {__name__} has no attribute {name}")
