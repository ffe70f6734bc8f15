"""Kinds of arguments together, and the sources of one shard of a run."""

from __future__ import annotations

import pytest

from pipeline.errors import PipelineError
from pipeline.samples.expand import expand, parse_shard, shard
from pipeline.samples.sources import PathLocator, RangeLocator, Source
from tests.pipeline.samples.expanded import touch, write_tar

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestShardOfARun:
    def test_disjoint_and_complete(self) -> None:
        sources = [Source(f"d/{n:06}.jpg", PathLocator("x")) for n in range(10000)] + [
            Source("\udcff", PathLocator("x"))
        ]
        parts = [[s.key for s in shard(sources, index, 8)] for index in range(8)]
        assert sorted(key for part in parts for key in part) == sorted(s.key for s in sources)
        assert all(1000 < len(part) < 1500 for part in parts)
        # Whatever else there is: a key is always in the same shard.
        assert [s.key for s in shard(sources[5000:], 3, 8)] == [k for k in parts[3] if k >= "d/005000"]
        assert list(shard(sources, 0, 1)) == sources

    def test_parse(self) -> None:
        assert parse_shard("0/4") == (0, 4)
        for text in ("4/4", "1", "-1/4", "0/0", "a/b", "1/4/2"):
            with pytest.raises(PipelineError, match="INDEX/COUNT"):
                parse_shard(text)


def test_kinds_of_locators_of_one_run() -> None:
    write_tar("s.tar", {"1.jpg": b"1"})
    touch("a.jpg")
    assert [type(s.locator) for s in expand(["a.jpg", "s.tar"])] == [PathLocator, RangeLocator]
