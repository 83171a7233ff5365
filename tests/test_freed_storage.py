"""Tensors whose memory was freed, as FSDP frees parameters between uses, raise an error that names them."""

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton.errors import FreedStorageError

# Layers, each with the shape of its input.
LAYERS = {
    "conv": (lambda: lc_triton.LocalConv2d(3, 4, 3, input_size=5, activation="relu"), (2, 3, 5, 5)),
    "shared": (lambda: lc_triton.LocalConv2d(3, 4, 3, input_size=6, share=2), (2, 3, 6, 6)),
    "one filter set": (lambda: lc_triton.LocalConv2d(3, 4, 3, input_size=6, share="all"), (2, 3, 6, 6)),
    "one position": (lambda: lc_triton.LocalConv2d(3, 4, 3, input_size=3, bias="channel"), (2, 3, 3, 3)),
    "transposed": (lambda: lc_triton.LocalConvTranspose1d(4, 3, 3, input_size=5, activation="silu"), (2, 4, 5)),
    "keras": (lambda: lc_triton.LocallyConnected2D(4, 3, input_shape=(5, 5, 3), activation="gelu"), (2, 5, 5, 3)),
    "low rank": (lambda: lc_triton.LowRankLocalConv2d(3, 4, 3, input_size=5, rank=2), (2, 3, 5, 5)),
    "factored": (lambda: lc_triton.LowRankLocalConv2d(3, 4, 3, input_size=5, rank=2, factored=True), (2, 3, 5, 5)),
    "gather": (lambda: lc_triton.LocalGather(6, [[0, 1], [2, -1]], 3, 4), (2, 6, 3)),
    "linear": (lambda: lc_triton.LocalLinear(5, 3, 4), (2, 5, 3)),
    "linear in 16 bits": (lambda: lc_triton.LocalLinear(5, 3, 4, dtype=torch.bfloat16), (2, 5, 3)),
}
CASES = [(name, which) for name, (make, _) in LAYERS.items() for which in ("x", *dict(make().named_parameters()))]


def free(tensor):
    tensor.untyped_storage().resize_(0)


def layer_and_input(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    return layer, torch.randn(shape).to(next(layer.parameters()).dtype)


@pytest.mark.parametrize(("name", "which"), CASES)
def test_a_freed_tensor_is_refused_and_a_restored_one_is_read(name, which):
    layer, x = layer_and_input(name)
    expected = layer(x)
    tensor = x if which == "x" else layer.get_parameter(which)
    values = tensor.detach().clone()
    for context in (torch.enable_grad, torch.no_grad):
        free(tensor)
        operand = "y" if which == "x" and name == "transposed" else which
        with context(), pytest.raises(FreedStorageError, match=rf"^{operand} of shape \(.*\) has no memory"):
            layer(x)
        tensor.untyped_storage().resize_(values.nbytes)
        with torch.no_grad():
            tensor.copy_(values)
        assert torch.equal(layer(x), expected)


# Torch's own products compute these on a CPU.
@pytest.mark.parametrize("name", [name for name in LAYERS if "linear" not in name])
def test_memory_restored_before_backward_is_read(name):
    layer, x = layer_and_input(name)
    x.requires_grad_()
    layer(x).square().sum().backward()
    expected = x.grad
    x.grad = None
    y = layer(x)
    kept = {tensor: tensor.detach().clone() for tensor in layer.parameters()}
    for tensor in kept:
        free(tensor)
    for tensor, values in kept.items():
        tensor.untyped_storage().resize_(values.nbytes)
        tensor.data.copy_(values)
    y.square().sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("which", ["x", "weight", "y"])
@pytest.mark.parametrize("name", ["conv", "shared", "one position", "one filter set", "transposed", "keras"])
def test_a_tensor_freed_before_backward_is_refused(name, which):
    layer, x = layer_and_input(name)
    layer.activation = "relu"
    x.requires_grad_()
    y = layer(x)
    loss = y.sum()
    free({"x": x, "weight": layer.weight, "y": y}[which].detach())
    with pytest.raises(FreedStorageError, match="a tensor that this backward reads"):
        loss.backward()


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("which", ["weight", "weight_scale", "bias", "x"])
def test_a_quantized_layer_refuses_a_freed_tensor(kind, which):
    layer, x = layer_and_input("conv")
    lc_triton.quantize_weights(layer, kind)
    free(x if which == "x" else getattr(layer, which).detach())
    with pytest.raises(FreedStorageError, match=f"^{which} of shape"):
        layer(x)


def test_freed_weights_are_not_quantized():
    layer, _ = layer_and_input("conv")
    free(layer.weight.detach())
    with pytest.raises(FreedStorageError, match=r"^weight of shape"):
        lc_triton.quantize_weights(layer, "int8")


@pytest.mark.parametrize("kind", ["neighbours", "smooth", "mean"])
def test_a_penalty_refuses_a_freed_weight(kind):
    layer, _ = layer_and_input("conv")
    free(layer.weight.detach())
    with pytest.raises(FreedStorageError, match=r"^layer\.weight of shape"):
        lc_triton.position_penalty(layer, kind)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("make", [lc_triton.FusedAdamW, lc_triton.FusedSGD])
@pytest.mark.parametrize("which", ["0.weight", "0.bias", "1.weight", "gradient"])
def test_an_optimizer_refuses_a_freed_parameter(make, which, clip_norm):
    net = nn.Sequential(layer_and_input("conv")[0], nn.Conv2d(4, 2, 3))
    optimizer = make(net, lr=0.1, clip_norm=clip_norm)
    with optimizer.paused():
        net(torch.randn(2, 3, 5, 5)).sum().backward()
    before = net[1].bias.detach().clone()
    name = "1.weight" if which == "gradient" else which
    tensor = net.get_parameter(name)
    free(tensor.grad if which == "gradient" else tensor.detach())
    with pytest.raises(FreedStorageError, match=rf"{name} of shape"):
        optimizer.step()
    assert torch.equal(net[1].bias, before)


def test_a_freed_gradient_is_not_added_to():
    layer, x = layer_and_input("conv")
    with lc_triton.accumulate_gradients(layer):
        layer(x).sum().backward()
        free(layer.weight.grad)
        with pytest.raises(FreedStorageError, match="the gradient of a weight"):
            layer(x).sum().backward()


def test_empty_zero_and_meta_tensors_are_not_refused():
    layer, x = layer_and_input("conv")
    assert layer(x[:0]).shape[0] == 0
    zeros = torch._efficientzerotensor(x.shape)
    assert torch.equal(layer(zeros), layer(torch.zeros_like(x)))
    with torch.device("meta"):
        assert lc_triton.LocalConv2d(3, 4, 3, input_size=5)(torch.empty(x.shape)).is_meta
