"""The Decoder: every file's pixels, or Pillow's error; chunks, memory, and what goes to Pillow and why.

On a CPU its kernels are emulated; on a GPU the same tests run on it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from functools import partialmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.jpeg import Decoder
from pipeline.jpeg.plan import DAMAGE, Sampling
from pipeline.jpeg.workspace import FIXED_BYTES, Workspace
from pipeline.samples.images import ImageRules
from pipeline.samples.preprocess import Preprocessor
from tests.kernels.emulator.driver import needs_compiler
from tests.pipeline.jpeg.emulated import POISON, EmulatedDevice
from tests.pipeline.jpeg.test_damage import scan_of, whole
from tests.pipeline.jpeg.test_kernels import encoded, pillow_rgb, saved

SIZE, RESIZE = 32, 40
DAMAGED = "damaged"


class Host:
    """What differs between the emulated device and a GPU: arrays."""

    def __init__(self, cupy: Any, device: Any) -> None:
        self.cupy, self.device = cupy, device

    def samples(self, count: int, size: int = SIZE) -> Any:
        return (self.cupy or np).full((count, 3, size, size), 99, np.int8)

    def numpy(self, array: Any) -> npt.NDArray[Any]:
        return array.get() if self.cupy else array


@pytest.fixture(
    scope="module", params=[pytest.param("emulated", marks=needs_compiler), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def host(request: pytest.FixtureRequest) -> Host:
    if request.param == "gpu":
        return Host(request.getfixturevalue("cupy"), 0)
    return Host(None, EmulatedDevice(request.getfixturevalue("folder")))


@pytest.fixture(scope="module")
def decoder(host: Host) -> Decoder:
    return Decoder(host.device, 16, size=SIZE, resize=RESIZE, streams=2)


def pillow(data: bytes, size: int = SIZE, resize: int | None = RESIZE) -> npt.NDArray[np.int8] | str:
    out = np.empty((3, size, size), np.int8)
    try:
        Preprocessor(size, resize).decode_bytes(data, "x", out)
    except ImageError as error:
        return error.why
    return out


def expect_samples(decoder: Decoder, host: Host, files: Sequence[bytes]) -> None:
    sampling = decoder.sampling
    out = host.samples(len(files), sampling.size)
    errors = decoder.samples(files, out)
    for data, error, sample in zip(files, errors, host.numpy(out), strict=True):
        expected = pillow(data, sampling.size, sampling.resize)
        if isinstance(expected, str):
            assert error is not None
            assert error.why == expected
            assert (sample == 99).all()
        else:
            assert error is None
            np.testing.assert_array_equal(sample, expected)


def reasons(decoder: Decoder) -> list[str | None]:
    """Of the last call; which sign of damage shows first depends on what lies behind a scan."""
    return [DAMAGED if reason in DAMAGE.values() else reason for reason in decoder.reasons]


def mixed() -> dict[str, tuple[bytes, str | None]]:
    """Files of all fates: content, and why Pillow decodes them."""
    rng = np.random.default_rng(0)
    png, progressive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(png, "PNG")
    Image.new("RGB", (50, 40), "blue").save(progressive, "JPEG", progressive=True)
    good = whole()
    middle = (scan_of(good) + len(good)) // 2
    return {
        "saved": (saved(rng, 50), None),
        "4:1:1": (encoded(rng, 5), None),
        "png": (png.getvalue(), "not a JPEG file"),
        "progressive": (progressive.getvalue(), "progressive"),
        "empty": (b"", "not a JPEG file"),
        "cut": (good[:middle], "no end marker at the end of the file"),
        "cut, with an end": (good[:middle] + b"\xff\xd9", DAMAGED),
        "marker": (good[:middle] + b"\xff\xc4" + good[middle:], DAMAGED),
        "trailing": (good + b"more", "no end marker at the end of the file"),
        "noise": (rng.bytes(500), "not a JPEG file"),
        "restarts": (whole(restart=2), None),
        "good": (good, None),
    }


def test_every_file_is_as_pillow_has_it(decoder: Decoder, host: Host) -> None:
    files = mixed()
    expect_samples(decoder, host, [data for data, _ in files.values()])
    assert dict(zip(files, reasons(decoder), strict=True)) == {name: reason for name, (_, reason) in files.items()}


def test_pixels(decoder: Decoder, host: Host) -> None:
    files = mixed()
    images = decoder.rgb([data for data, _ in files.values()], list(files))
    assert dict(zip(files, reasons(decoder), strict=True)) == {name: reason for name, (_, reason) in files.items()}
    for (name, (data, _)), image in zip(files.items(), images, strict=True):
        try:
            expected = pillow_rgb(data)
        except Exception:
            assert isinstance(image, ImageError)
            assert image.path == name
        else:
            np.testing.assert_array_equal(host.numpy(image), expected)
    assert sum(isinstance(image, ImageError) for image in images) > 3


def test_more_files_than_are_under_way_at_a_time(decoder: Decoder, host: Host) -> None:
    """Chunks of 8 on 2 streams, memory used again, damaged ones among them."""
    rng = np.random.default_rng(1)
    files = [saved(rng, number, 60) for number in range(60)]
    for number in range(5, 60, 7):
        files[number] = files[number][:-20] + b"\xff\xd9"
    order = rng.permutation(60)
    expect_samples(decoder, host, [files[i] for i in order])
    assert 0 < sum(reason is not None for reason in decoder.reasons) < 12


def test_any_buffer_will_do(decoder: Decoder, host: Host) -> None:
    data = whole()
    out = host.samples(3)
    assert decoder.samples([bytearray(data), memoryview(data), np.frombuffer(data, np.uint16).data], out) == [None] * 3
    assert decoder.reasons == (None, None, None)
    for sample in host.numpy(out):
        np.testing.assert_array_equal(sample, pillow(data))


def test_nothing(decoder: Decoder, host: Host) -> None:
    assert decoder.samples([], host.samples(0)) == []
    assert decoder.rgb([]) == []
    assert decoder.reasons == ()


def test_files_that_take_more_memory_than_there_is(host: Host) -> None:
    memory = 2 * (4 * FIXED_BYTES + (2 << 20) + 64)
    decoder = Decoder(host.device, 8, size=SIZE, resize=RESIZE, streams=2, memory_bytes=memory)
    rng = np.random.default_rng(2)
    large = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (600, 600, 3), np.uint8)).save(large, "JPEG", quality=95)
    expect_samples(decoder, host, [whole(), large.getvalue(), *[whole(size=200)] * 6])
    assert decoder.reasons == (None, "more device memory than the decoder has", *[None] * 6)


def test_what_the_rules_refuse_pillow_refuses(host: Host) -> None:
    rules = ImageRules(max_pixels=4000)
    decoder = Decoder(host.device, 4, size=SIZE, resize=RESIZE, streams=1, rules=rules)
    errors = decoder.samples([whole(size=72), whole(size=40)], host.samples(2), ["large", "small"])
    assert decoder.reasons == ("too large", None)
    assert str(errors[0]) == "large: 72 x 72 is more than --max-pixels 4000"
    thin = Image.new("RGB", (3000, 1))
    file = io.BytesIO()
    thin.save(file, "JPEG")
    errors = decoder.samples([file.getvalue()], host.samples(1))
    assert decoder.reasons == ("too thin",)
    assert "too thin" in str(errors[0])


def test_images_that_are_not_resized(host: Host) -> None:
    decoder = Decoder(host.device, 4, size=30, resize=None, streams=1)
    expect_samples(decoder, host, [whole(size=30), whole(size=29), whole(size=65)])
    assert decoder.reasons == (None, "smaller than a sample", None)


def test_filters_of_warnings_stay_what_they_were(decoder: Decoder, host: Host) -> None:
    before = list(warnings.filters)
    decoder.samples([whole()[:-9] + b"\xff\xd9"] * 12, host.samples(12))
    assert warnings.filters == before


def test_wrong_outputs_are_refused(decoder: Decoder, host: Host) -> None:
    out = host.samples(2)
    for wrong in (out[:1], out.view(np.uint8), out.transpose(0, 1, 3, 2)):
        with pytest.raises(ValueError, match="C-contiguous int8 array"):
            decoder.samples([whole()] * 2, wrong)


def test_kernels_that_are_not_needed_are_not_launched(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    if host.cupy:
        pytest.skip("of the emulated device")
    device = host.device
    device.launched.clear()
    said: list[str] = []
    monkeypatch.setattr(Workspace, "enqueue", partialmethod(Workspace.enqueue, launched=said.append))
    decoder = Decoder(device, 4, size=SIZE, resize=RESIZE, streams=1)
    decoder.samples([whole()], host.samples(1))
    kernels = ["jpeg_unstuff", "jpeg_entropy", "jpeg_idct", "jpeg_taps", "jpeg_resize"]
    assert [name.split("(")[0] for name in device.launched] == kernels
    assert said == kernels
    assert Sampling(SIZE, RESIZE).fusible
    assert POISON not in (0, 99)


def test_its_memory_is_written_after_whoever_had_it_before(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller has under way may be in memory that is free since."""
    if host.cupy:
        pytest.skip("of the emulated device")
    calls: list[str] = []
    for name in ("begin", "upload"):
        real = getattr(EmulatedDevice, name)
        noted = lambda *args, name=name, real=real: (calls.append(name), real(*args))  # noqa: E731
        monkeypatch.setattr(EmulatedDevice, name, noted)
    Decoder(host.device, 4, size=SIZE, resize=RESIZE, streams=1)
    assert calls == ["begin", "upload"]


