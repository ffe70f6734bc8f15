"""Whether the tests that need a GPU can run here."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import pytest

from int4core.backends.cuda.device import load_cupy
from int4core.errors import EngineError

REQUIRE_GPU = "INT4CORE_REQUIRE_GPU"
"""Environment variable: when `1`, a test that needs a GPU fails where it cannot have one."""


def cupy_or_skip() -> Any:
    """The cupy module. Missing, broken or without a GPU: the test is skipped, or fails if one is required."""
    try:
        return load_cupy()
    except EngineError as error:
        _do_without(str(error))


def _do_without(why: str) -> NoReturn:
    if os.environ.get(REQUIRE_GPU) == "1":
        pytest.fail(f"{REQUIRE_GPU}=1, and {why}", pytrace=False)
    pytest.skip(why)
