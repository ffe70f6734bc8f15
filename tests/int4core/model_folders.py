"""A small model in a folder, a fault put into it, and what loading then says."""

from __future__ import annotations

from pathlib import Path

import pytest

from int4core.errors import ModelError
from int4core.model import Model
from int4core.random_model import random_model


def small() -> Model:
    """Every kind of layer and both kinds of residual branch."""
    return random_model(blocks=(2, 1, 1, 1), width=4, classes=5, pool=1)


def edit(file: Path, old: str, new: str) -> int:
    """Replace the one `old` in `file`; return the line it stands on."""
    text = file.read_bytes().decode()
    assert text.count(old) == 1, f"{old!r} is in {file.name} {text.count(old)} times"
    file.write_bytes(text.replace(old, new).encode())
    return text[: text.index(old)].count("\n") + 1


def refused(folder: Path, file: str, line: int, why: str) -> None:
    with pytest.raises(ModelError) as caught:
        Model.load(folder)
    assert why in caught.value.why
    assert (caught.value.file, caught.value.line) == (str(folder / file), line)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
