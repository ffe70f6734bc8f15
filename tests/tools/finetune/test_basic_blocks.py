"""Fine-tuning of networks with basic blocks: parent, calibration, export, and the engine's very integers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from int4core.engine import Engine  # noqa: E402
from int4core.layers import BasicBlock  # noqa: E402
from tests.tools.finetune.tiny import CPU, SIZE, calibrated  # noqa: E402
from tools.finetune import checkpoint, data, export  # noqa: E402
from tools.finetune.resnet import ARCHITECTURES, Architecture, ResNet  # noqa: E402
from tools.finetune.verify import compare  # noqa: E402


@pytest.fixture(scope="module")
def parent() -> ResNet:
    torch.manual_seed(3)
    model = ResNet(Architecture((2, 1, 1, 1), width=8, classes=16, basic=True))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    model.train()
    with torch.no_grad():
        model(data.Procedural(CPU, 16, SIZE, 0, classes=16).batch(0)[0])
    return model.eval()


def test_the_engine_gives_the_very_same_integers(parent: ResNet) -> None:
    child = calibrated(parent)
    model = export.to_model(child, SIZE)
    assert [type(block) for block in model.network.blocks] == [BasicBlock] * 5
    assert [block.stride for block in model.network.blocks] == [1, 1, 2, 2, 2]
    source = data.Procedural(CPU, 8, SIZE, 1, classes=16, held_out=True)
    with Engine(model, "numpy", batch_size=8) as engine:
        found = compare(child, engine, [source.batch(0)])
    assert len(found.largest) == 2 + 5 * 4 + 2 + 3 * 3 + 1 + 1
    assert set(found.largest.values()) == {0}
    assert found.agreement == 1.0


def test_checkpoints_keep_the_kind_of_block(parent: ResNet, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("basic") / "parent.pt"
    checkpoint.save(path, parent)
    back = checkpoint.load_fp32(path, ARCHITECTURES["resnet50"])
    assert back.arch == parent.arch
    checkpoint.save(path, calibrated(parent))
    assert checkpoint.load_quantised(path)[0].arch.basic


def test_the_names_are_torchvisions() -> None:
    arch = checkpoint.architecture("resnet18", 10)
    assert arch == Architecture((2, 2, 2, 2), classes=10, basic=True)
    names = ResNet(arch).state_dict().keys()
    assert {"layer1.1.conv2.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn2.weight"} <= names
    assert not {name for name in names if "conv3" in name or name.startswith("layer1.0.downsample")}
    assert sum(p.numel() for p in ResNet(ARCHITECTURES["resnet18"]).parameters()) == 11_689_512
