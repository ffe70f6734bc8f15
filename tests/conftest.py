"""Fixtures of more than one folder."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def cupy() -> Any:
    """CuPy on a machine with a GPU; elsewhere the test is skipped."""
    module = pytest.importorskip("cupy")
    try:
        if module.cuda.runtime.getDeviceCount() == 0:
            pytest.skip("no GPU")
    except module.cuda.runtime.CUDARuntimeError:
        pytest.skip("no GPU")
    return module
