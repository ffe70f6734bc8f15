"""Samples equal torchvision's on Pillow, for every kind of image; a bad file is an ImageError."""

from __future__ import annotations

import io
import os
import random
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.loader import reference_crop, reference_sample
from int4core.preprocess import MEAN, STD, Side, crop_offset, quantize_table, resize_and_crop, resized_size
from pipeline.errors import ImageError
from pipeline.samples.preprocess import Preprocessor
from tests.paths import SHARED, needs_shared

SAMPLES = SHARED / "imagenet" / "sample200"


def picture(width: int, height: int, mode: str = "RGB", seed: int = 1) -> Image.Image:
    """Smooth colour with noise on top, so that both rounding and single pixels matter."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    small = Image.frombytes("RGBA", (7, 5), coarse.tobytes())
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    noise = rng.integers(-20, 21, (height, width, 4))
    pixels = np.clip(smooth.astype(int) + noise, 0, 255).astype(np.uint8)[..., :bands]
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def decoded(path: Path, size: int = 224, resize: int | None = 256) -> np.ndarray[Any, Any]:
    out = np.full((3, size, size), 99, dtype=np.int8)
    Preprocessor(size, resize).decode_into(path, out)
    return out


def why(path: Path, size: int = 224, resize: int | None = 256) -> str:
    """The reason why `path` is no sample; the slot must be as it was."""
    out = np.full((3, size, size), 99, dtype=np.int8)
    with pytest.raises(ImageError) as caught:
        Preprocessor(size, resize).decode_into(path, out)
    assert (out == 99).all()
    assert caught.value.path == str(path)
    return caught.value.why


# The table


def test_the_table_does_not_depend_on_the_precision() -> None:
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        for value in range(256):
            exact = (Fraction(value, 255) - Fraction(str(mean))) / Fraction(str(std)) * 127 / Fraction("2.64")
            assert abs(exact - int(exact)) != Fraction(1, 2)
            assert abs(float(abs(exact) % 1) - 0.5) > 5e-5  # ten times what float32 errs by here
            assert quantize_table()[channel, value] == round(exact)


def test_the_table_spans_int8_without_being_clipped() -> None:
    table = quantize_table()
    assert table.shape == (3, 256)
    assert table.dtype == np.int8
    assert (np.diff(table.astype(int), axis=1) >= 0).all()
    assert table.max() == 127
    assert table.min() >= -127


# Equality, mode by mode

Save = Callable[[Path], None]


def _palette(path: Path, **options: Any) -> None:
    picture(300, 260).quantize(64).save(path, "PNG", **options)


def _exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    picture(320, 280).save(path, "JPEG", exif=exif)


def _sixteen_bit_colour(path: Path) -> None:
    """Pillow does not write it: Netpbm's form is a header and big-endian numbers, and nothing looks at the name."""
    values = np.random.default_rng(4).integers(0, 65536, (270, 330, 3)).astype(">u2")
    path.write_bytes(b"P6 330 270 65535\n" + values.tobytes())


def _with_transparent_colour(path: Path) -> None:
    picture(300, 290).save(path, "PNG", transparency=(1, 2, 3))


