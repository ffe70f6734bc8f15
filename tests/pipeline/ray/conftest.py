"""A local Ray for the tests, and images enough for its actors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CPUS = 2
OBJECT_STORE_BYTES = 200 * 2**20


# Ray gives its workers a niceness of 15, and on a busy machine they would get next to nothing. It gives up a worker
# that takes a minute to start and a node that is not heard of for a while, and kills workers where memory is short,
# whoever has it.
ON_A_BUSY_MACHINE = {
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_health_check_failure_threshold": "100",
    "RAY_memory_monitor_refresh_ms": "0",
}


@pytest.fixture(scope="package", autouse=True)
def _patient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ON_A_BUSY_MACHINE.items():
            patched.setenv(name, value)
        yield


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """Ray on this machine, as if it had two CPUs and no GPU; the test is skipped where Ray is not installed.

    It ends with this folder's tests: others count the processes there are.
    """
    ray = pytest.importorskip("ray", reason="needs Ray: make test WITH_RAY=1, or pip install 'ray[data]'")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=CPUS,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def image_bytes(images: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(images.glob("*.jpg"))]
