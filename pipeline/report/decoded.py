"""Who decoded a run's files, in a line: the GPU, or loaders, and why they."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len

from pipeline.telemetry.metrics import Decoded

NAMED_REASONS = 5


def decoded_line(decoded: Decoded, width: int | None = None) -> str:
    """`decoded 198 files on the GPU, 1.25 GB/s; 2 by loaders (progressive 1, CMYK 1)`.

    In `width` cells, if it is given, fewer reasons are named or none, and at last the GB/s are left out.
    """
    lines = list(_from_long_to_short(decoded))
    return next((line for line in lines if width is None or cell_len(line) <= width), lines[-1])


def _from_long_to_short(decoded: Decoded) -> Iterator[str]:
    by_gpu = f"decoded {decoded.gpu:,} files on the GPU"
    at_rate = f"{by_gpu}, {decoded.gpu_bytes_per_s / 1e9:.3g} GB/s"
    if not decoded.loaders:
        yield from (at_rate, by_gpu)
        return
    by_loaders = f"{sum(decoded.loaders.values()):,} by loaders"
    reasons = sorted(decoded.loaders.items(), key=lambda item: (-item[1], item[0]))
    for count in range(min(NAMED_REASONS, len(reasons)), 0, -1):
        named = [f"{reason} {files:,}" for reason, files in reasons[:count]]
        more = ["..."] if count < len(reasons) else []
        yield f"{at_rate}; {by_loaders} ({', '.join(named + more)})"
    yield f"{at_rate}; {by_loaders}"
    yield f"{by_gpu}; {by_loaders}"