KINDS: dict[str, Save] = {
    "rgb.jpg": lambda p: picture(400, 300).save(p, quality=90),
    "rgb_444.jpg": lambda p: picture(401, 299).save(p, quality=95, subsampling=0),
    "rgb_422.jpg": lambda p: picture(399, 301).save(p, quality=85, subsampling=1),
    "grey.jpg": lambda p: picture(400, 300, "L").save(p),
    "cmyk.jpg": lambda p: picture(300, 400, "CMYK").save(p, "JPEG"),
    "lab.tiff": lambda p: picture(310, 300, "LAB").save(p),
    "progressive.jpg": lambda p: picture(500, 375).save(p, progressive=True),
    "restart.jpg": lambda p: picture(500, 375).save(p, restart_marker_blocks=4),
    "exif_rotated.jpg": _exif_rotated,
    "png_named.JPEG": lambda p: picture(300, 333).save(p, "PNG"),
    "palette.png": _palette,
    "palette_transparent.png": lambda p: _palette(p, transparency=3),
    "palette_transparency_bytes.png": lambda p: _palette(p, transparency=bytes(range(64))),
    "rgb_transparent_colour.png": _with_transparent_colour,
    "one_bit.png": lambda p: picture(300, 280, "L").convert("1").save(p),
    "grey_alpha.png": lambda p: picture(280, 300, "LA").save(p),
    "rgba.png": lambda p: picture(280, 300, "RGBA").save(p),
    "sixteen_bit_colour.ppm": _sixteen_bit_colour,
    "portable.ppm": lambda p: picture(290, 300).save(p),
    "bitmap.bmp": lambda p: picture(260, 300).save(p),
    "animation.gif": lambda p: picture(300, 260).save(p, save_all=True, append_images=[picture(300, 260, seed=2)]),
    "lossless.webp": lambda p: picture(270, 280, "RGBA").save(p, lossless=True),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("resize", [256, None])
def test_every_kind_of_image_equals_the_reference(name: str, resize: int | None, tmp_path: Path) -> None:
    path = tmp_path / name
    KINDS[name](path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference_sample(path, resize=resize)
    assert np.unique(expected).size > 1
    np.testing.assert_array_equal(decoded(path, resize=resize), expected)


def test_kinds_are_what_they_are_called(tmp_path: Path) -> None:
    modes = {
        "grey.jpg": "L", "cmyk.jpg": "CMYK", "palette.png": "P", "grey_alpha.png": "LA", "rgba.png": "RGBA",
        "one_bit.png": "1", "lab.tiff": "LAB",
    }  # fmt: skip
    for name, mode in modes.items():
        KINDS[name](tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.mode == mode, name
    KINDS["png_named.JPEG"](tmp_path / "png_named.JPEG")
    with Image.open(tmp_path / "png_named.JPEG") as image:
        assert image.format == "PNG"


# Equality, size by size


def same_as_whole(image: Image.Image, short_side: int, size: int, tmp: Path) -> None:
    """Resizing what the crop keeps, against resizing the whole and cropping it."""
    path = tmp / "image.bmp"
    image.save(path)
    kept = resize_and_crop(image, short_side, size)
    assert kept.size == (size, size)
    np.testing.assert_array_equal(np.asarray(kept), np.asarray(reference_crop(path, size, short_side)))


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (256, 256), (224, 224), (255, 256), (256, 255), (257, 256), (500, 375), (375, 500), (640, 480),
        (400, 267), (320, 240), (267, 400), (500, 333), (333, 500), (1, 1), (2, 3), (3, 2), (7, 400),
        (400, 7), (1200, 300), (300, 1200), (256, 2000), (2000, 256), (1024, 1024), (511, 513), (120, 90),
    ],
)  # fmt: skip
def test_every_shape_equals_the_reference(width: int, height: int, tmp_path: Path) -> None:
    same_as_whole(picture(width, height), 256, 224, tmp_path)


def test_random_sizes_equal_the_reference(tmp_path: Path) -> None:
    rng = random.Random(11)
    for seed in range(150):
        width, height = int(2 ** rng.uniform(3, 9.6)), int(2 ** rng.uniform(3, 9.6))
        same_as_whole(picture(width, height, seed=seed), 256, 224, tmp_path)


@settings(max_examples=80, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), size=st.integers(1, 70), more=st.integers(0, 30))
def test_other_crops_equal_the_reference(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, size: int, more: int
) -> None:
    image = picture(width, height, seed=width + 200 * height)
    same_as_whole(image, size + more, size, tmp_path_factory.getbasetemp())


def test_the_sides_that_box_exactly_are_those_with_a_power_of_two_below_the_line() -> None:
    assert Side(375, 256, 16, 224).boxes_exactly
    assert Side(300, 150, 10, 100).boxes_exactly
    assert not Side(500, 341, 58, 224).boxes_exactly
    assert not Side(70_001, 256, 16, 224).boxes_exactly  # 25 bits would not fit in a float32
    for old in range(1, 3000, 7):
        side = Side(old, 256, 16, 224)
        assert [float(np.float32(edge)) for edge in side.box] == [Fraction(old, 16), Fraction(old * 15, 16)]


def test_the_long_side_rounds_down_and_the_crop_offset_half_to_even() -> None:
    assert resized_size(500, 375, 256) == (341, 256)
    assert resized_size(375, 500, 256) == (256, 341)
    assert resized_size(300, 300, 256) == (256, 256)
    assert [crop_offset(n, 224) for n in (224, 225, 226, 227, 341)] == [0, 0, 1, 2, 58]


def test_sized_images_are_only_cropped(tmp_path: Path) -> None:
    path = tmp_path / "sized.png"
    image = picture(227, 231)
    image.save(path)
    pixels = np.asarray(image)[4:228, 2:226].transpose(2, 0, 1)
    expected = np.stack([quantize_table()[c][pixels[c]] for c in range(3)])
    np.testing.assert_array_equal(decoded(path, resize=None), expected)


# Real images


@needs_shared
def test_the_sample_images_equal_the_reference() -> None:
    paths = sorted(SAMPLES.glob("*.JPEG"))
    assert len(paths) == 200
    for path in paths:
        assert np.array_equal(decoded(path), reference_sample(path)), path.name


