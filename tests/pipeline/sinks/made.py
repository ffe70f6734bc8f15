"""Rows for tests of sinks: which depend on their keys alone, so that any run may make any of them."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from pipeline.sinks.rows import Rows

CLASSES = ("cat", 'a "quoted", one', "new\nline", "Ünïcode", "\\back", "é" * 40, "x", "y", "z", "w")
IDENTITY = {"model": "5f3a", "preprocessing": "224 of 256", "top": "3"}


def made(keys: Sequence[str], k: int = 3, errors: bool = True) -> Rows:
    """Rows of `keys`; every seventh or so is an error."""
    seeds = np.array([crc32(key.encode("utf-8", "surrogatepass")) for key in keys], dtype=np.int64)
    top_ids = ((seeds[:, None] // 7 + 3 * np.arange(k)) % len(CLASSES)).astype(np.int32)
    top_scores = (((seeds[:, None] % 9973) / 9973 + 1e-7) / (1 + np.arange(k))).astype(np.float32)
    wrong = np.flatnonzero(seeds % 7 == 0).tolist() if errors else []
    return Rows(
        list(keys), top_ids[:, 0].copy(), top_scores[:, 0].copy(), top_ids, top_scores,
        {row: f'damaged, "{keys[row]}"\n' for row in wrong},
    )  # fmt: skip


def as_tuples(rows: Rows) -> list[tuple[object, ...]]:
    """A comparable row each, with all bits of its numbers; the key and the reason alone of an error."""
    return [
        (key, rows.errors[n])
        if n in rows.errors
        else (
            key,
            int(rows.class_ids[n]),
            rows.scores[n].tobytes(),
            rows.top_ids[n].tobytes(),
            rows.top_scores[n].tobytes(),
        )
        for n, key in enumerate(rows.keys)
    ]
