"""Writing a report under a supervisor: what ends it in the middle."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.commands.report import write_report
from pipeline.errors import PipelineError
from pipeline.report import page
from pipeline.report.page import Ending, Reporter
from pipeline.report.pictures import Painter, Picture, make_pictures
from pipeline.samples.sources import Locator, PathLocator, Source
from pipeline.session.supervisor import Supervisor
from pipeline.stages.load import Preparation
from tests.pipeline.conftest import PATIENCE_S, wait_for
from tests.pipeline.report.columns import columns

ENDING = Ending("a title", None, None, (), Preparation("images", 64, None))


class Hanging(Painter):
    """Makes the folder that it is to read, and hangs."""

    def _picture(self, locator: Locator) -> Picture:
        assert isinstance(locator, PathLocator)
        Path(locator.path).mkdir()
        time.sleep(3600)
        raise AssertionError


@pytest.mark.usefixtures("clean")
def test_one_that_is_ended_leaves_no_page_and_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "make_pictures", partial(make_pictures, make_painter=Hanging))
    supervisor, reporter = Supervisor(), Reporter(tmp_path / "page.html", 10)
    hanging = tmp_path / "hanging"
    reporter.answers.add(columns([("a", 1, 0.5)]), [Source("a", PathLocator(str(hanging)))])

    def fail() -> None:
        wait_for(hanging.exists)
        supervisor.fail(PipelineError("something else went wrong"))

    end = threading.Thread(target=fail)
    end.start()
    with pytest.raises(PipelineError, match="something else went wrong"):
        write_report(reporter, ENDING, supervisor)
    end.join()
    supervisor.settle(PATIENCE_S)
    assert not supervisor.job_is_stuck
    assert list(tmp_path.iterdir()) == [hanging]


def test_one_that_goes_well_or_cannot_be_written(tmp_path: Path) -> None:
    write_report(Reporter(tmp_path / "page.html", 10), ENDING, Supervisor())
    assert "a title" in (tmp_path / "page.html").read_text()
    with pytest.raises(PipelineError, match="cannot be written"):
        write_report(Reporter(tmp_path / "page.html" / "page.html", 10), ENDING, Supervisor())
