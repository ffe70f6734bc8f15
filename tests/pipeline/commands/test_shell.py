"""What a command says of what ends it, and its exit status."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from pipeline.commands.shell import run
from pipeline.errors import PipelineError
from pipeline.session.supervisor import Interrupted, Supervisor
from pipeline.stages.base import StageFailure


def raising(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


def test_what_ends_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: 4, Supervisor()) == 4
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PipelineError("no such folder"), 1, "error: no such folder\n"),
        (StageFailure("infer", "it died", "Trace:\n  x\n"), 1, "Trace:\n  x\nerror: stage infer: it died\n"),
        (Interrupted(signal.SIGTERM), 143, "stopped: interrupted by SIGTERM\n"),
        (MemoryError(), 1, "error: not enough memory; see ulimit -v and the container's limit\n"),
        (OSError(24, "Too many open files"), 1, "error: too many open files; see ulimit -n\n"),
    ],
)
def test_what_was_to_be_expected_is_a_sentence(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), Supervisor()) == status
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit("boom")])
def test_a_fault_of_ours_comes_with_where_it_was_raised(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), Supervisor()) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Traceback (most recent call last):"
    assert said[-1] == f"error: {type(error).__name__}: boom"


def test_a_fault_beside_a_job_that_is_stuck_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(Supervisor, "job_is_stuck", True)
    run(raising(RuntimeError("boom")), Supervisor())
    assert ended == [1]
    assert "error: RuntimeError: boom" in capsys.readouterr().err
