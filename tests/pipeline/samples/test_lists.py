"""Lists of names, from files and standard input."""

from __future__ import annotations

import io
import os
import select
from pathlib import Path
from typing import Any

import pytest

from pipeline.samples.expand import expand
from pipeline.samples.sources import PathLocator, Source
from tests.pipeline.samples.expanded import error, failures, keys, touch, write_tar

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestLists:
    def test_a_path_a_line(self) -> None:
        Path("l.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\n  \nd/b c.jpg \n\xff.jpg\nlast.heic")
        expected = ["a.jpg", "d/b c.jpg ", "\udcff.jpg", "last.heic"]
        assert keys("@l.txt") == expected
        assert keys("-", stdin=io.BytesIO(Path("l.txt").read_bytes())) == expected
        assert keys("@l.txt", "-", stdin=io.BytesIO(b"z.jpg\n")) == [*expected, "z.jpg"]

    def test_lines_are_not_looked_at_and_not_read_ahead(self) -> None:
        read, write = os.pipe()
        with os.fdopen(write, "wb", buffering=0) as feed:
            feed.write(b"none.jpg\n")
            sources = expand(["-"], stdin=os.fdopen(read, "rb"))
            assert next(sources) == Source("none.jpg", PathLocator("none.jpg"))
            feed.write(b"more.jpg\n")
            assert next(sources).key == "more.jpg"
        assert not list(sources)

    def test_standard_input_that_does_not_block_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        with os.fdopen(read) as stdin, os.fdopen(write, "wb", buffering=0) as feed:
            monkeypatch.setattr("sys.stdin", stdin)
            feed.write(b"a.jpg\n")
            sources = expand(["-"])
            assert next(sources).key == "a.jpg"
            # What waits for the next one finds nothing there, and is to be told when there is.
            waited: list[object] = []

            def wait(*files: Any) -> object:
                waited.append(files)
                feed.write(b"b.jpg\n")
                feed.close()
                return really_wait(*files)

            really_wait = select.select
            monkeypatch.setattr("select.select", wait)
            assert [source.key for source in sources] == ["b.jpg"]
            assert len(waited) == 1

    def test_a_pipe_may_be_a_list(self) -> None:
        read, write = os.pipe()
        os.write(write, b"a.jpg\nb.jpg\n")
        os.close(write)
        assert keys(f"@/dev/fd/{read}") == ["a.jpg", "b.jpg"]
        os.close(read)

    def test_what_is_no_list(self) -> None:
        assert error("@none.txt") == "none.txt: the list cannot be read: there is no such file"
        os.mkdir("d")
        assert "it is a folder" in error("@d")
        Path("l.txt").write_bytes(b"a.jpg\n" + b"x" * 70000 + b"\nb.jpg\n")
        sources = list(expand(["@l.txt"]))
        assert [s.key for s in sources] == ["a.jpg", "l.txt"]
        assert "a line is too long" in failures(sources)["l.txt"]

    def test_shards_in_a_list(self) -> None:
        write_tar("s.tar", {"a.jpg": b"1"})
        touch("z.tar.gz")
        Path("l.txt").write_text("s.tar\nnone.tar\nz.tar.gz\n")
        sources = list(expand(["@l.txt"]))
        assert [s.key for s in sources] == ["s.tar/a.jpg", "none.tar", "z.tar.gz"]
        assert failures(sources)["none.tar"] == "there is no such file"
        assert "compressed" in failures(sources)["z.tar.gz"]
