"""Kinds of arguments together, and the sources of one shard of a run."""

from __future__ import annotations

from itertools import chain

import pytest

from pipeline.errors import PipelineError
from pipeline.samples.expand import expand, parse_shard, shard_some
from pipeline.samples.sources import PathLocator, RangeLocator, Source, some_at_a_time
from tests.pipeline.samples.expanded import touch, write_tar

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestShardOfARun:
    def test_disjoint_and_complete(self) -> None:
        sources = [Source(f"d/{n:06}.jpg", PathLocator("x")) for n in range(10000)] + [
            Source("\udcff", PathLocator("x"))
        ]

        def part(index: int, sources: list[Source] = sources, count: int = 8) -> list[Source]:
            return list(chain.from_iterable(shard_some(some_at_a_time(sources), index, count)))

        parts = [[s.key for s in part(index)] for index in range(8)]
        assert sorted(key for part in parts for key in part) == sorted(s.key for s in sources)
        assert all(1000 < len(part) < 1500 for part in parts)
        # Whatever else there is: a key is always in the same shard.
        assert [s.key for s in part(3, sources[5000:])] == [k for k in parts[3] if k >= "d/005000"]
        assert part(0, count=1) == sources

    def test_parse(self) -> None:
        assert parse_shard("0/4") == (0, 4)
        for text in ("4/4", "1", "-1/4", "0/0", "a/b", "1/4/2"):
            with pytest.raises(PipelineError, match="INDEX/COUNT"):
                parse_shard(text)


def test_kinds_of_locators_of_one_run() -> None:
    write_tar("s.tar", {"1.jpg": b"1"})
    touch("a.jpg")
    assert [type(s.locator) for s in expand(["a.jpg", "s.tar"])] == [PathLocator, RangeLocator]
