"""Any valid call of the operators, by interpreted kernels, against the definition."""

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lc_triton
from lc_triton.core.activations import parse_activation
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig
from tests.cases import CASES, assert_results_close, expected, tensors
from tests.fuzz.checking import check
from tests.fuzz.profiles import cases
from tests.fuzz.strategies import DTYPES, Limits, calls

# A pass has few programs. The interpreter computes wrong products in bfloat16.
FEW = Limits(
    positions=(3, 2, 2),
    kernel=(3, 2, 2),
    padding=2,
    channels=(1, 2, 3),
    groups=2,
    batch=(2, 1, 0, 3, None),
    dtypes=tuple(pair for pair in DTYPES if torch.bfloat16 not in pair),
)


@dataclass(frozen=True)
class Tiles:
    """Chooses one tile for all launches, adapted to each pass."""

    rows: int
    cols: int
    dot: bool
    swap: bool
    split: int

    def __call__(self, task, gpu):
        channels = task.geo.in_channels if task.pass_name == "input_grad" else task.geo.out_channels
        block = 1 << (channels - 1).bit_length()
        if task.pass_name == "weight_grad" and task.geo.regions:
            return TileConfig(1, 1, 16, 16, 16, swap=self.swap, split=self.split)
        if not self.dot:
            return TileConfig(self.rows, self.cols, block, 4, 16, dot=False, split=self.split)
        block = max(block, -(-16 // (self.rows * self.cols)))
        return TileConfig(self.rows, self.cols, block, 16, 16, swap=self.swap, split=self.split)


TILES = st.builds(
    Tiles, st.sampled_from([1, 2]), st.sampled_from([2, 1, 4]), st.booleans(), st.booleans(), st.sampled_from([1, 2])
)


@pytest.mark.slow
@cases("interpreted")
@given(st.integers(1, 3).flatmap(lambda ndim: calls(ndim, FEW)), st.none() | TILES)
def test_kernels(call, tiles):
    """With the model's tiles and with others."""
    with lc_triton.backend("triton"), chooser.asking(tiles) if tiles else nullcontext():
        check(call)


def quantized_layer(dtype, x):
    layer = lc_triton.LocallyConnected1D(2, 2, input_shape=x.shape[1:])
    return lc_triton.quantize_weights(layer, dtype)(x)


LAST = {"data_format": "channels_last"}
FUNCTIONS = {
    "conv": lambda x: lc_triton.local_conv(x, torch.ones(5, 2, 3, 2, requires_grad=True), **LAST),
    "transposed": lambda x: lc_triton.local_conv_transpose(x, torch.ones(6, 2, 4, 3), **LAST),
    "linear": lambda x: lc_triton.LocalLinear(6, 3, 2)(x),
    "gather": lambda x: lc_triton.LocalGather(6, [[0, 1], [2, 3]], 3, 2)(x),
    "8 bits": lambda x: quantized_layer("int8", x),
    "4 bits": lambda x: quantized_layer("int4", x),
    "penalty": lambda x: lc_triton.position_penalty(lc_triton.LocalConv1d(2, 3, 2, input_size=5)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_zeros_without_memory(name):
    """The gradient of `torch.sgn`, and the second derivative of `abs`, are zeros without an address."""
    x, is_zero = torch.randn(2, 6, 3, requires_grad=True), []
    with lc_triton.backend("triton"):
        y = FUNCTIONS[name](x)
        y.register_hook(lambda g: is_zero.append(g._is_zerotensor()))
        torch.sgn(y).sum().backward()
    assert is_zero == [True]
    assert name == "penalty" or torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("run", [lc_triton.accumulate_gradients, lambda layer: lc_triton.FusedSGD(layer, lr=0.1)])
def test_an_update_by_zeros_without_memory(run):
    layer, x = lc_triton.LocallyConnected1D(2, 2, input_shape=(6, 3)), torch.randn(2, 6, 3)
    before = layer.weight.detach().clone()
    with lc_triton.backend("triton"), nullcontext(run(layer)) as optimizer:
        torch.sgn(layer(x)).sum().backward()
        if isinstance(optimizer, lc_triton.FusedSGD):
            optimizer.step()
    assert torch.equal(layer.weight, before)
    assert layer.bias.grad is None or not layer.bias.grad.any()


@pytest.mark.parametrize("negated", ["x", "weight", "bias", "g"])
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_views_that_torch_negates_lazily(negated, activation):
    """Kernels would read the numbers in memory, which have the other sign."""
    case = next(case for case in CASES if case.name == "1d_one")
    t = tensors(case)
    want = expected(case, t, parse_activation(activation))
    setattr(t, negated, torch.complex(torch.zeros_like(getattr(t, negated)), -getattr(t, negated)).conj().imag)
    assert getattr(t, negated).is_neg()
    leaves = [v.requires_grad_() for v in (t.x, t.weight, t.bias)]
    with lc_triton.backend("triton"):
        y = lc_triton.local_conv(*leaves, **case.arguments, data_format="channels_last", activation=activation)
        got = dict(zip(("dx", "dw", "db"), torch.autograd.grad(y, leaves, t.g), strict=True)) | {"y": y}
        assert_results_close(got, want)
