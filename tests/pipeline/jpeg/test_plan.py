"""Plans: taps and windows hold what the kernels read, and chunks what fits."""

from __future__ import annotations

import numpy as np
import pytest

from int4core.preprocess import crop_offset, resized_size
from pipeline.jpeg.parse import HEADER, Headers
from pipeline.jpeg.plan import IMAGE, Plan, Sampling, chunks, fitting, place

SIDES = np.random.default_rng(0).integers(1, 1500, (600, 2))


def headers(sizes: np.ndarray, h: int = 2, v: int = 2, scan_bytes: int = 5000) -> Headers:
    records = np.zeros(len(sizes), HEADER)
    records["width"], records["height"] = sizes.T
    records["components"], records["h"], records["v"] = 3, h, v
    records["ac_table"], records["scan_bytes"] = 2, scan_bytes
    records["counts"][:, :, 1] = 1
    return records


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(32, 40), Sampling(30, 257), Sampling(1, None)])
def test_axes_are_preprocessors_and_hold_pillows_taps(sampling: Sampling) -> None:
    images = Plan.of(headers(np.concatenate([SIDES, [[27, 42]]])), sampling, 32).images
    widest = 0
    for image in images:
        width, height = int(image["header"]["width"]), int(image["header"]["height"])
        new = resized_size(width, height, sampling.resize) if sampling.resize else (width, height)
        for axis, old_side, new_side in ((image["x"], width, new[0]), (image["y"], height, new[1])):
            assert (axis["old_size"], axis["new_size"]) == (old_side, new_side)
            assert axis["offset"] == crop_offset(new_side, sampling.size)
            scale = old_side / new_side
            support = max(scale, 1.0)
            first = old_side
            last = 0
            for i in range(sampling.size):
                centre = (axis["offset"] + i + 0.5) * scale
                begin, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), old_side)
                assert end - begin <= axis["most_taps"], (width, height, i)
                first, last = min(first, begin), max(last, end)
                widest = max(widest, end - begin)
            assert (axis["begin"], axis["end"]) == (first, last)
    assert widest >= 2


@pytest.mark.parametrize(("h", "v"), [(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)])
def test_windows_hold_what_is_read(h: int, v: int) -> None:
    for sampling in (Sampling(), None):
        images = Plan.of(headers(SIDES, h, v), sampling, 32).images
        for axis, factor, first, count, side in (
            (images["x"], h, "first_column", "columns", "width"), (images["y"], v, "first_row", "rows", "height"),
        ):  # fmt: skip
            for component, shrink in ((0, 1), (1, factor), (2, factor)):
                window = images["windows"][:, component]
                length = -(-images["header"][side].astype(int) // shrink)
                assert (window[side] == length).all()
                begin, end = window[first] * 8, (window[first] + window[count]) * 8
                neighbours = shrink > 1
                low = np.maximum(axis["begin"] // 4 * 4 // shrink - neighbours, 0)
                high = np.minimum((axis["end"] - 1) // shrink + neighbours, length - 1)
                assert (begin <= low).all()
                assert (end > high).all()
                assert (end <= -(-length // 8) * 8).all()


def test_chunks_hold_what_fits() -> None:
    sizes = np.array([5, 5, 5, 1, 1, 1, 1, 10, 3])
    assert list(chunks(sizes, 10, 3)) == [slice(0, 2), slice(2, 5), slice(5, 7), slice(7, 8), slice(8, 9)]
    assert list(chunks(sizes[:0], 10, 3)) == []


def test_an_image_that_does_not_fit_takes_no_room_from_others() -> None:
    assert fitting(np.array([11, 4, 7, 6]), 10).tolist() == [False, True, False, True]
    assert fitting(np.array([4, 6]), 10).tolist() == [True, True]
    assert fitting(np.array([], np.int64), 10).tolist() == []


def test_parts_lie_side_by_side_aligned() -> None:
    plan = Plan.of(headers(SIDES[:20], scan_bytes=12345), Sampling(), 32)
    end = place(plan.images, plan.sizes, 1 << 20)
    assert end == (1 << 20) + plan.bytes_each.sum()
    spans = [(plan.images[name], plan.sizes[name]) for name in ("stream", "arena", "lane_first", "lane_dc", "passes")]
    spans += [(plan.images["windows"][:, i]["plane"], plan.sizes[f"plane{i}"]) for i in range(3)]
    spans += [(plan.images[axis]["taps"], plan.sizes[f"{axis}_taps"]) for axis in "xy"]
    spans.append((plan.images["intervals"], plan.sizes["intervals"]))
    begins, sizes = (np.concatenate(part).astype(np.int64) for part in zip(*spans, strict=True))
    order = np.argsort(begins, kind="stable")
    assert (begins % 16 == 0).all()
    assert (begins[order][1:] >= (begins + sizes)[order][:-1]).all()
    assert plan.images.dtype == IMAGE
    assert (plan.images["lane_bits"].astype(int) * plan.images["lanes"] >= 12345 * 8).all()
