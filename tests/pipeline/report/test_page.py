"""The page of a report: whole, escaped, bounded, and nothing in it from elsewhere."""

from __future__ import annotations

import base64
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.report.page import Ending, Reporter, readable
from pipeline.samples.sources import PathLocator, Source
from pipeline.stages.load import Preparation
from tests.pipeline.report import pages
from tests.pipeline.report.columns import columns
from tests.pipeline.report.parsed import Page


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "folder that is not there" / "page.html"
    pages.reporter(path).write(pages.ending())
    return path.read_bytes().decode()


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_every_element_is_one_of_ours_and_closed(page: Page) -> None:
    assert page.open == []
    assert {tag for tag, _ in page.elements} == {
        "html", "head", "meta", "link", "title", "style", "body", "main", "header", "section", "div", "h1", "h2", "p",
        "b", "i", "span", "small", "ul", "ol", "li", "svg", "path", "figure", "figcaption", "img", "details", "summary",
        "dl", "dt", "dd",
    }  # fmt: skip


def test_nothing_comes_from_elsewhere_or_runs(source: str, page: Page) -> None:
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_names_are_text(page: Page) -> None:
    keys = [a["title"] for a in page.all("span", "key")]
    assert pages.SCRIPT in keys
    assert pages.QUOTES in keys
    assert pages.TEMPLATE in keys
    assert "caf\\xe9.jpg" in keys
    assert "\\x1b[31mred\\x07\\n\\x00\\u202egpj" in keys
    assert "&amp;lt;" in keys
    for text in (
        f"why {pages.SCRIPT}",
        f"a model {pages.SCRIPT} on a GPU",
        "/tmp/caf\\xe9.jpg",
        f"a note {pages.SCRIPT}",
    ):
        assert text in page.words
    assert f"class 0{pages.SCRIPT}" in page.words


def test_what_it_shows(page: Page) -> None:
    assert len(page.all("figure")) == 60
    for text in ("0.333", "images/J", "GPU 0: 300 W at 1,700 MHz"):
        assert text in page.words
    images = page.all("img")
    assert len(images) == 30 + 100
    with Image.open(BytesIO(base64.b64decode(images[0]["src"].partition(",")[2]))) as first:
        assert (first.format, first.size) == ("JPEG", (64, 64))
    assert len(page.all("div", "none")) == 30 + 100
    assert "230 images were not answered; the first 200 are shown, and 30 more are not." in page.words
    assert len(page.all("section", "chart")) == 4
    assert "75.00 %\ntop-1\n65.70 to 82.45 %, of 100" in page.words
    assert "The engine bounds this run: 100 samples/s is 96% of its ceiling" in page.words
    assert "GPU 1" in page.words
    assert re.search(r"running\n", page.words)
    assert (len(page.all("span", "right")), len(page.all("span", "wrong"))) == (3, 57)
    assert "and 100 more" in page.words  # of 300 versions
    assert "options.batch\n8" in page.words
    assert "options.trace" not in page.words


def test_its_size_is_bounded(source: str) -> None:
    # 130 pictures, 260 names of up to 1,000 characters.
    assert len(source) < 1_200_000


def test_a_run_without_scores_or_answers_says_so(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    report = Reporter(path, 10)
    end = Ending("a title", None, None, (), Preparation("tensors", 224, None))
    report.write(end)
    empty = Page(path.read_text())
    assert "Nothing was answered." in empty.words
    assert "This run asked for classes alone, and no scores." in empty.words
    report.answers.add_classes(np.array([3, 3, 4], np.int32))
    report.write(end)
    page = Page(path.read_text())
    assert "class 3\n2\nclass 4\n1" in page.words
    assert page.all("figure") == page.all("section", "chart") == []


def test_answers_of_an_earlier_run_have_pictures_where_their_keys_are_files(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(pages.image(1))
    report = Reporter(tmp_path / "page.html", 10)
    report.answers.add(columns([(str(file), 1, 0.5), ("shard.tar/b.png", 2, 0.6), ("c\0.png", 2, 0.7)]))
    report.write(Ending("a title", None, None, (), Preparation("images", 64, None)))
    page = Page((tmp_path / "page.html").read_text())
    assert len(page.all("img")) == 1
    assert page.words.count("where its bytes are was not kept") == 2


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(PipelineError, match=r"--report needs jinja2.*pip install .*\[report\]'"):
        Reporter(tmp_path / "page.html", 10)


def test_a_page_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = Reporter(tmp_path / "file" / "page.html", 10)
    report.answers.add(columns([("a", 1, 0.5)]), [Source("a", PathLocator("/nowhere"))])
    with pytest.raises(PipelineError, match=r"cannot be written: .*; give it another place"):
        report.write(Ending("a title", None, None, (), Preparation("images", 64, None)))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é 猫", "plain é 猫"), ("\udce9", "\\xe9"), ("\ud800", "\\ud800"), ("\x1b[0m\n", "\\x1b[0m\\n"), (7, 7)],
)
def test_readable(text: object, shown: object) -> None:
    assert readable(text) == shown
