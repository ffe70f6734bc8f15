"""The grammar of a layer file: its type, then `key=value` lines, each tensor followed by a `!path` line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from int4core.errors import ModelError, shown
from int4core.format.schema import SCHEMA, Declared, Tensor, parse_tensor

LINE_END = "\r\n"
"""What is written. A bare line feed is read too: version control likes to turn one into the other."""


@dataclass
class Entry:
    """One `key=value` line. `data` and `data_line` are a tensor's `!path` line, empty and 0 for others."""

    value: Any
    line: int
    data: str = ""
    data_line: int = 0


@dataclass
class LayerText:
    """A parsed layer file: every key of its type is there once, with a value of the right form."""

    file: Path
    kind: str
    entries: dict[str, Entry] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Key -> value, without the tensors."""
        return {key: e.value for key, e in self.entries.items() if not isinstance(e.value, Declared)}

    def tensors(self) -> dict[str, Entry]:
        """Key -> entry of each tensor, whose value is a `Declared`."""
        return {key: e for key, e in self.entries.items() if isinstance(e.value, Declared)}

    def line(self, key: str) -> int:
        """The line that `key` stands on; 0, the file as a whole, when there is none."""
        return self.entries[key].line if key in self.entries else 0


def parse_layer(file: Path, data: bytes) -> LayerText:
    """Raises ModelError with the file and line of the first fault."""
    lines = _split(file, data)
    if lines[0] not in SCHEMA:
        raise ModelError(file, 1, f"unknown layer type {shown(lines[0])}; known are {', '.join(SCHEMA)}")
    layer = LayerText(file, lines[0])
    schema = SCHEMA[layer.kind]
    wants_data: Entry | None = None
    for number, line in enumerate(lines[1:], start=2):
        if line.startswith("!"):
            if wants_data is None:
                raise ModelError(file, number, "a data path belongs right after the tensor it is for")
            wants_data.data, wants_data.data_line = line[1:], number
            wants_data = None
            continue
        _expect_data(file, wants_data)
        key, equals, text = line.partition("=")
        if not equals:
            raise ModelError(file, number, f"{shown(line)} is neither key=value nor !path")
        if key not in schema:
            known = ", ".join(schema)
            raise ModelError(file, number, f"unknown key {shown(key)}; {layer.kind} has {known}")
        if key in layer.entries:
            raise ModelError(file, number, f"{key} is given twice; line {layer.line(key)} has it already")
        entry = layer.entries[key] = Entry(_value(file, number, layer.kind, key, text), number)
        wants_data = entry if isinstance(entry.value, Declared) else None
    _expect_data(file, wants_data)
    if missing := [key for key in schema if key not in layer.entries]:
        raise ModelError(file, 0, f"{layer.kind} lacks {', '.join(missing)}")
    return layer


def _split(file: Path, data: bytes) -> list[str]:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ModelError(file, line, f"byte 0x{data[error.start]:02x} is not ASCII text") from None
    lines = text.split("\n")
    # Without this a file cut in the middle of a number would be read as a smaller number.
    if lines.pop():
        raise ModelError(file, len(lines) + 1, "the last line has no line end: the file is cut short")
    if not lines:
        raise ModelError(file, 1, "the file is empty; its first line must be a layer type")
    lines = [line.removesuffix("\r") for line in lines]
    for number, content in enumerate(lines, start=1):
        if not content or not content.isprintable():
            what = "holds control characters" if content else "is empty"
            raise ModelError(file, number, f"the line {what}; a type, key=value or !path is needed")
    return lines


def _value(file: Path, line: int, kind: str, key: str, text: str) -> Any:
    codec = SCHEMA[kind][key]
    try:
        return parse_tensor(text, codec) if isinstance(codec, Tensor) else codec.parse(text)
    except ValueError as error:
        why = f"{key}={shown(text)} is wrong: {error}; expected a value such as {codec.example}"
        raise ModelError(file, line, why) from None


def _expect_data(file: Path, entry: Entry | None) -> None:
    if entry is not None:
        raise ModelError(file, entry.line, "the next line must be the path of this tensor's data, as !path")
