"""accuracy.txt, in the form of MLPerf's own script."""

from __future__ import annotations

import re

_LINE = re.compile(r"accuracy=([\d.]+)%, good=(\d+), total=(\d+)")


def accuracy_line(good: int, total: int) -> str:
    return f"accuracy={100 * good / total:.3f}%, good={good}, total={total}"


def read_accuracy_line(text: str) -> tuple[int, int] | None:
    """The right ones and all, where `text` has such a line."""
    match = _LINE.match(text)
    return None if match is None else (int(match[2]), int(match[3]))
