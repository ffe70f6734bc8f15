"""What is said at the end of a run of who decoded its files."""

from __future__ import annotations

from pipeline.classify.summary import decoded_line
from pipeline.stages.load import BY_GPU


def test_files_by_way() -> None:
    assert decoded_line({BY_GPU: 198_000}, 9.35e9) == "decoded 198,000 files on the GPU, 9.35 GB/s"
    ways = {BY_GPU: 2, "CMYK": 1, "progressive": 3, "gone": 0}
    assert decoded_line(ways, 1e6) == "decoded 2 files on the GPU, 0.001 GB/s; 4 by loaders (progressive 3, CMYK 1)"
    many = {f"{n}": 1 for n in range(6)}
    assert decoded_line(many, 0.0).endswith("6 by loaders (0 1, 1 1, 2 1, 3 1, 4 1, ...)")
