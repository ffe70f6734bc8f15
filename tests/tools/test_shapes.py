from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT
from tools.shapes import CLASSES, CROP_EXTENT, HUES, SHAPES, TEXTURES, class_name, render, split_class
from tools.shapes.__main__ import main
from tools.shapes.arrays import NUMPY, torch_backend
from tools.shapes.files import HELD_OUT, ShapesError, demo_specs, draw_specs, make, pixels
from tools.shapes.forms import distance, texture
from tools.shapes.hashing import mix, normal, uniform

DEMO = Path(__file__).resolve().parents[2] / "pipeline" / "demo"


def image(label: int, seed: int, side: int = 48) -> np.ndarray:
    return np.asarray(render(np.array([label]), np.array([seed]), side, side)[0])


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates -1.2..1.2, (1, side, side)."""
    line = np.linspace(-1.2, 1.2, side, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    return x[None], y[None]


def one(value: int) -> np.ndarray:
    return np.full((1, 1, 1), value, np.int32)


class TestClasses:
    def test_names_are_1000_different_ones(self) -> None:
        assert CLASSES == 1000 == len({class_name(i) for i in range(CLASSES)})

    def test_a_class_is_shape_then_texture_then_hue(self) -> None:
        shape, kind, hue = SHAPES.index("heart"), TEXTURES.index("dotted"), HUES.index("blue")
        label = shape * 100 + kind * 10 + hue
        assert split_class(label) == (shape, kind, hue)
        assert class_name(label) == "blue dotted heart"

    def test_the_bundled_model_has_their_names(self, tmp_path: Path) -> None:
        assert main(["classes", "--out", str(tmp_path / "classes.txt")]) == 0
        text = (tmp_path / "classes.txt").read_bytes()
        assert text.decode().splitlines() == [class_name(label) for label in range(CLASSES)]
        assert (ROOT / "model" / "classes.txt").read_bytes() == text
        assert main(["classes", "--out", str(tmp_path)]) == 1

    @pytest.mark.parametrize("label", [-1, 1000])
    def test_no_other_number_is_a_class(self, label: int) -> None:
        with pytest.raises(ValueError, match=str(label)):
            class_name(label)


class TestHash:
    def test_draws_are_uniform_and_neighbours_unrelated(self) -> None:
        u = uniform(mix(np.arange(1 << 16, dtype=np.int32)), NUMPY)
        counts = np.histogram(u, 16, (0.0, 1.0))[0]
        assert counts.min() > 3800
        assert counts.max() < 4400
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02

    def test_normal_has_mean_0_and_deviation_1(self) -> None:
        n = normal(mix(np.arange(1 << 16, dtype=np.int32)), NUMPY)
        assert abs(n.mean()) < 0.02
        assert abs(n.std() - 1.0) < 0.02

    def test_mix_loses_nothing(self) -> None:
        assert len(np.unique(mix(np.arange(-(1 << 15), 1 << 15, dtype=np.int32)))) == 1 << 16


class TestForms:
    def test_shapes_differ_and_have_a_fair_size(self) -> None:
        x, y = grid(97)
        inside = [distance(one(i), x, y, NUMPY)[0] < 0 for i in range(10)]
        square = x[0].size / 2.4**2
        for mask in inside:
            assert 0.6 < mask.sum() / square < 3.2
            assert not mask[0].any()
            assert not mask[:, 0].any()
        for i in range(10):
            for j in range(i):
                assert (inside[i] ^ inside[j]).sum() / square > 0.15, (SHAPES[i], SHAPES[j])

    def test_textures_differ_and_hold_both_colours(self) -> None:
        x, y = grid(97)
        soft = np.full((1, 1, 1), 0.1, np.float32)
        masks = [texture(one(i), 4 * x, 4 * y, soft, one(7), NUMPY)[0] for i in range(10)]
        assert np.all(masks[0] == 0)
        for name, mask in zip(TEXTURES[1:], masks[1:], strict=True):
            assert mask.min() == 0, name
            assert mask.max() == 1, name
            assert 0.2 < mask.mean() < 0.8, name
        for i in range(10):
            for j in range(i):
                assert np.abs(masks[i] - masks[j]).mean() > 0.15, (TEXTURES[i], TEXTURES[j])


class TestRender:
    def test_an_image_is_a_function_of_class_and_seed(self) -> None:
        assert np.array_equal(image(123, 5), image(123, 5))
        assert np.abs(image(123, 5) - image(123, 6)).mean() > 0.02
        assert np.abs(image(123, 5) - image(124, 5)).mean() > 0.02

    def test_a_batch_gives_what_single_images_give(self) -> None:
        labels, seeds = np.array([3, 777, 560]), np.array([0, 9, HELD_OUT + 4])
        batch = render(labels, seeds, 40, 56)
        assert batch.shape == (3, 3, 40, 56)
        assert batch.dtype == np.float32
        assert batch.min() >= 0
        assert batch.max() <= 1
        for i in range(3):
            alone = render(labels[i : i + 1], seeds[i : i + 1], 40, 56)[0]
            np.testing.assert_allclose(batch[i], alone, atol=1e-6)

    def test_torch_draws_the_same_pixels(self) -> None:
        torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")
        labels = np.arange(0, 1000, 41)
        seeds = labels * 7919 + HELD_OUT
        here = render(labels, seeds, 64, 64, extent=CROP_EXTENT)
        there = render(
            torch.from_numpy(labels), torch.from_numpy(seeds), 64, 64, extent=CROP_EXTENT,
            backend=torch_backend("cpu"),
        )  # fmt: skip
        assert there.dtype == torch.float32
        difference = np.abs(here - there.numpy())
        # Sines may differ in their last bits; hard edges of a texture turn that into a little more.
        assert difference.mean() < 1e-6
        assert (difference > 1 / 255).mean() < 1e-4

    def test_the_hue_shows(self) -> None:
        """A plain disc has its hue in the middle: the dominant channel follows the class."""
        for hue, channel in ((0, 0), (3, 1), (7, 2)):
            right = 0
            for seed in range(40):
                picture = image(hue, seed)
                centre = picture[:, 20:28, 20:28].mean((1, 2))
                right += int(centre.argmax() == channel)
            assert right > 22, HUES[hue]


class TestFiles:
    def test_make_writes_what_the_map_says(self, tmp_path: Path) -> None:
        specs = draw_specs(6, 3)
        assert list(make(specs, tmp_path / "a", jobs=1)) == [1, 2, 3, 4, 5, 6]
        lines = (tmp_path / "a" / "map.txt").read_text().splitlines()
        for spec, line in zip(specs, lines, strict=True):
            name, label = line.split("\t")
            assert int(label) == spec.label
            with Image.open(tmp_path / "a" / name) as found:
                assert found.format == "JPEG"
                assert found.size == (spec.width, spec.height)
                decoded = np.asarray(found.convert("RGB"), np.float64)
            # Compression takes the noise first, so means of 8 x 8 pixels are compared.
            off = (decoded - pixels(spec))[: spec.height // 8 * 8, : spec.width // 8 * 8]
            blocks = off.reshape(spec.height // 8, 8, spec.width // 8, 8, 3).mean((1, 3))
            assert np.abs(blocks).mean() < 2

    def test_the_same_seed_gives_the_same_files(self, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            assert main(["make", "--out", str(tmp_path / folder), "--count", "3", "--seed", "8"]) == 0
        for file in (tmp_path / "a").iterdir():
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()

    def test_several_processes_write_the_same_files(self, tmp_path: Path) -> None:
        specs = draw_specs(40, 0)
        small = [type(s)(s.label, s.seed, 40, 48, s.quality) for s in specs]
        list(make(small, tmp_path / "one", jobs=1))
        list(make(small, tmp_path / "two", jobs=2))
        names = sorted(p.name for p in (tmp_path / "one").iterdir())
        assert names == sorted(p.name for p in (tmp_path / "two").iterdir())
        for name in names:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    def test_sizes_aspects_and_seeds(self) -> None:
        specs = draw_specs(300, 0)
        assert len({(s.height, s.width) for s in specs}) > 250
        assert {s.height > s.width for s in specs} == {True, False}
        assert all(256 <= min(s.height, s.width) <= 448 for s in specs)
        assert all(s.seed >= HELD_OUT for s in specs), "training draws its seeds from below"
        assert len({s.seed for s in specs}) == 300

    def test_a_folder_that_has_a_map_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "map.txt").write_text("x.jpg\t1\n")
        with pytest.raises(ShapesError, match="exists already"):
            next(make(draw_specs(1, 0), tmp_path))

    def test_bad_arguments(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["make", "--out", str(tmp_path), "--count", "0"])
        assert "argument --count: '0' is not a whole number" in capsys.readouterr().err
        (tmp_path / "file").write_text("")
        assert main(["make", "--out", str(tmp_path / "file"), "--count", "1"]) == 1
        assert "--out" in capsys.readouterr().err

    def test_sheet(self, tmp_path: Path) -> None:
        assert main(["sheet", "--out", str(tmp_path / "sheet.png"), "--count", "11"]) == 0
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.size == (1600, 320)


class TestDemo:
    def test_the_bundled_images_are_the_ones_the_command_makes(self, tmp_path: Path) -> None:
        specs = demo_specs()
        expected = [f"{spec.file_name(i)}\t{spec.label}" for i, spec in enumerate(specs)]
        assert (DEMO / "map.txt").read_text().splitlines() == expected
        for i in (0, 11, 23, 37, 47):
            list(make([specs[i]], tmp_path / str(i)))
            made = next((tmp_path / str(i)).glob("*.jpg"))
            with Image.open(made) as ours, Image.open(DEMO / specs[i].file_name(i)) as bundled:
                assert ours.size == bundled.size
                # Another JPEG library may round differently.
                off = np.asarray(ours, np.int16) - np.asarray(bundled, np.int16)
                assert np.abs(off).mean() < 1.0

    def test_they_are_small_and_hold_every_kind(self) -> None:
        files = sorted(DEMO.glob("*.jpg"))
        assert len(files) == 48
        assert sum(f.stat().st_size for f in files) < 2 << 20
        shapes, textures, hues = zip(*(split_class(s.label) for s in demo_specs()), strict=True)
        assert len(set(shapes)) == len(set(textures)) == len(set(hues)) == 10
        kinds = {}
        for file in files:
            with Image.open(file) as found:
                kinds["grey"] = kinds.get("grey", 0) + (found.mode == "L")
                kinds["progressive"] = kinds.get("progressive", 0) + ("progressive" in found.info)
                kinds["exif"] = kinds.get("exif", 0) + (found.getexif().get(0x0112) == 6)
        assert kinds == {"grey": 1, "progressive": 1, "exif": 1}
