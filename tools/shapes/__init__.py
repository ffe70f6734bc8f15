"""A procedural image set: 1,000 classes = 10 shapes x 10 surface textures x 10 hues.

class = shape * 100 + texture * 10 + hue. An image is a pure function of (class, seed, size): its
parameters come from a counter-based hash, and one renderer, written as distance and texture functions
over a pixel grid, runs under NumPy (JPEGs on the CPU) and under torch (batches on the GPU).
"""

from __future__ import annotations

from tools.shapes.names import CLASSES, HUES, SHAPES, TEXTURES, class_name, split_class
from tools.shapes.render import CROP_EXTENT, render

__all__ = ["CLASSES", "CROP_EXTENT", "HUES", "SHAPES", "TEXTURES", "class_name", "render", "split_class"]
