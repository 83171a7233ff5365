"""What a backward over kernels reads where `.data` of a tensor was assigned to since the forward, as by `module.to`."""

import pytest
import torch

import lc_triton
from lc_triton.errors import ArgumentValueError
from lc_triton.tiles.chooser import chooser
from lc_triton.tiles.config import TileConfig

LAYERS = {
    "conv": lambda: lc_triton.LocalConv1d(2, 3, 2, input_size=2, activation="tanh"),
    "transposed": lambda: lc_triton.LocalConvTranspose1d(2, 3, 2, input_size=2),
    "linear": lambda: lc_triton.LocalLinear(2, 2, 3),
}


def other_order(tensor):
    """The same numbers in another memory order."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def one_launch(task, gpu):
    """A tile whose launches read x and the weight where they are: no split loop copies them first."""
    return TileConfig(1, 4, 4, 2, 16, dot=False)


@pytest.fixture
def case(request):
    torch.manual_seed(0)
    layer = LAYERS[request.param]()
    x = torch.randn(2, 2, 2, requires_grad=True)
    return layer, x, torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])


@pytest.mark.parametrize("case", LAYERS, indirect=True)
@pytest.mark.parametrize("which", ["x", "weight"])
def test_another_memory_order(case, which):
    """Found so: a backward that was bound before read the numbers in the order that they had in the forward."""
    layer, x, want = case
    with lc_triton.backend("triton"), chooser.asking(one_launch):
        torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])
        loss, tensor = layer(x).square().sum(), x if which == "x" else layer.weight
        tensor.data = other_order(tensor.data)
        for got, exact in zip(torch.autograd.grad(loss, [x, layer.weight]), want, strict=True):
            torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("case", ["linear"], indirect=True)
@pytest.mark.parametrize("read_once", [False, True])
def test_another_memory_order_beside_a_fused_optimizer(case, read_once):
    layer, x, (dx, dw) = case
    before = layer.weight.detach().clone()
    optimizer = lc_triton.FusedSGD([layer.weight], lr=0.1, read_once=read_once)
    with lc_triton.backend("triton"), chooser.asking(one_launch):
        for _ in range(2):
            with torch.no_grad():
                layer.weight.copy_(before)
            loss, x.grad = layer(x).square().sum(), None
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(layer.weight.detach(), before - 0.1 * dw)
            torch.testing.assert_close(x.grad, dx)
            x.data = other_order(x.data)


@pytest.mark.parametrize("case", ["conv"], indirect=True)
@pytest.mark.parametrize("which", ["x", "weight"])
@pytest.mark.parametrize("change", [lambda t: t.double(), lambda t: t[..., :1]], ids=["dtype", "shape"])
@pytest.mark.parametrize("fused", [False, True], ids=["stored", "fused optimizer"])
def test_another_tensor_is_refused(case, which, change, fused):
    """Found so: the launch read past the end of the memory."""
    layer, x, _ = case
    optimizer = lc_triton.FusedSGD(layer, lr=0.1) if fused else None  # noqa: F841  # it lives as long as this function
    with lc_triton.backend("triton"), chooser.asking(one_launch):
        loss, tensor = layer(x).square().sum(), x if which == "x" else layer.weight
        tensor.data = change(tensor.data)
        with pytest.raises(ArgumentValueError, match=r"in backward must be .* convert or move a model before its for"):
            loss.backward()


@pytest.mark.parametrize("change", [lambda t: t[..., :1], lambda t: t[:, :1]], ids=["filters", "taps"])
def test_another_weight_of_a_gather_is_refused(change):
    layer, x = lc_triton.LocalGather(2, [[0, 1], [1, -1]], 1, 2), torch.randn(1, 2, 1, requires_grad=True)
    with lc_triton.backend("triton"):
        loss = layer(x).sum()
        layer.weight.data = change(layer.weight.data)
        with pytest.raises(ArgumentValueError, match=r"sizes of .* must be .* as in the forward, got"):
            loss.backward()


def test_another_weight_is_refused_by_a_backward_with_a_graph():
    layer, x = LAYERS["conv"](), torch.randn(2, 2, 2, requires_grad=True)
    with lc_triton.backend("triton"), chooser.asking(one_launch):
        loss = layer(x).sum()
        layer.weight.data = layer.weight.data[..., :1]
        with pytest.raises(ArgumentValueError, match="the weight in backward must be"):
            torch.autograd.grad(loss, x, create_graph=True)
