"""torch with one thread, and a tiny parent."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # torch is an extra: without it the tests here are skipped, and this is read all the same
    from tools.finetune.resnet import ResNet


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other by spinning, which a busy machine turns into minutes."""
    if find_spec("torch") is None:  # what is tested without it has no such threads
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def parent() -> ResNet:
    """A tiny parent with batch norms as after some training: no statistic is its default."""
    import torch

    from tests.tools.finetune.tiny import TINY
    from tools.finetune.resnet import ResNet

    torch.manual_seed(3)
    model = ResNet(TINY)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    with torch.no_grad():
        model.bn1.weight[0].neg_()
    return model.eval()
