"""Functions compiled by Numba: for modules that need it, which nothing imports where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """By Numba, at the first call with arguments of these types; kept in `__pycache__` or the user's cache folder."""
    try:
        made = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither folder can be written
        made = numba.njit(nogil=True)(function)
    return cast("Function", made)
