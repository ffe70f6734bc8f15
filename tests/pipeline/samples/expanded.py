"""Files to name, and what of them is found, left out and failed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ImageError, PipelineError
from pipeline.samples.expand import expand
from pipeline.samples.left_out import LeftOut
from pipeline.samples.reader import Reader
from pipeline.samples.sources import FailedLocator, Source


def touch(*names: str) -> None:
    for name in names:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        Path(name).write_bytes(os.fsencode(name))


def keys(*arguments: str, **options: Any) -> list[str]:
    return [source.key for source in expand(arguments, **options)]


def left_out(*arguments: str, **options: Any) -> str:
    left = LeftOut()
    list(expand(arguments, left_out=left, **options))
    return left.line()


def error(*arguments: str, **options: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        expand(arguments, **options)
    return str(caught.value)


def failures(sources: Iterable[Source]) -> dict[str, str]:
    return {s.key: s.locator.why for s in sources if isinstance(s.locator, FailedLocator)}


def write_tar(path: str, members: dict[str, bytes], **options: Any) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read_all(sources: Iterable[Source]) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    with Reader(1 << 20) as reader:
        for source in sources:
            try:
                found[source.key] = reader.read(source.locator)
            except ImageError as caught:
                found[source.key] = caught.why
    return found
