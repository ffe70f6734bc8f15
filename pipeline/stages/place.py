"""Where a worker is: the task and the item of it that it is on, known without a message.

One word of shared memory that the worker alone writes: always whole, with no lock that a dying worker could take
along, and at the price of a store.
"""

from __future__ import annotations

from multiprocessing.context import SpawnContext
from typing import TypeAlias

At: TypeAlias = tuple[int, int]

_NOWHERE = -1
# Of the 64 bits, those of the item; the ticket has the others.
_ITEM_BITS = 20
_MOST_ITEMS = 1 << _ITEM_BITS


class Place:
    """One worker's word. It travels to a process that is being spawned, as an argument of its main function."""

    def __init__(self, context: SpawnContext) -> None:
        self._word = context.RawValue("q", _NOWHERE)

    def enter(self, ticket: int, item: int) -> None:
        """The worker begins item `item`, 0 on, of the task `ticket`."""
        if not 0 <= item < _MOST_ITEMS:
            raise ValueError(f"item {item} is not in 0..{_MOST_ITEMS - 1}")
        self._word.value = ticket << _ITEM_BITS | item

    def leave(self) -> None:
        """The worker is between tasks."""
        self._word.value = _NOWHERE

    def read(self) -> At | None:
        """The ticket and the item that the worker is on; None between tasks."""
        word: int = self._word.value
        return None if word == _NOWHERE else (word >> _ITEM_BITS, word & _MOST_ITEMS - 1)
