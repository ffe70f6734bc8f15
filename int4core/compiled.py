"""Functions compiled by Numba: for modules that need it, which nothing imports where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """By Numba, at the first call with arguments of these types; kept in `__pycache__` or the user's cache folder.

    It is compiled again where neither folder can be written, or what is kept there is damaged.
    """
    try:
        made = numba.njit(nogil=True, cache=True)(function)
        # Numba has no other place for it: a full disk would end the call, and so would a file that was cut short.
        made._cache = _Cache(made._cache)
    except RuntimeError:  # neither folder can be written
        made = numba.njit(nogil=True)(function)
    return cast("Function", made)


class _Cache:
    """Numba's cache of a function; what it cannot read or write is compiled, and not an error."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return self._cache.load_overload(signature, target)
        except Exception:  # whatever pickle and LLVM make of it
            with suppress(OSError):
                self._cache.flush()  # else it could not be replaced either
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        with suppress(OSError):
            self._cache.save_overload(signature, data)
