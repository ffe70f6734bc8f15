from __future__ import annotations

import errno

import pytest

from pipeline.errors import PipelineError, shortage


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "whole system"),
    ],
)
def test_what_the_system_has_run_out_of_is_one_sentence(error: BaseException, said: str) -> None:
    found = shortage(error)
    assert found is not None
    assert said in found


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(errno.ENOENT, "x"), OSError("x"), PipelineError("x")])
def test_other_errors_speak_for_themselves(error: BaseException) -> None:
    assert shortage(error) is None
