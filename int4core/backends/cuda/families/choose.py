"""The entry of a family that should do well untuned: of those that take an operation, the one of least cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from int4core.errors import EngineError

K = TypeVar("K")


def choose(what: str, numbers: Iterable[int], make: Callable[[int], K], cost: Callable[[K], Any]) -> K:
    """The kernel of least `cost` among those that `make` gives for `numbers`; of equals the first.

    Args:
        what: the operation and the family, for the message.
        make: number -> kernel; EngineError when it does not take the operation.
        cost: kernel -> whatever has an order.

    Raises:
        EngineError: none takes it; the message gives every reason, each once.
    """
    fitting: list[K] = []
    reasons: dict[str, None] = {}
    for number in numbers:
        try:
            fitting.append(make(number))
        except EngineError as error:
            reasons[str(error)] = None
    if not fitting:
        raise EngineError(f"{what} takes it: {'; '.join(reasons)}")
    return min(fitting, key=cost)
