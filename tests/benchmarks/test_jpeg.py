"""What others make of the same files."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.jpeg import nvimagecodec


class FakeDecoder:
    """nvImageCodec's, by Pillow: what is no JPEG becomes None."""

    def decode(self, files: list[bytes], params: object) -> list[Any]:
        return [self._one(file) if file.startswith(b"\xff\xd8") else None for file in files]

    def _one(self, file: bytes) -> Any:
        pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        return SimpleNamespace(cpu=lambda: pixels)


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (value, 9, 200)).save(file, "JPEG")
    return file.getvalue()


def test_a_file_that_nvimagecodec_does_not_decode_may_be_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(Decoder=FakeDecoder, DecodeParams=lambda **_: None, CodeStream=lambda file: file)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", module)
    load: Any = SimpleNamespace(files=[jpeg(1), jpeg(2), b"not a JPEG"], numbers=np.arange(3))
    other = nvimagecodec(load, 3)
    assert (other.exact, other.largest) == (2, 0)
    assert other.rate > 0
