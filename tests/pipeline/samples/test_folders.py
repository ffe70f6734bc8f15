"""What is found below a folder, in which order, how lazily, and what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.samples import listing
from pipeline.samples.expand import expand
from pipeline.samples.reader import Reader
from pipeline.samples.sources import PathLocator
from tests.pipeline.samples.expanded import failures, keys, left_out, touch

pytestmark = pytest.mark.usefixtures("in_a_folder")


class TestFolders:
    def test_everything_below_in_order(self) -> None:
        touch("d/b.JPG", "d/a/z.png", "d/a.webp", "d/c/1.jpg", "d/c/d/2.jpeg", "d/c/e.jpg")
        expected = ["d/a/z.png", "d/a.webp", "d/b.JPG", "d/c/1.jpg", "d/c/d/2.jpeg", "d/c/e.jpg"]
        assert keys("d") == keys("d/") == expected
        assert keys("./d") == [f"./{key}" for key in expected]
        assert keys(os.path.abspath("d")) == [os.path.abspath(key) for key in expected]
        assert [s.locator for s in expand(["d"])] == [PathLocator(key) for key in expected]

    def test_what_is_left_out(self) -> None:
        touch("d/a.jpg", "d/b.HEIC", "d/c.heic", "d/notes.txt", "d/none", "d/.hidden.jpg", "d/.git/e.jpg", "d/s/f.jpg")
        os.symlink("nowhere.jpg", "d/broken.jpg")
        os.symlink("itself.jpg", "d/itself.jpg")
        os.symlink("..", "d/s/up")
        os.symlink("../d/a.jpg", "d/link.jpg")
        os.mkfifo("d/fifo.jpg")
        assert keys("d") == ["d/a.jpg", "d/link.jpg", "d/s/f.jpg"]
        line = "ignored 8 files (.heic 2, broken link 2, .txt 1, hidden 1, no ending 1, ...), 2 folders"
        assert left_out("d") == line
        assert left_out("d/s/f.jpg") == ""

    def test_a_link_to_a_folder_is_followed(self) -> None:
        touch("classes/cat/1.jpg")
        os.mkdir("d")
        os.symlink("../classes/cat", "d/a")
        os.symlink("../classes/cat", "d/b")
        assert keys("d") == ["d/a/1.jpg", "d/b/1.jpg"]

    def test_names_that_are_not_utf8(self) -> None:
        touch(os.fsdecode(b"d/\xff\xfe.jpg"), "d/new\nline.jpg", "d/é.jpg")
        sources = list(expand(["d"]))
        assert {os.fsencode(s.key) for s in sources} == {b"d/\xff\xfe.jpg", b"d/new\nline.jpg", "d/é.jpg".encode()}
        with Reader(100) as reader:
            assert all(reader.read(s.locator) == os.fsencode(s.key) for s in sources)

    def test_a_folder_larger_than_a_window(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(*(f"d/{n}.jpg" for n in range(100)))
        assert keys("d") == sorted(f"d/{n}.jpg" for n in range(100))
        monkeypatch.setattr(listing, "WINDOW", 30)
        found = keys("d")
        assert sorted(found) == sorted(f"d/{n}.jpg" for n in range(100))
        windows = [found[at : at + 30] for at in range(0, 100, 30)]
        assert all(window == sorted(window) for window in windows)
        assert found == keys("d")

    def test_the_first_comes_before_the_rest_is_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(*(f"d/{n:03}/a.jpg" for n in range(200)), *(f"e/{n:04}.jpg" for n in range(2000)))
        monkeypatch.setattr(listing, "WINDOW", 100)
        listed, real = [], listing._kind
        monkeypatch.setattr(listing, "_kind", lambda entry: listed.append(entry.path) or real(entry))
        sources = expand(["d", "e"])
        assert not listed
        assert next(sources).key.endswith("/a.jpg")
        assert len(listed) == 2
        assert sum(1 for _ in sources) == 2199

    def test_a_deep_tree(self) -> None:
        deep = "d/" + "/".join(["x"] * 300)
        os.makedirs(deep)
        Path(deep, "a.jpg").touch()
        assert keys("d") == [f"{deep}/a.jpg"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
    def test_a_folder_that_may_not_be_listed(self) -> None:
        touch("d/a.jpg", "d/b/c.jpg", "d/d.jpg")
        os.chmod("d/b", 0)
        assert keys("d") == ["d/a.jpg", "d/b", "d/d.jpg"]

    def test_a_folder_that_goes_while_it_is_listed(self) -> None:
        touch("d/a.jpg", "d/b/c.jpg", "d/d.jpg")
        sources = expand(["d"])
        found = [next(sources)]
        os.rename("d/b", "elsewhere")
        found += sources
        assert [s.key for s in found] == ["d/a.jpg", "d/b", "d/d.jpg"]
        assert failures(found) == {"d/b": "there is no such file"}
