"""Keys written out and read back, and sets of them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.samples.keys import DIGEST, KeySet, digests, escape, escape_all, unescape

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from("\\xu\0\udcff\ud800"))


@given(ANY_TEXT)
def test_every_key_comes_back(key: str) -> None:
    text = escape(key)
    text.encode()
    assert "\0" not in text
    assert unescape(text) == key


@given(st.lists(ANY_TEXT))
def test_all_at_once(keys: list[str]) -> None:
    assert list(escape_all(keys)) == [escape(key) for key in keys]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("d/é 1.jpg", "d/é 1.jpg"),
        (os.fsdecode(b"\xff\xc3.jpg"), r"\xff\xc3.jpg"),
        (r"\xff.jpg", r"\\xff.jpg"),
        ("a\0b", r"a\x00b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_how_it_looks(key: str, text: str) -> None:
    assert escape(key) == text


@given(st.lists(st.text(max_size=3)))
def test_a_set_of_keys(keys: list[str]) -> None:
    mine, theirs = KeySet(), set()
    for key in keys:
        assert (key in mine) == (key in theirs)
        assert mine.add(key) == (key not in theirs)
        theirs.add(key)
    assert len(mine) == len(theirs)


@given(st.lists(st.lists(st.text(max_size=2))))
def test_keys_by_their_digests(some: list[list[str]]) -> None:
    mine, theirs = KeySet(), KeySet()
    for keys in some:
        these = digests(escape_all(keys))
        assert mine.hold_digests(these) == [key in theirs for key in keys]
        assert mine.add_digests(these) == [theirs.add(key) for key in keys]
    assert len(mine) == len(theirs)


def test_digests_that_end_in_zeros() -> None:
    """numpy takes closing zeros of bytes for nothing."""
    zeros = np.frombuffer(b"".join(bytes([n]) + bytes(15) for n in range(256)), DIGEST)
    keys = KeySet()
    assert all(keys.add_digests(zeros))
    assert not any(keys.add_digests(zeros))


def test_many_keys_in_little_memory() -> None:
    keys = KeySet()
    count = 300_000
    assert all(keys.add(f"d/{n}.jpg") for n in range(count))
    assert len(keys) == count
    assert not any(keys.add(f"d/{n}.jpg") for n in range(count))
    assert all(f"d/{n}.jpg" in keys for n in range(0, count, 7))
    assert not any(f"e/{n}.jpg" in keys for n in range(10_000))
    assert not keys.add_escaped("d/0.jpg")
    held = sum(len(t._slots) + len(t._used) + 100 * len(t._spilled) for t in keys._tables)
    assert held < 30 * count
