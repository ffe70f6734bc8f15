"""Reading the values of options: whatever the text, a value within its limits or argparse's own error."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

from int4core.backends.cuda.plan.planner import MAX_BATCH

# Samples and slots are numbered in int32.
MOST = 2**31 - 1
# What waits in this program counts on a clock of nanoseconds and, in poll(), on one of 31 bits of milliseconds.
MOST_SECONDS = 86_400.0
MOST_HOLD_US = 3_600_000_000
# Processes of one kind, and batches of one process: far beyond what any machine has a use for.
MOST_PROCESSES, MOST_IN_FLIGHT = 4096, 1024
# Of Linux: bytes of a name in a folder, and of a whole path with its closing zero.
NAME_BYTES, PATH_BYTES = 255, 4096


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Reads a whole number from `least` to `most`."""

    def read(text: str) -> int:
        digits = text.lstrip("0") or "0"
        # Python itself converts no number of thousands of digits.
        if not (text.isascii() and text.isdecimal() and len(digits) < 19 and least <= int(digits) <= most):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number from {least:,} to {most:,}")
        return int(digits)

    return read


def images_of_a_batch(text: str) -> int:
    """Reads how many images a batch has: no more than an engine takes, which would say so only when memory is taken."""
    return whole(1, MAX_BATCH)(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Reads whole numbers with commas between; one may come twice."""
    return tuple(whole(0)(part) for part in text.split(","))


def seconds(text: str) -> float:
    """Reads a number of seconds above 0, at most a day."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number of seconds above 0 and up to {MOST_SECONDS:g}")
    return value


def path(text: str) -> Path:
    """Reads the name of a file or folder, which need not exist but could."""
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no name of a file") from None
    if not data:
        raise argparse.ArgumentTypeError("an empty name")
    if b"\0" in data:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no name of a file")
    if len(data) >= PATH_BYTES or any(len(part) > NAME_BYTES for part in data.split(b"/")):
        raise argparse.ArgumentTypeError(f"{shown(text)} is too long a name for a file ({len(data):,} bytes)")
    return Path(text)


def text_path(text: str) -> Path:
    """Reads the name of a file or folder that LoadGen is given, which takes names in UTF-8 only."""
    name = path(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not UTF-8, which LoadGen wants of a name") from None
    return name


def part_of_name(text: str) -> str:
    """Reads what a file's name begins or ends with."""
    if text:
        text_path(text)
    if "/" in text:
        raise argparse.ArgumentTypeError(f"{shown(text)} is a part of a file's name and cannot have a / in it")
    return text


def shown(text: str) -> str:
    """`text` in quotes for a message, cut where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}")
