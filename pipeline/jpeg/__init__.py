"""The exact JPEG decoder on the GPU: from a file's bytes to Pillow's pixels, or to the network's int8 sample."""

from pipeline.jpeg.decoder import Decoder

__all__ = ["Decoder"]
