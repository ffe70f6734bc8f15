"""Fixtures of more than one folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.gpu import cupy_or_skip

# No example fails for a machine that is busy with something else; and the same are drawn each time, unless all there is
# to test is to be tested.
settings.register_profile(
    "int4",
    deadline=None,
    derandomize=not os.environ.get("INT4CORE_TEST_ALL"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("int4")


# Of these, tests start processes that load both cores, send signals and look at what is left: one of them at a time.
STARTING_PROCESSES = tuple(Path(__file__).parent / name for name in ("pipeline", "benchmarks"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those that start processes do not."""
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in STARTING_PROCESSES):
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """What these tests start and send SIGINT would ignore it where they do, as a job in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _no_way_out() -> Iterator[None]:
    """A command that ends its process by `os._exit` would end this one, and every test after it unseen."""
    here, leave = os.getpid(), os._exit

    def refuse(status: int) -> None:
        if os.getpid() != here:
            leave(status)
        pytest.fail(f"os._exit({status}) was called")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "_exit", refuse)
        yield


@pytest.fixture(scope="session")
def cupy() -> Any:
    """CuPy on a machine with a GPU; elsewhere the test is skipped, or fails where a GPU is required."""
    return cupy_or_skip()
