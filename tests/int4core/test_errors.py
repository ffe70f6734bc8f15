"""What messages quote: cut, and harmless on a terminal."""

from __future__ import annotations

from int4core.errors import SHOWN, FileError, printable, shown


def test_quoted_values_are_cut() -> None:
    assert shown("a" * SHOWN) == repr("a" * SHOWN)
    assert shown("a" * (SHOWN + 1)) == repr("a" * (SHOWN - 3) + "...")
    assert shown("\x1b[2J\n") == r"'\x1b[2J\n'"


def test_names_are_printable_ascii_where_they_would_act() -> None:
    assert printable("a b/\u00e9\u4e2d") == "a b/\u00e9\u4e2d"
    assert printable("a\x1b[31m\nb\u202e\udcff") == r"a\x1b[31m\nb\u202e\udcff"


def test_a_file_with_a_newline_makes_one_line() -> None:
    error = FileError("bad\nerror: all is lost", 3, "is wrong")
    assert str(error) == r"bad\nerror: all is lost:3: is wrong"
    assert error.file == "bad\nerror: all is lost"
