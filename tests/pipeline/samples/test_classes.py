"""Names of classes, and labels of sources by map and by folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.defaults import DEFAULT_MODEL
from pipeline.errors import PipelineError
from pipeline.samples.classes import read_classes
from pipeline.samples.labels import Labels

NAMES = ("tabby cat", "tench", "crane", "crane")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestClasses:
    def wrong(self, text: bytes, count: int = 2) -> str:
        Path("c.txt").write_bytes(text)
        with pytest.raises(PipelineError) as caught:
            read_classes(Path("c.txt"), Path("model"), count)
        return str(caught.value)

    def test_a_name_a_line(self) -> None:
        for text in (b"a b\nc\xc3\xa9\n", b"a b\nc\xc3\xa9", b"\xef\xbb\xbfa b\r\n c\xc3\xa9\r\n\r\n"):
            Path("c.txt").write_bytes(text)
            assert read_classes(Path("c.txt"), Path("model"), 2) == ("a b", "cé")

    def test_the_models_own_unless_others_are_given(self) -> None:
        Path("model").mkdir()
        assert read_classes(None, Path("model"), 1) is None
        Path("model/classes.txt").write_text("own\n")
        Path("other.txt").write_text("other\n")
        assert read_classes(None, Path("model"), 1) == ("own",)
        assert read_classes(Path("other.txt"), Path("model"), 1) == ("other",)

    def test_the_bundled_model_has_names(self) -> None:
        names = read_classes(None, DEFAULT_MODEL, 1000)
        assert names is not None
        assert (names[0], names[999]) == ("red plain disc", "magenta marbled gear")

    def test_what_is_wrong_is_said(self) -> None:
        assert self.wrong(b"a\n") == "c.txt: 1 lines, and the model has 2 classes; it takes a name a line"
        assert "3 lines" in self.wrong(b"a\nb\nc\n")
        assert "c.txt:1: a line without a name" in self.wrong(b"\nb\n")
        assert "1 lines" in self.wrong(b"")
        assert "not a text file in UTF-8" in self.wrong(b"\xff\nb\n")
        with pytest.raises(PipelineError, match=r"none\.txt: the names .* cannot be read: there is no such file"):
            read_classes(Path("none.txt"), Path("model"), 1)
        with pytest.raises(PipelineError, match="is not a regular file"):
            read_classes(Path("/dev/zero"), Path("model"), 1)


class TestMap:
    def read(self, text: str, classes: int = 10) -> Labels:
        Path("map.txt").write_text(text)
        return Labels.read("map.txt", ["d"], None, classes)

    def test_the_longest_end_of_a_key_is_named(self) -> None:
        labels = self.read("cat.jpg 1\na/cat.jpg 2\ndog.jpg 9\n")
        assert labels.of("cat.jpg") == labels.of("x/b/cat.jpg") == labels.of("s.tar/cat.jpg") == 1
        assert labels.of("a/cat.jpg") == labels.of("/x/a/cat.jpg") == labels.of("s.tar/a/cat.jpg") == 2
        assert labels.of("bobcat.jpg") is None
        assert labels.of("cat.jpg/") is None
        assert labels.of("\udcff/dog.jpg") == 9

    def test_labels_that_are_none(self) -> None:
        with pytest.raises(PipelineError, match=r"map\.txt:2: label 10; the model's classes are 0 to 9"):
            self.read("a.jpg 9\nb.jpg 10\n")
        with pytest.raises(PipelineError, match=r"map\.txt:1: no label; a line is NAME"):
            self.read("a.jpg\n")
        with pytest.raises(PipelineError, match="no such map file"):
            Labels.read("none.txt", [], None, 10)


class TestFolders:
    def read(self, folders: Sequence[str], names: Sequence[str] | None, classes: int, *sources: str) -> Labels:
        for folder in folders:
            Path(folder).mkdir(parents=True)
        return Labels.read("folders", sources or ("d",), names, classes)

    def test_by_their_order(self) -> None:
        labels = self.read(["d/b", "d/a/deep", "e/c", "e/a", "d/.hidden"], None, 3, "d", "e/")
        keys = ("d/a/1.jpg", "d/a/deep/2.jpg", "d/b/3.jpg", "e/c/4.jpg", "e/a/5.jpg", "d/6.jpg", "d/b.jpg")
        assert [labels.of(key) for key in keys] == [0, 0, 1, 2, 0, None, None]
        assert labels.of("s.tar/b/7.jpg") == 1
        assert labels.of("x/deep/8.jpg") is None

    def test_of_sources_that_braces_stand_for(self) -> None:
        labels = self.read(["d/b", "d/a", "e/c"], None, 3, "{d,e}")
        keys = ("d/a/1.jpg", "d/b/deep/2.jpg", "e/c/deep/3.jpg")
        assert [labels.of(key) for key in keys] == [0, 1, 2]

    def test_by_the_names_of_the_classes(self) -> None:
        labels = self.read(["d/tench", "d/tabby_cat"], NAMES, 4)
        assert labels.of("d/tench/a.jpg") == 1
        assert labels.of("d/tabby_cat/a.jpg") == labels.of("s.tar/tabby cat/b.jpg") == 0

    def test_names_alone_will_do_for_shards(self) -> None:
        labels = self.read([], NAMES, 4, "s.tar", "@list.txt", "-")
        assert labels.of("s.tar/tench/a.jpg") == 1
        assert labels.of("s.tar/a.jpg") is None

    def test_what_cannot_be_numbered(self) -> None:
        with pytest.raises(
            PipelineError, match=r"2 folders where the model has 4 classes, and no class is called dog;"
        ):
            self.read(["d/dog", "d/tench"], NAMES, 4)
        with pytest.raises(PipelineError, match="1 folder where the model has 4 classes, and no class is called dog;"):
            self.read(["one/dog"], NAMES, 4, "one")
        # A name of two classes says nothing.
        with pytest.raises(PipelineError, match="no class is called crane"):
            self.read(["e/crane"], NAMES, 4, "e")
        with pytest.raises(PipelineError, match="no source is a folder with folders of classes"):
            self.read([], None, 4, "s.tar")

    def test_as_many_folders_as_classes_go_by_order(self) -> None:
        labels = self.read(["d/n3", "d/n1", "d/n4", "d/n2"], NAMES, 4)
        assert [labels.of(f"d/n{n}/a.jpg") for n in (1, 2, 3, 4)] == [0, 1, 2, 3]
