"""Training's arithmetic, against the engine's and the papers'."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training extra (torch) is not installed")

from int4core import quantize  # noqa: E402
from int4core.dtypes import S8, S32, U4, U7  # noqa: E402
from tools.finetune import fakequant  # noqa: E402


class TestArithmetic:
    @pytest.mark.parametrize(("dtype", "lo", "hi"), [(U4, 0, 15), (U7, 0, 127), (S8, -128, 127)])
    def test_requantize_is_the_engines(self, dtype: object, lo: int, hi: int) -> None:
        rng = np.random.default_rng(0)
        acc = rng.integers(-(1 << 23), 1 << 23, (2, 300, 3, 3)) >> rng.integers(0, 22, (2, 300, 3, 3))
        factor = rng.integers(0, 65536, 300)
        # Halves are where rounding rules differ.
        factor[:40], acc[:, :40] = 1 << 15, rng.integers(-200, 200, (2, 40, 3, 3))
        ratio = torch.from_numpy(factor / 65536.0)
        ours = fakequant.requantize(torch.from_numpy(acc).double(), ratio, lo, hi).numpy()
        theirs = quantize.requantize(acc, factor.reshape(1, -1, 1, 1), 16, dtype)
        assert np.array_equal(ours, theirs)

    def test_rescale_is_the_engines(self) -> None:
        rng = np.random.default_rng(1)
        for largest in (0.4, 1.0, 7.3, 900.0, 32767.0, 60000.0):
            ratio = torch.from_numpy(rng.uniform(0, 1, 50) * largest)
            ratio[7] = largest
            shift = int(fakequant.residual_shift(ratio))
            factor = np.floor(ratio.numpy() * 2.0**shift + 0.5).astype(np.int64)
            assert factor.max() <= 65535
            assert shift == 16 or largest * 2.0 ** (shift + 1) > 65535
            x = rng.integers(-128, 128, (2, 50, 4, 4))
            ours = fakequant.rescale(torch.from_numpy(x).double(), ratio).numpy()
            assert np.array_equal(ours, quantize.requantize(x, factor.reshape(1, -1, 1, 1), shift, S32))

    def test_gradients_pass_inside_the_range_and_stop_outside(self) -> None:
        acc = torch.tensor([-50.0, 40.3, 99.0, 4000.0]).reshape(1, 1, 2, 2).requires_grad_()
        out = fakequant.requantize(acc, torch.tensor([0.125]), 0, 15)
        assert out.flatten().tolist() == [0, 5, 12, 15]
        out.sum().backward()
        assert acc.grad is not None
        assert acc.grad.flatten().tolist() == [0.0, 0.125, 0.125, 0.0]

    def test_a_step_learns_as_lsq_says(self) -> None:
        """Esser et al. 2020, equation 3: d(q*s)/ds = q - x/s inside the range, the bound outside."""
        tensor_range = fakequant.Range(15)
        tensor_range.base.fill_(0.5)
        unit = 1.0 / 1024
        acc = torch.tensor([[[[700.0, 1600.0], [-3.0, 90000.0]]]])
        for i, wanted in enumerate((1 - 700 * unit / 0.5, 3 - 1600 * unit / 0.5, 0.0, 15.0)):
            tensor_range.gain.grad = None
            step = tensor_range.step
            value = fakequant.requantize(acc, torch.tensor([unit]) / step, 0, 15) * step
            value.flatten()[i].backward()
            assert float(tensor_range.gain.grad) / 0.5 == pytest.approx(wanted, abs=1e-4)

    def test_bf16_holds_every_integer_between_layers(self) -> None:
        values = torch.arange(-128, 129, dtype=torch.float32)
        assert torch.equal(values.to(torch.bfloat16).float(), values)
