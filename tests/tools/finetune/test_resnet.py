"""The FP32 parent, and the files it comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools.finetune.__main__ import main

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from tests.tools.finetune.tiny import TINY  # noqa: E402
from tools.finetune.errors import FinetuneError  # noqa: E402
from tools.finetune.resnet import ARCHITECTURES, ResNet, load_parent  # noqa: E402


class TestParent:
    def test_resnet50_is_torchvisions(self) -> None:
        model = ResNet(ARCHITECTURES["resnet50"])
        assert sum(p.numel() for p in model.parameters()) == 25_557_032
        names = set(model.state_dict())
        assert len(names) == 320
        assert {"layer1.0.downsample.1.running_var", "layer4.2.bn3.weight", "fc.bias"} <= names
        assert model.blocks()[3].conv2.stride == (2, 2), "v1.5 has its stride in the 3x3"

    def test_weights_of_another_shape_are_refused(self) -> None:
        state = ResNet(TINY).state_dict()
        with pytest.raises(FinetuneError, match=r"w\.pt: .*fc\.weight"):
            load_parent(state, replace(TINY, classes=10), "w.pt")
        del state["bn1.bias"]
        with pytest.raises(FinetuneError, match=r"bn1\.bias"):
            load_parent(state, TINY, "w.pt")

    def test_a_file_that_is_no_checkpoint(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "x.pt").write_bytes(b"nonsense")
        assert main(["export", str(tmp_path / "x.pt"), "--out", str(tmp_path / "m")]) == 1
        assert "x.pt" in capsys.readouterr().err
        assert main(["export", str(tmp_path / "y.pt"), "--out", str(tmp_path / "m")]) == 1
        assert "no such file" in capsys.readouterr().err
