"""Fixtures of more than one folder."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu import cupy_or_skip


@pytest.fixture(scope="session")
def cupy() -> Any:
    """CuPy on a machine with a GPU; elsewhere the test is skipped, or fails where a GPU is required."""
    return cupy_or_skip()
