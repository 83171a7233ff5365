"""float32 weights with 16-bit inputs: large batches round them once, for the forward and the input gradient."""

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.launch import passes, plan


@pytest.fixture
def weight_dtypes(monkeypatch):
    """The dtypes of the weights that launches read; every batch counts as large."""
    for name in ("LEAST_BATCH", "LEAST_BATCH_OF_FORWARD", "LEAST_WEIGHTS"):
        monkeypatch.setattr(plan, name, 0)
    dtypes, prepare = [], passes.prepare

    def record(launches, kernel, grid, config, tensors, constants, device):
        if kernel.fn.__name__ in ("forward_kernel", "input_grad_kernel"):
            dtypes.append(tensors[1].dtype)
        return prepare(launches, kernel, grid, config, tensors, constants, device)

    monkeypatch.setattr(passes, "prepare", record)
    return dtypes


def layer_and_input(transposed=False, **arguments):
    torch.manual_seed(0)
    kind = lc_triton.LocalConvTranspose2d if transposed else lc_triton.LocalConv2d
    return kind(4, 6, 3, input_size=4, **arguments), torch.randn(3, 4, 4, 4).half()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transposed", "activation"),
    [(False, "relu"), pytest.param(False, "silu", marks=pytest.mark.nightly), (True, None)],
)
def test_gradients_are_those_of_the_rounded_weight(weight_dtypes, transposed, activation):
    layer, x = layer_and_input(transposed, activation=activation)
    x.requires_grad_()
    with lc_triton.backend("triton"):
        y = (
            lc_triton.local_conv_transpose(x, layer.weight, layer.bias, activation=activation)
            if transposed
            else layer(x)
        )
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, layer.weight, layer.bias), g)
    assert set(weight_dtypes) == {torch.float16}
    assert [grad.dtype for grad in found] == [torch.float16, torch.float32, torch.float32]

    x64, w64 = x.detach().double().requires_grad_(), layer.weight.detach().half().double().requires_grad_()
    b64 = layer.bias.detach().double().requires_grad_()
    with lc_triton.backend("reference"):
        run = lc_triton.local_conv_transpose if transposed else lc_triton.local_conv
        expected = run(x64, w64, b64, activation=activation)
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=4e-3)
    for grad, want in zip(found, torch.autograd.grad(expected, (x64, w64, b64), g.double()), strict=True):
        torch.testing.assert_close(grad.double(), want, rtol=4e-3, atol=2e-2)


@pytest.mark.slow
def test_a_step_of_the_optimizer_reads_the_copy_and_writes_the_weight(weight_dtypes):
    layer, x = layer_and_input()
    other = lc_triton.LocalConv2d(4, 6, 3, input_size=4)
    other.load_state_dict(layer.state_dict())
    for net, kind in ((layer, lc_triton.FusedAdamW), (other, torch.optim.AdamW)):
        optimizer = kind(net.parameters() if kind is torch.optim.AdamW else net, lr=1e-2)
        with lc_triton.backend("triton"):
            net(x.requires_grad_()).float().square().sum().backward()
        optimizer.step()
    assert set(weight_dtypes) == {torch.float16}
    torch.testing.assert_close(layer.weight, other.weight, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_single_passes_round_the_weight(weight_dtypes):
    """Under saved-tensor hooks no autograd node keeps the copy."""
    layer, x = layer_and_input(activation="relu")
    x.requires_grad_()
    with lc_triton.backend("triton"):
        expected = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
        weight_dtypes.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            y = layer(x)
        found = torch.autograd.grad(y.sum(), (x, layer.weight))
    assert weight_dtypes == [torch.float16] * 2
    for grad, want in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, want)


def test_a_weight_changed_in_place_is_torchs_error(weight_dtypes):
    layer, x = layer_and_input()
    with lc_triton.backend("triton"):
        y = layer(x.requires_grad_())
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("needs_input_grad", [False, True])
def test_a_graph_keeps_the_copy_only_for_the_input_gradient(weight_dtypes, needs_input_grad):
    layer, x = layer_and_input()
    with lc_triton.backend("triton"):
        y = layer(x.requires_grad_(needs_input_grad))
    assert weight_dtypes == [torch.float16]
    saved = [t.dtype for t in y.grad_fn.saved_tensors if t is not None and t.shape == layer.weight.shape]
    assert saved == [torch.float32, torch.float16][: 1 + needs_input_grad]
    dw = torch.autograd.grad(y, layer.weight, torch.ones_like(y))[0]
    with lc_triton.backend("reference"):
        want = torch.autograd.grad(layer.double()(x.double()).sum(), layer.weight)[0]
    torch.testing.assert_close(dw.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly
def test_second_derivatives_use_the_float32_weight(weight_dtypes):
    layer, x = layer_and_input(activation="silu")
    x.requires_grad_()
    with lc_triton.backend("triton"):
        (dx,) = torch.autograd.grad(layer(x).float().square().sum(), x, create_graph=True)
        (found,) = torch.autograd.grad(dx.float().square().sum(), layer.weight)
    x64, w64 = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    y = reference_of(layer, x64, w64)
    (dx64,) = torch.autograd.grad(y.square().sum(), x64, create_graph=True)
    (want,) = torch.autograd.grad(dx64.square().sum(), w64)
    torch.testing.assert_close(found.double(), want, rtol=5e-2, atol=5e-2 * want.abs().max().item())


def reference_of(layer, x, weight):
    with lc_triton.backend("reference"):
        return lc_triton.local_conv(x, weight, layer.bias.detach().double(), activation="silu")


@pytest.mark.parametrize(
    ("batch", "needs_input_grad", "dtype", "weight_dtype", "weights", "rounds"),
    [
        (128, True, torch.float16, torch.float32, 1 << 20, True),
        (127, True, torch.float16, torch.float32, 1 << 20, False),
        (1023, False, torch.bfloat16, torch.float32, 1 << 20, False),
        (1024, False, torch.bfloat16, torch.float32, 1 << 20, True),
        (1024, True, torch.bfloat16, torch.bfloat16, 1 << 20, False),
        (1024, True, torch.float32, torch.float32, 1 << 20, False),
        (1024, True, torch.float16, torch.float32, 1 << 16, False),
    ],
)
def test_when_a_weight_is_rounded_once(batch, needs_input_grad, dtype, weight_dtype, weights, rounds):
    x = torch.empty(batch, 6, 6, 8, dtype=dtype, device="meta")
    weight = torch.empty(weights, dtype=weight_dtype, device="meta")
    assert launch.rounds_weight(x, weight, needs_input_grad=needs_input_grad) is rounds
