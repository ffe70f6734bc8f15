"""The names of the classes, and how a class number splits into shape, texture and hue."""

from __future__ import annotations

from typing import Any

SHAPES = ("disc", "ring", "triangle", "square", "pentagon", "star", "cross", "heart", "crescent", "gear")
TEXTURES = (
    *("plain", "striped", "gridded", "chequered", "dotted"),
    *("ringed", "wavy", "zigzag", "bricked", "marbled"),
)
HUES = ("red", "orange", "lime", "green", "emerald", "cyan", "azure", "blue", "purple", "magenta")
CLASSES = len(SHAPES) * len(TEXTURES) * len(HUES)


def split_class(label: Any) -> tuple[Any, Any, Any]:
    """(shape, texture, hue) of class `label`: an int, or an integer array or tensor of any shape."""
    return label // 100, label // 10 % 10, label % 10


def class_name(label: int) -> str:
    """`red striped disc`, say. Raises ValueError when `label` is no class."""
    if not 0 <= label < CLASSES:
        raise ValueError(f"class {label} is out of range: there are {CLASSES} classes, 0 to {CLASSES - 1}")
    shape, texture, hue = split_class(label)
    return f"{HUES[hue]} {TEXTURES[texture]} {SHAPES[shape]}"


def names_text(classes: int = CLASSES) -> str:
    """The names of the first `classes` classes, one per line: a model's classes.txt."""
    return "".join(f"{class_name(label)}\n" for label in range(classes))