def fail(*_: object) -> None:
    raise MemoryError("no more")


def test_a_call_that_fails_leaves_the_decoder_as_it_was(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(host.device, 4, size=SIZE, resize=RESIZE, streams=2)
    whole_file = whole()

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "upload", fail)
        with pytest.raises(MemoryError, match="no more"):
            decoder.samples([whole_file] * 9, host.samples(9))
    expect_samples(decoder, host, [whole_file] * 9)
    assert decoder.reasons == (None,) * 9


def test_a_call_that_fails_on_the_host_gives_every_stream_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk that is under way then has a file that Pillow would decode, and cannot."""
    decoder = Decoder(host.device, 3, size=SIZE, resize=RESIZE, streams=3, memory_bytes=9 << 20)
    damaged = whole()[:-9] + b"\xff\xd9"

    with monkeypatch.context() as patched:
        patched.setattr(Preprocessor, "decode_bytes", fail)
        with pytest.raises(MemoryError, match="no more"):
            decoder.samples([damaged] * 4, host.samples(4))
    assert len(decoder._idle) == 3
    expect_samples(decoder, host, [whole()] * 9)


def test_a_call_that_fails_waits_for_all_that_it_began(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU writes to what is the caller's."""
    decoder = Decoder(host.device, 4, size=SIZE, resize=RESIZE, streams=2)
    enqueue, finish = Workspace.enqueue, Workspace.finish
    under_way: list[Workspace] = []

    def half(workspace: Workspace, *args: Any, **options: Any) -> None:
        under_way.append(workspace)
        enqueue(workspace, *args, **options)
        if len(under_way) == 2:
            raise MemoryError("no more")

    def finished(workspace: Workspace) -> Any:
        under_way.remove(workspace)
        return finish(workspace)

    monkeypatch.setattr(Workspace, "enqueue", half)
    monkeypatch.setattr(Workspace, "finish", finished)
    with pytest.raises(MemoryError, match="no more"):
        decoder.samples([whole()] * 9, host.samples(9))
    assert not under_way
