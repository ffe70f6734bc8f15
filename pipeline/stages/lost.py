"""What becomes of a task whose worker was lost: which item is to blame, and what is given out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Items: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Lost:
    """Why a task came back undone.

    Attributes:
        item: the item of the task that the worker was on, 0 on; None when it was not on this task.
        why: what happened to the worker, as in `the worker <why>`.
        overstayed: whether the worker was ended because that item took longer than its time.
    """

    item: int | None
    why: str
    overstayed: bool = False


def triage(items: int, lost: Lost) -> tuple[int | None, tuple[Items, ...]]:
    """Of a lost task of `items` items: the one to blame, if any, and those to give out again, a tuple a task.

    An item that took too long is to blame. One that its worker died on may have been in the way of something else
    (a machine out of memory kills whom it likes): it is given out again alone, and is to blame when that worker dies
    too.
    """
    if lost.item is None:
        return None, (tuple(range(items)),)
    others = tuple(i for i in range(items) if i != lost.item)
    if lost.overstayed or not others:
        return lost.item, (others,) if others else ()
    return None, (others, (lost.item,))
