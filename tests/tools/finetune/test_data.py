"""Training images: procedural ones, folders and lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from int4core.preprocess import preprocess  # noqa: E402
from tests.tools.finetune.tiny import CPU  # noqa: E402
from tools.finetune import data  # noqa: E402
from tools.finetune.errors import FinetuneError  # noqa: E402
from tools.finetune.qresnet import quantize_input  # noqa: E402


def test_images_are_resized_as_the_network_s_input_is(tmp_path: Path) -> None:
    """The long side rounds down: 300 x 257 become 298 x 256."""
    pixels = np.random.default_rng(5).integers(0, 256, (257, 300, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    expected = preprocess(path)
    loaded = quantize_input(data.normalise(data.load_image(path, 224, None)[None]))
    np.testing.assert_array_equal(loaded[0].numpy().astype(np.int8), expected)


class TestData:
    def test_training_and_test_images_never_meet(self) -> None:
        seen = data.Procedural(CPU, 4, 32, 0).batch(0)[0]
        fresh = data.Procedural(CPU, 4, 32, 0, held_out=True).batch(0)[0]
        again = data.Procedural(CPU, 4, 32, 0).batch(0)[0]
        assert torch.equal(seen, again)
        assert not torch.equal(seen, fresh)

    def test_each_process_has_images_of_its_own(self) -> None:
        sources = [data.Procedural(CPU, 8, 32, 0, rank=r, world=2) for r in range(2)]
        batches = [s.batch(i)[0] for i in range(2) for s in sources]
        for i in range(4):
            for j in range(i):
                assert not torch.equal(batches[i], batches[j])

    def test_input_integers(self) -> None:
        x = torch.tensor([-3.0, -2.64, 0.0, 2.64, 9.0, 2.64 * 2.4 / 127, 2.64 * 2.6 / 127])
        assert quantize_input(x).tolist() == [-127, -127, 0, 127, 127, 2, 3]

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        for name in ("b", "a"):
            (tmp_path / "tree" / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((50, 70, 3), 40 if name == "a" else 200, np.uint8)
                pixels += rng.integers(0, 20, pixels.shape, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "tree" / name / f"{i}.png")
        return tmp_path / "tree"

    def test_image_folder(self, tree: Path) -> None:
        source = data.Folder(tree, CPU, 4, 32, 0, workers=0)
        seen = [source.batch(step) for step in range(3)]
        labels = torch.cat([labels for _, labels in seen])
        assert sorted(labels[:6].tolist()) == sorted(labels[6:].tolist()) == [0, 0, 0, 1, 1, 1]
        for images, labels in seen:
            assert images.shape == (4, 3, 32, 32)
            assert torch.equal((images.mean((1, 2, 3)) > 0).long(), labels)
        again = data.Folder(tree, CPU, 4, 32, 0, workers=0).batch(2)
        assert torch.equal(again[0], seen[2][0]), "a resumed run must see the same images"

    def test_evaluation_takes_every_image_once(self, tree: Path) -> None:
        found = list(data.evaluation_files(tree, CPU, 4, 32, 0))
        assert torch.cat([labels for _, labels in found]).tolist() == [0, 0, 0, 1, 1, 1]

    def test_map_files(self, tree: Path) -> None:
        (tree / "map.txt").write_text("a/0.png\t7\nb/1.png 3\n\n")
        assert data.list_images(tree, 8) == [(tree / "a" / "0.png", 7), (tree / "b" / "1.png", 3)]
        (tree / "map.txt").write_text("a/0.png\t7\nb/1.png\n")
        with pytest.raises(FinetuneError, match=r"map\.txt:2: "):
            data.list_images(tree, 8)
        (tree / "map.txt").write_text("a/0.png\nb/1.png\n")
        with pytest.raises(FinetuneError, match="no labels"):
            data.list_images(tree, 8)

    def test_labels_are_classes_of_the_model(self, tree: Path) -> None:
        with pytest.raises(FinetuneError, match=r"b/0\.png: label 1 is no class of the model, which are 0 to 0"):
            data.Folder(tree, CPU, 4, 32, 0, classes=1, workers=0)
        (tree / "map.txt").write_text("a/0.png\t7\nb/1.png 8\n")
        with pytest.raises(FinetuneError, match=r"b/1\.png: label 8 is no class"):
            data.list_images(tree, 8)

    def test_errors_name_the_file(self, tree: Path) -> None:
        with pytest.raises(FinetuneError, match="missing"):
            data.list_images(tree / "missing", 8)
        (tree / "a" / "0.png").write_text("no image")
        with pytest.raises(FinetuneError, match=r"0\.png"):
            list(data.evaluation_files(tree, CPU, 4, 32, 0))

    def test_files_are_taken_by_the_pipelines_rules(self, tree: Path) -> None:
        """Grey of 16 bits would be one flat colour, and PostScript starts a program."""
        path = tree / "a" / "0.png"
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(path)
        with pytest.raises(FinetuneError, match=r"0\.png: 16-bit grey"):
            data.load_image(path, 32, None)
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n")
        with pytest.raises(FinetuneError, match=r"0\.png: not an image, or none of JPEG"):
            data.load_image(path, 32, None)
