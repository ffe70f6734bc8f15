"""What each part of a run could have done alone: measured by the session, judged by the report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Ceilings:
    """What was measured, in samples per second; None for what was not, or has no part in the run.

    Attributes:
        rate: of the run.
        decode_per_loader: one loader's.
        decode_timed: whether decoding was a part of what `rate` was measured over.
        decodes_per_sample: images decoded in that time for each sample of `rate`: below 1 where some were before.
        loaders: how many the run had.
        cores: that the run may use, for loaders and all else.
        h2d, engine: of all engines of the run together.
        loadgen: of LoadGen and its binding taking answers.
        main: of the main process's Python, through which every source and every answer goes.
        sample_bytes: bytes of a sample on its way to the device.
        engines: how many computed, a GPU each if it was GPUs.
    """

    rate: float
    decode_per_loader: float | None = None
    decode_timed: bool = False
    decodes_per_sample: float = 1.0
    loaders: int = 0
    cores: int = 0
    h2d: float | None = None
    engine: float | None = None
    loadgen: float | None = None
    main: float | None = None
    sample_bytes: int = 3 * 224 * 224
    engines: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name}: {value} is not a rate or a count")
        if self.decode_per_loader is not None and self.loaders < 1:
            raise ValueError("a decode rate a loader, and no loaders")

    @property
    def decode(self) -> float | None:
        """All loaders' rate, in images/s."""
        return None if self.decode_per_loader is None else self.decode_per_loader * self.loaders

    @property
    def decode_allows(self) -> float | None:
        """The samples/s of the run that loaders would have kept up with; None where they had no part in it."""
        if self.decode is None or not (self.decode_timed and self.decodes_per_sample):
            return None
        return self.decode / self.decodes_per_sample

    def by_part(self) -> dict[str, float]:
        """Part -> samples/s, of the parts that were measured and timed, lowest first."""
        known = {
            "decode": self.decode_allows,
            "h2d": self.h2d,
            "engine": self.engine,
            "loadgen": self.loadgen,
            "main": self.main,
        }
        return dict(sorted(((k, v) for k, v in known.items() if v is not None), key=lambda item: item[1]))


def total(rates: Iterable[float | None]) -> float | None:
    """The sum, or None where one was not measured."""
    known = list(rates)
    return sum(r for r in known if r is not None) if known and None not in known else None
