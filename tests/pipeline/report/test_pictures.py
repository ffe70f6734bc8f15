"""Pictures of what a report shows: as samples are made, and nothing a file does can stop them."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.report.pictures import NO_TENSOR, NO_TIME, NOWHERE, SIDE, Painter, Picture, make_pictures
from pipeline.samples.images import ImageRules
from pipeline.samples.preprocess import Preprocessor
from pipeline.samples.sources import BytesLocator, FailedLocator, Locator, PathLocator, RangeLocator
from pipeline.stages.load import Preparation
from tests.pipeline.conftest import PATIENCE_S
from tests.pipeline.judged import judged_clock
from tests.pipeline.stages.test_load import damaged_tiff, greedy_tiff

PREPARATION = Preparation("images", 224, 256)


HANG = b"hang "


def hanging(sign: Path) -> BytesLocator:
    return BytesLocator(HANG + os.fsencode(sign))


class Fragile(Painter):
    """Dies, or hangs, on bytes that say so; those of `hanging` name a file that it makes first."""

    def _picture(self, locator: Locator) -> Picture:
        if locator == BytesLocator(b"kill"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if isinstance(locator, BytesLocator) and locator.data.startswith(HANG):
            Path(os.fsdecode(locator.data.removeprefix(HANG))).touch()
            time.sleep(600)
        return super()._picture(locator)


def photograph(size: tuple[int, int] = (300, 400)) -> Image.Image:
    rng = np.random.default_rng(2)
    small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.usefixtures("clean")
def test_each_source_has_its_picture_or_the_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image, data = photograph(), encoded(photograph())
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "shard.tar").write_bytes(b"before" + data + b"after")
    os.mkfifo(tmp_path / "fifo.jpg")
    locators: list[Locator | None] = [
        PathLocator(str(tmp_path / "a.png")),
        RangeLocator(str(tmp_path / "shard.tar"), 6, len(data)),
        BytesLocator(data),
        BytesLocator(data[:-100]),
        BytesLocator(b"%!PS not an image"),
        BytesLocator(encoded(Image.new("L", (2000, 1001)))),
        BytesLocator(encoded(Image.new("I;16", (300, 300)))),
        PathLocator(str(tmp_path / "fifo.jpg")),
        FailedLocator("bucket", "no such bucket"),
        PathLocator(str(damaged_tiff(tmp_path / "damaged.tif"))),
        PathLocator(str(greedy_tiff(tmp_path / "greedy.tif"))),
        None,
    ]
    preparation = Preparation("images", 224, 256, ImageRules(max_pixels=2_000_000))
    pictures = make_pictures(locators, preparation, image_timeout_s=PATIENCE_S, total_s=PATIENCE_S)
    assert pictures[0] == pictures[1] == pictures[2]
    due = Preprocessor().picture(data, "it").resize((SIDE, SIDE), Image.Resampling.BOX)
    made = Image.open(BytesIO(pictures[0].jpeg))
    assert made.size == (SIDE, SIDE)
    assert np.abs(np.asarray(made, np.int32) - np.asarray(due, np.int32)).mean() < 3
    assert image.size == (300, 400)
    assert [p.why.split(":")[0].split(",")[0] for p in pictures] == [
        "", "", "", "damaged or cut short", "not an image", "2000 x 1001 is more than --max-pixels 2000000",
        "16-bit grey (mode I;16)", "it is not a regular file", "no such bucket", "damaged or cut short",
        "not enough memory to decode it", NOWHERE,
    ]  # fmt: skip
    assert all(bool(p.jpeg) != bool(p.why) for p in pictures)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("clean")
def test_a_file_that_kills_or_hangs_is_a_picture_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, sign = BytesLocator(encoded(photograph((64, 64)))), tmp_path / "hangs"
    locators = [good, BytesLocator(b"kill"), good, hanging(sign), good]
    judged_clock(monkeypatch).let_pass(5.0, sign.exists)
    pictures = make_pictures(
        locators,
        Preparation("images", 64, None),
        image_timeout_s=3.0,
        total_s=PATIENCE_S,
        workers=1,
        make_painter=Fragile,
    )
    assert [bool(p.jpeg) for p in pictures] == [True, False, True, False, True]
    assert pictures[1].why == "its process was killed by SIGSEGV"
    assert pictures[3].why == "making it took longer than 3 s"


@pytest.mark.usefixtures("clean")
def test_there_is_an_end_to_it(tmp_path: Path) -> None:
    """Those that hang would take half an hour."""
    hang = hanging(tmp_path / "hangs")
    pictures = make_pictures([hang] * 3, PREPARATION, total_s=1.0, make_painter=Fragile)
    assert [p.why for p in pictures] == [NO_TIME] * 3


def broken(preparation: Preparation, number: int) -> Painter:
    raise OSError(f"no {preparation.kind} today")


@pytest.mark.usefixtures("clean")
def test_workers_that_cannot_start_are_the_reason() -> None:
    why = make_pictures([BytesLocator(b"x"), None], PREPARATION, make_painter=broken)
    assert "no images today" in why[0].why
    assert why[1].why == NOWHERE


def test_what_needs_no_process_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.pictures.ProcessStage", partial(pytest.fail, "a stage"))
    assert make_pictures([PathLocator("x.npy")], Preparation("tensors", 224, None)) == [Picture(why=NO_TENSOR)]
    assert make_pictures([None], PREPARATION) == [Picture(why=NOWHERE)]
    assert make_pictures([], PREPARATION) == []
