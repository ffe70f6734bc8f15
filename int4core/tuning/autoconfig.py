"""Autoconfig files: one line per layer, `layer1_residual1_conv2=13`, the number of the kernel it uses.

A number means an entry of one engine's kernel table. Comments at the top say which, as `# key: value`
(`# engine: ...`, `# gpu: ...`, `# origin: measured`); files of the original submission have none, and
their numbers mean that engine's table, not ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from int4core.atomic import write_atomically
from int4core.errors import FileError, printable, shown
from int4core.regular import NotRegularError, TooLargeError, read_regular

_KEY = re.compile(r"layer([1-9]\d{0,3})_residual([1-9]\d{0,3})_(conv[123]|ds_conv)")
_LAYER = re.compile(r"layer([1-9]\d{0,3})_(0|[1-9]\d{0,3})_(conv[123]|downsample_0)")
_WHOLE = ("conv1", "fc")
_METADATA = re.compile(r"#\s*([A-Za-z][A-Za-z0-9_-]*)\s*:\s*(.*?)\s*")
_NUMBER = re.compile(r"[0-9]{1,9}")
MAX_BYTES = 1 << 20
MAX_LINE = 1000


class AutoconfigError(FileError):
    """An autoconfig file that cannot be read, or that does not fit the model or the kernel table."""


def layer_of(key: str) -> str | None:
    """The model's name of an autoconfig key: `layer1_residual1_ds_conv` -> `layer1_0_downsample_0`.

    Residual blocks count from 1 in these files and from 0 in the model. None for what is no key.
    """
    if key in _WHOLE:
        return key
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    part = "downsample_0" if match[3] == "ds_conv" else match[3]
    return f"layer{match[1]}_{int(match[2]) - 1}_{part}"


def key_of(layer: str) -> str | None:
    """The autoconfig key of a model's layer: the inverse of `layer_of`. None for layers without kernel."""
    if layer in _WHOLE:
        return layer
    match = _LAYER.fullmatch(layer)
    if match is None:
        return None
    part = "ds_conv" if match[3] == "downsample_0" else match[3]
    return f"layer{match[1]}_residual{int(match[2]) + 1}_{part}"


@dataclass(frozen=True)
class Autoconfig:
    """A choice of kernels.

    Attributes:
        kernels: autoconfig key -> number in the kernel table, in file order.
        metadata: what the comments at the top say as `# key: value`; keys in lower case, in file order.
        notes: the other comments at the top, without `#`.
        file: where it was read from, for messages.
        lines: key -> its line in that file.
    """

    kernels: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    file: str = "autoconfig"
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def foreign(self) -> bool:
        """Whether the numbers mean another engine's table: no `# engine:` line says that it is ours."""
        return "engine" not in self.metadata

    @property
    def notice(self) -> str | None:
        """What the user should know before these numbers are used; None for a file of this engine."""
        if not self.foreign:
            return None
        return (
            f"{self.file}: no `# engine:` line: this file is of the original submission, and its numbers "
            "mean that engine's kernel table, not this one's"
        )

    def by_layer(self) -> dict[str, int]:
        """The numbers by the model's layer names, as `layer_of` gives them."""
        return {layer_of(key) or key: number for key, number in self.kernels.items()}

    def place(self, layer: str) -> str:
        """File and line of a layer's number, for messages; of the file alone where it has none."""
        line = self.lines.get(key_of(layer) or "", 0)
        return f"{printable(self.file)}:{line}" if line else printable(self.file)

    def missing(self, layers: Iterable[str]) -> list[str]:
        """Those of the model's `layers` that could have a number here and have none."""
        chosen = self.by_layer()
        return [layer for layer in layers if key_of(layer) is not None and layer not in chosen]

    def validate(
        self,
        known_numbers: Collection[int] | Mapping[str, Collection[int]] | None = None,
        layers: Collection[str] | None = None,
    ) -> None:
        """Check the choice against a kernel table and a model.

        Args:
            known_numbers: the numbers of the table, or those that fit each of the model's layers.
            layers: the model's layer names.

        Raises AutoconfigError for a layer that the model has not, or a number that the table has not.
        """
        for key, number in self.kernels.items():
            layer = layer_of(key) or key
            if layers is not None and layer not in layers:
                raise self._error(key, f"{key}: the model has no layer {layer}; remove the line")
            if known_numbers is None:
                continue
            known = known_numbers.get(layer, ()) if isinstance(known_numbers, Mapping) else known_numbers
            if number not in known:
                raise self._error(key, f"{key}={number}: no such kernel here; known: {_ranges(known)}")

    def _error(self, key: str, why: str) -> AutoconfigError:
        also = f" ({self.notice})" if self.notice else ""
        return AutoconfigError(self.file, self.lines.get(key, 0), why + also)


