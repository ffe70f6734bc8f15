"""The typed network -> a model folder, replaced as a whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from int4core.errors import ModelError
from int4core.exchange import exchange
from int4core.format.files import MODEL, TEXT_LIMIT, beside
from int4core.format.npdata import pack
from int4core.format.schema import KINDS, SCHEMA, Declared, Tensor
from int4core.format.text import LINE_END
from int4core.layers import ResNet, walk
from int4core.validate import check_network

DATA_FOLDER = "npdata"

_ATTEMPTS = 10
_BETWEEN_RENAMES_S = 0.01

BUSY = "other processes keep writing this folder"


def write_network(network: ResNet, path: str | os.PathLike[str]) -> None:
    """Write `network` to the folder `path`, which appears, or replaces an older model, in one step.

    A model folder that is there already is replaced: its layer files and all of `npdata/` go, other files
    of it (a README, say) stay. Data paths always begin with `model/`, whatever the folder is called.

    Raises ModelError: the network breaks a rule (`file` is then the layer's name); `path` holds something
    that is neither a model nor an empty folder; the folder cannot be written.
    """
    check_network(network)
    target = Path(os.path.realpath(path))
    try:
        _expect_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = _sibling(target, "new")
        try:
            fresh.mkdir()
            (fresh / DATA_FOLDER).mkdir()
            for layer in (network, *walk(network)):
                _write_layer(fresh, layer)
            _link_foreign(target, fresh)
            _swap(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise ModelError(target, 0, f"the model cannot be written: {error.strerror}") from error


def digest(network: ResNet) -> str:
    """SHA-256 of the network, in hex: of the names, sizes and bytes of its files as they are written here.

    Equal for two networks exactly when they are equal in every layer and weight, wherever they were read from.
    """
    hashed = sha256()
    for layer in (network, *walk(network)):
        for name, data in _layer_files(layer):
            hashed.update(f"{name}\0{len(data)}\0".encode())
            hashed.update(data)
    return hashed.hexdigest()


def _write_layer(folder: Path, layer: Any) -> None:
    for name, data in _layer_files(layer):
        (folder / name).write_bytes(data)


def _layer_files(layer: Any) -> Iterator[tuple[str, bytes]]:
    """The files of a layer: its tensors' data, and last the text that names them."""
    kind = KINDS[type(layer)]
    name = MODEL if isinstance(layer, ResNet) else layer.name
    lines = [kind]
    for key, codec in SCHEMA[kind].items():
        value: Any = len(layer.children) if key == "children_count" else getattr(layer, key)
        if isinstance(codec, Tensor):
            dtype = layer.weight_dtype if len(codec.dtypes) > 1 else codec.dtypes[0]
            dims = (1, *value.shape, 1, 1) if key == "requant_factor" else value.shape
            yield f"{DATA_FOLDER}/{name}.{key}", pack(value, dtype)
            lines += [f"{key}={Declared(dtype, dims)}", f"!{MODEL}/{DATA_FOLDER}/{name}.{key}"]
        else:
            lines.append(f"{key}={codec.show(value)}")
    yield name, "".join(line + LINE_END for line in lines).encode("ascii")


def _expect_replaceable(target: Path) -> None:
    """Raises ModelError where something else than a model or an empty folder is in the way."""
    for _ in range(_ATTEMPTS):
        try:
            looked_at = target.lstat().st_ino
            why = _why_not_replaceable(target)
            same = target.lstat().st_ino == looked_at
        except FileNotFoundError:  # nothing is there, or another process is replacing it just now
            return
        if same:
            if why:
                raise ModelError(target, 0, why)
            return
    raise ModelError(target, 0, BUSY)


def _why_not_replaceable(target: Path) -> str:
    if not target.is_dir():
        return "is a file; name a folder to save the model in"
    if any(target.iterdir()) and _layer_type(target / MODEL) != KINDS[ResNet]:
        return "holds something that is not a model: name another folder"
    return ""


def _layer_type(file: Path) -> str | None:
    """The type a layer file declares, or None for every other file."""
    if file.is_symlink() or not file.is_file() or file.stat().st_size > TEXT_LIMIT:
        return None
    kind = file.read_bytes().split(b"\n", 1)[0].removesuffix(b"\r").decode("ascii", "replace")
    return kind if kind in SCHEMA else None


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f"{beside(target.name, role)}{secrets.token_hex(4)}")


def _swap(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`; what was there is moved aside, and removed after."""
    replaced: list[Path] = []
    for _ in range(_ATTEMPTS):
        old = _sibling(target, "old")
        with contextlib.suppress(FileNotFoundError):
            if exchange(fresh, target):
                fresh.rename(old)
                replaced.append(old)
                break
            # Whoever is killed between the two renames leaves the model in `old`, and none at its place.
            target.rename(old)
            replaced.append(old)
        try:
            fresh.rename(target)
            break
        except OSError as error:
            # Another process may have saved to the same place between the two renames: replace that too.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not os.path.lexists(target):
                if replaced:
                    replaced[-1].rename(target)
                raise
    else:
        raise ModelError(target, 0, BUSY)
    for old in replaced:
        _keep_foreign(old, target)
        shutil.rmtree(old)


def _foreign(folder: Path) -> list[Path]:
    """What is in `folder` and is not of a model."""
    return [entry for entry in folder.iterdir() if entry.name != DATA_FOLDER and _layer_type(entry) is None]


def _link_foreign(target: Path, fresh: Path) -> None:
    """Have the new model come with the files of `target` that stay. What cannot be linked, folders, is moved later."""
    with contextlib.suppress(OSError):
        for entry in _foreign(target):
            with contextlib.suppress(OSError):
                os.link(entry, fresh / entry.name, follow_symlinks=False)


def _keep_foreign(old: Path, target: Path) -> None:
    """Move what is not of a model from `old` to `target`, unless there is something of that name."""
    for entry in _foreign(old):
        _move_into(entry, target)


def _move_into(entry: Path, target: Path) -> None:
    kept = target / entry.name
    for _ in range(_ATTEMPTS):
        if os.path.lexists(kept):
            return
        try:
            entry.rename(kept)
            return
        except FileNotFoundError:  # another process that saves has moved `target` aside, and is about to replace it
            time.sleep(_BETWEEN_RENAMES_S)
    raise ModelError(target, 0, f"{BUSY}; {entry} is what is left of the one before")
