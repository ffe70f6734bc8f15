"""What an engine warns of while it is made, kept for who shows it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Warnings(logging.Handler):
    """What is logged.

    Attributes:
        lines: each once, in order.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[record.getMessage()] = None


@contextmanager
def engine_warnings() -> Iterator[Warnings]:
    """Those of the logger `int4core`, for as long as this lasts."""
    kept, logger = Warnings(), logging.getLogger("int4core")
    logger.addHandler(kept)
    try:
        yield kept
    finally:
        logger.removeHandler(kept)
