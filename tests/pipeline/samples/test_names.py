"""Files that are named, by patterns and by braces too."""

from __future__ import annotations

import os

import pytest

from pipeline.samples import listing
from pipeline.samples.expand import expand
from tests.pipeline.samples.expanded import error, keys, left_out, touch

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestNames:
    def test_files_whatever_their_ending(self) -> None:
        touch("a.jpg", "b", "c.heic", "img[1].jpg", "{x,y}.jpg")
        os.mkfifo("fifo")
        given = ["b", "a.jpg", "c.heic", "img[1].jpg", "{x,y}.jpg", "fifo"]
        assert keys(*given) == given

    def test_what_is_not_there_is_said_at_once(self) -> None:
        os.symlink("nowhere", "link")
        assert error("none.jpg") == "none.jpg: there is no such file or folder"
        assert error("link") == "link: a link to a file that is not there"
        assert error("x{0..2}.tar") == "x0.tar: there is no such file or folder"
        assert error("*.jpg") == "*.jpg: no file has a name like this"
        assert error("none/*.jpg") == "none/*.jpg: none: there is no such file"
        assert "empty name" in error("")
        assert "compressed" in error_of_file("a.tar.gz")
        assert "not a file name" in error("a\0b")

    def test_patterns(self) -> None:
        touch("d/a.jpg", "d/b.png", "d/n.txt", "d/.h.jpg", "d/s/c.jpg", "d/s/t/a.jpg", "e/a.jpg", "f/x.dat")
        assert keys("d/*.jpg") == ["d/a.jpg"]
        assert keys("?/a.*") == ["d/a.jpg", "e/a.jpg"]
        assert keys("[de]/a.jpg") == ["d/a.jpg", "e/a.jpg"]
        assert keys("d/*") == ["d/a.jpg", "d/b.png", "d/s/c.jpg", "d/s/t/a.jpg"]
        assert keys("**/a.jpg") == ["d/a.jpg", "d/s/t/a.jpg", "e/a.jpg"]
        assert keys("d/**") == ["d/a.jpg", "d/b.png", "d/s/c.jpg", "d/s/t/a.jpg"]
        assert keys("d/**/t/*.jpg") == ["d/s/t/a.jpg"]
        assert keys("d/.*.jpg") == ["d/.h.jpg"]
        assert keys("f/*.dat") == ["f/x.dat"]
        assert keys(f"{os.getcwd()}/e/*.jpg") == [f"{os.getcwd()}/e/a.jpg"]
        assert left_out("d/*") == "ignored 1 file (.txt 1)"

    def test_a_pattern_is_matched_lazily(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(*(f"d/{n:04}.jpg" for n in range(1000)))
        monkeypatch.setattr(listing, "WINDOW", 10)
        listed, real = [], listing._kind
        monkeypatch.setattr(listing, "_kind", lambda entry: listed.append(entry.path) or real(entry))
        sources = expand(["d/*.jpg"])
        next(sources)
        assert len(listed) <= 20
        assert 1 + sum(1 for _ in sources) == 1000

    def test_braces(self) -> None:
        touch(*(f"s/{n:03}.jpg" for n in range(12)), "s/a-1.jpg", "s/b-1.jpg", "s/b-2.jpg", "s/a-2.jpg")
        assert keys("s/{008..011}.jpg") == ["s/008.jpg", "s/009.jpg", "s/010.jpg", "s/011.jpg"]
        assert keys("s/{a,b}-{2..1}.jpg") == ["s/a-2.jpg", "s/a-1.jpg", "s/b-2.jpg", "s/b-1.jpg"]
        assert "more than 1,000,000" in error("s/{0..99999999999999999999}.jpg")
        assert "more than 1,000,000" in error("s/{000..999}{000..999}{0..1}.jpg")


def error_of_file(name: str) -> str:
    touch(name)
    return error(name)
