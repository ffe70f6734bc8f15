"""The page of a report as a browser shows it, on a screen and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.conftest import wait_for
from tests.pipeline.report import pages
from tests.pipeline.report.browser import Browser, browser, needs_chromium

pytestmark = needs_chromium

# Names of the elements that go beyond the window's right edge and are not in one that scrolls by itself.
BEYOND = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, figcaption, .what')
    && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 200))
"""
# Labels of one axis that lie on one another.
OVERLAPPING = """
[...document.querySelectorAll('.xs, .ys, .phases')].flatMap(axis => {
    const boxes = [...axis.children].map(e => e.getBoundingClientRect());
    return boxes.filter((a, i) => boxes.some((b, j) => j > i
        && a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)).map(() => axis.innerText);
})
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "page.html"
    pages.reporter(path).write(pages.ending())
    return path


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_is_calm(shown: Browser, page: Path, width: int, dark: bool) -> None:
    shown.show(page, width, dark=dark)
    assert shown.evaluate("innerWidth") == width
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate(BEYOND) == []
    assert shown.evaluate(OVERLAPPING) == []
    # Nothing was fetched but the page and the pictures in it, and nobody complained.
    urls = [p["request"]["url"] for method, p in shown.events if method == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith("data:")] == [page.as_uri()]
    trouble = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed")
    assert [event for event in shown.events if event[0] in trouble] == []
    assert shown.evaluate("document.title") == f"a model {pages.SCRIPT} on a GPU"
    # Text that is read at arm's length.
    assert shown.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 16
    assert shown.evaluate("getComputedStyle(document.body).fontVariantNumeric") == "tabular-nums"
    with Image.open(BytesIO(shown.screenshot())) as picture:
        corner = np.asarray(picture.convert("L"))[:8, :8].mean()
    assert (corner < 60) if dark else (corner > 200)


def test_what_is_there_is_seen(shown: Browser, page: Path) -> None:
    shown.show(page, 1280)
    assert shown.evaluate("document.querySelectorAll('figure').length") == 60
    shown.evaluate("document.querySelectorAll('img').forEach(e => e.loading = 'eager')")
    pictures = "[...document.querySelectorAll('img')].filter(e => e.complete && e.naturalWidth === 64).length"
    wait_for(lambda: shown.evaluate(pictures) == 130)
    for chart in range(4):
        line = f"document.querySelectorAll('.chart')[{chart}].querySelector('.line').getBoundingClientRect()"
        assert shown.evaluate(f"{line}.width") > 800
    assert shown.evaluate("document.querySelector('.strip .fill').getBoundingClientRect().height") > 60
    tallest = "Math.max(...[...document.querySelectorAll('.columns i')].map(e => e.offsetHeight))"
    assert shown.evaluate(tallest) > 200