@needs_shared
def test_the_golden_samples_are_equal() -> None:
    with np.load(SHARED / "golden" / "inputs8.npz") as golden:
        files, expected = golden["files"], golden["x"]
    for name, sample in zip(files, expected, strict=True):
        np.testing.assert_array_equal(decoded(SAMPLES / str(name)), sample)


# Bad files


@pytest.mark.parametrize("name", ["rgb.jpg", "progressive.jpg", "grey.jpg", "restart.jpg"])
def test_a_jpeg_that_is_cut_short_is_an_error_wherever_the_cut_is(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    path = tmp_path / "cut.jpg"
    for length in [*range(1, len(whole) - 1, len(whole) // 40), len(whole) - 3, len(whole) - 2]:
        path.write_bytes(whole[:length])
        assert why(path)


@pytest.mark.parametrize("name", ["palette.png", "rgba.png", "bitmap.bmp", "animation.gif", "lossless.webp"])
def test_other_files_that_are_cut_short_are_errors(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    path = tmp_path / "cut"
    first_frame = len(whole) if name != "animation.gif" else len(whole) // 2
    for part in (0.05, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(part * first_frame)])
        assert why(path)


def test_a_jpeg_whose_end_was_never_written_is_an_error(tmp_path: Path) -> None:
    KINDS["rgb.jpg"](tmp_path / "rgb.jpg")
    whole = (tmp_path / "rgb.jpg").read_bytes()
    path = tmp_path / "zeros.jpg"
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    assert why(path)


def test_reasons_say_what_is_wrong(tmp_path: Path) -> None:
    assert why(tmp_path / "none.jpg") == "there is no such file"
    assert why(tmp_path) == "it is a folder, not a file"
    (tmp_path / "empty.jpg").touch()
    assert why(tmp_path / "empty.jpg") == "the file is empty"
    (tmp_path / "text.jpg").write_text("not an image at all")
    assert why(tmp_path / "text.jpg").startswith("not an image")
    (tmp_path / "zeros.jpg").write_bytes(bytes(5000))
    assert why(tmp_path / "zeros.jpg").startswith("not an image")
    assert why(Path("a\0b.jpg")).startswith("not a file name")


def test_noise_in_a_jpeg_never_escapes_as_another_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(80, 60).save(buffer, "JPEG")
    rng = random.Random(3)
    path = tmp_path / "noise.jpg"
    preprocessor, out = Preprocessor(), np.empty((3, 224, 224), dtype=np.int8)
    refused = 0
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for _ in range(8):
            data[rng.randrange(2, len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            preprocessor.decode_into(path, out)
        except ImageError:
            refused += 1
    assert refused > 10


def test_no_permission_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jpg"
    picture(300, 300).save(path)

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    if os.geteuid() == 0:  # root may read anything
        monkeypatch.setattr("os.open", refuse)
    else:
        path.chmod(0)
    assert why(path) == "no permission to read it"


def test_a_sized_image_that_is_too_small_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "small.png"
    picture(300, 223).save(path)
    assert why(path, resize=None) == "300 x 223 pixels; without resizing it takes 224 x 224 or more"


@pytest.mark.parametrize(("width", "height"), [(20_000, 10), (10, 20_000)])
def test_a_thin_image_equals_the_reference(width: int, height: int, tmp_path: Path) -> None:
    path = tmp_path / "thin.png"
    picture(width, height).save(path)
    sample = decoded(path)
    assert np.unique(sample).size > 100
    np.testing.assert_array_equal(sample, reference_sample(path))


def test_an_image_as_thin_as_a_thread_is_read_where_its_crop_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "thread.png"
    Image.new("L", (1, 30_000), 255).save(path)  # resized as a whole, it would take 7.9 GB
    assert (decoded(path) == quantize_table()[:, 255, None, None]).all()


def test_a_longer_thread_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "thread.png"
    Image.new("L", (1, 70_001)).save(path)  # too long for its crop to be said in a float32
    assert why(path).startswith("1 x 70001 pixels are too thin: resizing them takes about 16,057 MB, more than the ")


def test_the_slot_must_be_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    picture(300, 300).save(path)
    slots: list[np.ndarray[Any, Any]] = [
        np.empty((3, 224, 224), dtype=np.uint8),
        np.empty((3, 224, 225), dtype=np.int8),
        np.empty((224, 224, 3), dtype=np.int8).transpose(2, 0, 1),
    ]
    for out in slots:
        with pytest.raises(ValueError, match="C-contiguous int8"):
            Preprocessor().decode_into(path, out)


def test_a_crop_larger_than_the_resized_image_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot crop 224"):
        Preprocessor(size=224, resize=200)
