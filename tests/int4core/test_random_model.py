"""Random models have the published form, and factors that keep activations alive without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from int4core.engine import Engine
from int4core.errors import ModelError
from int4core.layers import Conv2d, Quantize, Sequential, walk
from int4core.model import Model
from int4core.network import default_input_size
from int4core.random_model import random_model
from tests.paths import SHARED, needs_shared


@needs_shared
def test_resnet50_has_the_published_layer_files_but_for_their_data(tmp_path: Path) -> None:
    published = SHARED / "model-v0.5" / "model"
    random_model(blocks=(3, 4, 6, 3), width=64, classes=1000).save(tmp_path / "model")
    ours = sorted(p.relative_to(tmp_path / "model") for p in (tmp_path / "model").rglob("*"))
    assert ours == sorted(p.relative_to(published) for p in published.rglob("*"))
    for name in ours:
        a, b = tmp_path / "model" / name, published / name
        if name.parts[0] == "npdata":
            assert a.is_dir() or a.stat().st_size == b.stat().st_size
            continue
        # Weights decide max_requant; the shift of an s8 residual varies from 0 to 10 in the published model.
        free = ["max_requant", "shift_bits"] if str(name).endswith("downsample_2") else ["max_requant"]
        for ours_line, theirs in zip(a.read_bytes().split(b"\n"), b.read_bytes().split(b"\n"), strict=True):
            assert ours_line == theirs or ours_line.split(b"=")[0].decode() in free


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    def weights(seed: int) -> list[bytes]:
        network = random_model(width=4, seed=seed).network
        return [layer.weight.tobytes() for layer in walk(network) if isinstance(layer, Conv2d)]

    assert weights(1) == weights(1)
    assert all(a != b for a, b in zip(weights(1), weights(2), strict=True))


@pytest.mark.parametrize(("pool", "side"), [(1, 32), (2, 64), (7, 224)])
def test_pool_decides_the_input_size(pool: int, side: int) -> None:
    assert default_input_size(random_model(width=2, pool=pool).network) == (side, side)


def test_depths_and_widths_of_the_family() -> None:
    network = random_model(blocks=(3, 4, 23, 3), width=4, stem_channels=6, classes=11).network
    assert len(network.blocks) == 33
    assert (network.conv1.out_channels, network.classes, network.fc.in_features) == (6, 11, 4 * 8 * 4)
    kinds = [type(block.downsample) for block in network.blocks]
    assert [i for i, kind in enumerate(kinds) if kind is Sequential] == [0, 3, 7, 30]


@pytest.mark.parametrize("sizes", [{"width": 0}, {"classes": 0}, {"pool": 0}, {"blocks": (1, 0, 1, 1)}, {"pool": 256}])
def test_impossible_sizes_are_errors(sizes: dict[str, Any]) -> None:
    with pytest.raises((ModelError, ValueError)):
        random_model(**sizes)


def test_stages_are_four() -> None:
    with pytest.raises(ValueError, match="four stages"):
        random_model(blocks=(1, 1, 1))


@pytest.mark.parametrize(("blocks", "width"), [((1, 1, 1, 1), 16), ((2, 3, 3, 2), 8)])
def test_activations_neither_die_nor_saturate(blocks: tuple[int, ...], width: int) -> None:
    model = random_model(blocks=blocks, width=width, pool=2)
    # Images are smooth: coarse noise, enlarged, plus a little fine noise.
    random = np.random.default_rng(0)
    coarse = random.normal(0, 44, (4, 3, 8, 8)).repeat(8, axis=2).repeat(8, axis=3)
    x = np.clip(np.rint(coarse + random.normal(0, 20, coarse.shape)), -127, 127).astype(np.int8)
    with Engine(model, batch_size=4) as engine:
        trace = engine.trace(x)
        logits = engine.logits(x)
    checked = 0
    for layer in walk(model.network):
        if not isinstance(layer, Quantize) or "downsample" in layer.name:
            continue
        values, top = trace[layer.name], 127 if layer.output_bits == 7 else 15
        assert 0.3 < np.mean(values == 0) < 0.7, layer.name
        assert np.mean(values == top) < 0.12, layer.name
        assert len(np.unique(values)) > 0.9 * top, layer.name
        assert np.mean(values.max(axis=(0, 2, 3)) == 0) < 0.1, layer.name
        checked += 1
    assert checked == 1 + 3 * sum(blocks)
    for name, values in trace.items():
        if name.endswith("downsample_1"):
            assert 5 < values.std() < 60
            assert np.mean(np.abs(values) >= 127) < 0.12
    assert logits.std(axis=0).min() > 0.05, "images give different logits"


def test_biases_and_factors_use_their_types_well() -> None:
    for layer in walk(random_model(blocks=(2, 2, 2, 2), width=32).network):
        if isinstance(layer, Quantize):
            assert layer.max_requant == layer.requant_factor.max() < 65535
            assert layer.requant_factor.min() >= 8
        if isinstance(layer, Conv2d):
            assert 0 < np.abs(layer.bias.astype(int)).max() < 32767
            limits = (-128, 127) if layer.weight_dtype == "s8" else (-8, 7)
            assert (layer.weight.min(), layer.weight.max()) == limits


def test_a_random_model_is_a_model_without_a_path() -> None:
    model = random_model(width=2)
    assert isinstance(model, Model)
    assert model.path is None
