"""Losses, rates, and runs that are resumed or ended."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from tests.tools.finetune.tiny import CPU, calibrated  # noqa: E402
from tools.finetune import data, train  # noqa: E402
from tools.finetune.errors import FinetuneError  # noqa: E402
from tools.finetune.qresnet import QuantResNet  # noqa: E402
from tools.finetune.resnet import ResNet  # noqa: E402


class TestTraining:
    def test_marginals_are_the_probabilities_of_the_parts(self) -> None:
        logits = torch.randn(5, 1000, dtype=torch.float32)
        labels = torch.tensor([0, 123, 999, 450, 77])
        p = torch.softmax(logits, 1).reshape(5, 10, 10, 10)
        wanted = torch.nn.functional.cross_entropy(logits, labels)
        for i, axes in enumerate(((2, 3), (1, 3), (1, 2))):
            part = (labels // (100, 10, 1)[i]) % 10
            wanted = wanted - 0.4 * torch.log(p.sum(axes)[torch.arange(5), part]).mean()
        found = float(train.classification_loss(logits, labels, 0.0, 0.4))
        assert found == pytest.approx(float(wanted), rel=1e-5)

    def test_rate_rises_then_falls_to_zero(self) -> None:
        s = train.Schedule(steps=100, seconds=None, lr=2.0, warmup=0.1)
        rates = [s.rate(s.progress(i, 0.0)) for i in range(101)]
        assert rates[0] == pytest.approx(0.1)
        assert max(rates) == rates[10] == pytest.approx(2.0)
        assert rates[100] == pytest.approx(0.0, abs=1e-9)
        assert rates[:11] == sorted(rates[:11])
        assert rates[10:] == sorted(rates[10:], reverse=True)

    def test_time_ends_a_run(self) -> None:
        s = train.Schedule(steps=None, seconds=10.0, lr=1.0)
        assert s.progress(10**6, 5.0) == 0.5
        assert s.progress(1, 11.0) == 1.0
        with pytest.raises(FinetuneError):
            train.Schedule(steps=None, seconds=None, lr=1.0)

    def test_a_resumed_run_ends_where_an_unbroken_one_does(self, parent: ResNet) -> None:
        source = data.Procedural(CPU, 8, 48, 0, classes=16)
        schedule = train.Schedule(steps=6, seconds=None, lr=1e-3)

        def trainer(model: QuantResNet) -> train.Trainer:
            return train.Trainer(model, schedule, train.forward_of(model, CPU, compiled=False))

        class StopError(Exception):
            pass

        def stop(p: train.Progress) -> None:
            if p.step == 3:
                raise StopError

        whole, broken = calibrated(parent), calibrated(parent)
        trainer(whole).run(lambda done: source, lambda p: None, every=1)
        first = trainer(broken)
        with pytest.raises(StopError):
            first.run(lambda done: source, stop, every=1)
        second = trainer(broken)
        second.load_state(first.state())
        second.run(lambda done: source, lambda p: None, every=1)
        assert second.step == 6
        for (name, a), b in zip(whole.state_dict().items(), broken.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, msg=name)

    def test_an_exploded_loss_ends_the_run(self, parent: ResNet) -> None:
        with torch.no_grad():
            parent.fc.bias.fill_(float("nan"))
        schedule = train.Schedule(steps=2, seconds=None, lr=1e-3)
        trainer = train.Trainer(parent, schedule, train.forward_of(parent, CPU, compiled=False))
        with pytest.raises(FinetuneError, match="--lr"):
            trainer.run(lambda done: data.Procedural(CPU, 4, 48, 0, classes=16), lambda p: None, every=1)
