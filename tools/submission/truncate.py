"""Accuracy logs as they are handed in: their hash in accuracy.txt, and of the log its beginning and end."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

KEPT = 4096
"""Bytes that are kept at either end."""


def truncate(log: Path, accuracy: Path) -> None:
    """Add the hash of `log` to the file `accuracy`, then shorten `log`. Both have to be there."""
    content = log.read_bytes()
    said = accuracy.read_text().rstrip("\n")
    accuracy.write_text(f"{said}\n\nhash={sha256(content).hexdigest()}\n")
    if len(content) > 2 * KEPT:
        log.write_bytes(content[:KEPT] + b"\n\n...\n\n" + content[-KEPT:])
