"""Numbers and nouns that go together."""

from __future__ import annotations


def counted(n: int, what: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")