def read(path: str | Path) -> Autoconfig:
    """Read an autoconfig file. Raises AutoconfigError."""
    path = Path(path)
    try:
        data = read_regular(path, MAX_BYTES)
    except (NotRegularError, TooLargeError) as error:
        raise AutoconfigError(path, 0, f"{error.strerror}: this is no autoconfig file") from error
    except (OSError, ValueError) as error:
        raise AutoconfigError(path, 0, f"cannot be read: {getattr(error, 'strerror', error)}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise AutoconfigError(path, line, "not UTF-8 text: this is no autoconfig file") from None
    return parse(text, str(path))


def parse(text: str, file: str = "autoconfig") -> Autoconfig:
    """Parse the text of an autoconfig file; `file` names it in errors. Raises AutoconfigError."""
    kernels: dict[str, int] = {}
    lines: dict[str, int] = {}
    metadata: dict[str, str] = {}
    notes: list[str] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if len(line) > MAX_LINE or not line.replace("\t", " ").isprintable():
            raise AutoconfigError(
                file, number, f"holds control characters, or more than {MAX_LINE} characters: {shown(line)}"
            )
        if line.startswith("#"):
            if kernels:
                continue  # about the lines beside it: for the reader of the file, and not kept
            if (match := _METADATA.fullmatch(line)) is None:
                notes.append(line[1:].strip())
            elif match[1].lower() in metadata:
                raise AutoconfigError(file, number, f"the key {shown(match[1])} is given twice")
            else:
                metadata[match[1].lower()] = match[2]
            continue
        setting = line.partition("#")[0].strip()
        if not setting:
            continue
        key, value = _setting(file, number, setting)
        if key in kernels:
            raise AutoconfigError(file, number, f"{key} is already set on line {lines[key]}; keep one")
        kernels[key], lines[key] = value, number
    if not kernels:
        raise AutoconfigError(file, 0, "no layer in it; a line is `layer1_residual1_conv2=13`")
    return Autoconfig(kernels, metadata, tuple(notes), file, lines)


def _setting(file: str, number: int, text: str) -> tuple[str, int]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise AutoconfigError(file, number, f"no `=` in {shown(text)}; a line is `layer1_residual1_conv2=13`")
    if layer_of(key) is None:
        raise AutoconfigError(
            file,
            number,
            f"unknown layer {shown(key)}; known are conv1, fc and layerN_residualM_ with conv1, conv2, conv3 "
            "or ds_conv, N and M counted from 1",
        )
    if not _NUMBER.fullmatch(value):
        raise AutoconfigError(
            file, number, f"{key}: {shown(value)} is not a kernel number (a whole number, 0 or above)"
        )
    return key, int(value)


def dumps(config: Autoconfig) -> str:
    """The text of the file: metadata, notes, then the lines. `parse` gives the same choice back."""
    header = [f"# {key}: {value}".rstrip() for key, value in config.metadata.items()]
    header += [f"# {note}".rstrip() for note in config.notes]
    return "".join(f"{line}\n" for line in [*header, *(f"{k}={n}" for k, n in config.kernels.items())])


def write(path: str | Path, config: Autoconfig) -> None:
    """Write the file, whole or not at all. Raises AutoconfigError for what could not be read back."""
    path = Path(path)
    again = parse(dumps(config), str(path))
    if again.kernels != config.kernels or again.metadata != config.metadata or again.notes != config.notes:
        raise AutoconfigError(path, 0, "metadata or notes do not fit on comment lines of their own")
    try:
        write_atomically(path, dumps(config).encode())
    except OSError as error:
        raise AutoconfigError(path, 0, f"cannot be written: {error.strerror}") from error


def _ranges(numbers: Iterable[int]) -> str:
    """`0-12, 20`, for messages."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs) or "none"
