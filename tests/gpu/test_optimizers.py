"""Fused optimizers and added gradients with the kernels on a GPU: results of torch, and the order of streams."""

import copy

import pytest
import torch
from torch import nn

from lc_triton import FusedAdamW, FusedSGD, LocalConv2d, accumulate_gradients
from tests.optim.networks import assert_same, batch, loss_of, network, weights

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
L1, L2 = 0.01, 0.02
PAIRS = {
    "adamw": (FusedAdamW, torch.optim.AdamW, {"lr": 1e-2}),
    "nesterov": (FusedSGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
}
STEPS = {
    "kind": list(PAIRS),
    "clip_norm": [None, 0.05],
    "penalised": [False, True],
    ("dtype", "bound"): [(torch.float32, 1e-4), (torch.float64, 1e-10)],
}
BATCHES = [1, 4, 40]
SUMS, SUM_DTYPES = ["grad", "main_grad"], [torch.float32, torch.float16, torch.bfloat16]


def fused_of(net, kind, clip_norm, penalised):
    options = {"l1": L1, "l2": L2, "non_neg": True} if penalised else {}
    return PAIRS[kind][0](net, **PAIRS[kind][2], clip_norm=clip_norm, **options)


def summing_layer(dtype, of_sum, device):
    layer = LocalConv2d(3, 16, 3, input_size=(9, 8), padding=1, dtype=dtype, device=device)
    if of_sum == "main_grad":
        layer.weight.main_grad = torch.zeros(layer.weight.shape, device=device)
    return layer


def penalty_of(net):
    return sum(L1 * p.abs().sum() + L2 * p.square().sum() for p in net.parameters())


@pytest.mark.parametrize("kind", STEPS["kind"])
@pytest.mark.parametrize("clip_norm", STEPS["clip_norm"])
@pytest.mark.parametrize("penalised", STEPS["penalised"])
@pytest.mark.parametrize(("dtype", "bound"), STEPS["dtype", "bound"], ids=str)
def test_steps_equal_torchs(kind, clip_norm, penalised, dtype, bound):
    """Batch sizes differ, and every second step accumulates two batches; the last of them stores no weight gradient."""
    net = network(dtype).to(DEVICE)
    plain_net = copy.deepcopy(net)
    _, theirs, arguments = PAIRS[kind]
    fused, plain = fused_of(net, kind, clip_norm, penalised), theirs(plain_net.parameters(), **arguments)
    for step in range(4):
        fused.accumulate = 1 + step % 2
        for optimizer in (fused, plain):
            optimizer.zero_grad()
        for part in range(fused.accumulate):
            x = batch(2 * step + part, dtype, size=BATCHES[step % 3]).to(DEVICE)
            for model in (net, plain_net):
                loss_of(model, x).backward()
        assert all((w.grad is None) == (clip_norm is None or fused.accumulate == 1) for w in weights(net))
        if penalised:
            penalty_of(plain_net).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(plain_net.parameters(), clip_norm)
        for optimizer in (fused, plain):
            optimizer.step()
        if penalised:
            with torch.no_grad():
                for p in plain_net.parameters():
                    p.clamp_(min=0)
    for p, q in zip(net.parameters(), plain_net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=bound * max(0.1, q.abs().max().item()))  # all weights may be 0


@pytest.mark.parametrize("dtype", SUM_DTYPES, ids=str)
@pytest.mark.parametrize("of_sum", SUMS)
def test_sums_of_gradients(dtype, of_sum):
    """Gradients are summed in `.grad`, or in float32 in `main_grad`; errors against float64 are those of rounding."""
    torch.manual_seed(0)
    layer = summing_layer(dtype, of_sum, DEVICE)
    double = LocalConv2d(3, 16, 3, input_size=(9, 8), padding=1, dtype=torch.float64, device=DEVICE)
    double.load_state_dict(layer.state_dict())
    accumulate_gradients(layer)
    for step in range(8):
        x = torch.randn(32, 3, 9, 8, generator=torch.Generator().manual_seed(step)).to(DEVICE, dtype)
        g = torch.randn(32, 16, 9, 8, generator=torch.Generator().manual_seed(100 + step)).to(DEVICE, dtype)
        layer(x).backward(g)
        double(x.double()).backward(g.double())
    got = layer.weight.grad if of_sum == "grad" else layer.weight.main_grad
    assert (layer.weight.grad is None) == (of_sum == "main_grad")
    unit = torch.finfo(got.dtype).eps * (8 if of_sum == "grad" else 32)
    assert (got - double.weight.grad).abs().max() <= unit * double.weight.grad.abs().max()


@pytest.mark.parametrize("gradients", ["updated", "added"])
def test_layers_on_streams_of_their_own(gradients):
    """The forward and the backward of each layer are on a stream of its own, for which the current stream waits."""
    nets = [network(torch.float64).to(DEVICE) for _ in range(2)]
    if gradients == "updated":
        optimizers = FusedSGD(nets[0], lr=0.1), torch.optim.SGD(nets[1].parameters(), lr=0.1)
    else:
        accumulate_gradients(nets[0])
        optimizers = tuple(torch.optim.SGD(net.parameters(), lr=0.1) for net in nets)
    streams = [torch.cuda.Stream() for _ in nets[0]]
    for step in range(6):
        x = batch(step, torch.float64, size=64).to(DEVICE)
        y = x
        for layer, stream in zip(nets[0], streams, strict=True):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                y = layer(y)
            torch.cuda.current_stream().wait_stream(stream)
        (y - x.flatten(1)[:, :3]).square().mean().backward()
        loss_of(nets[1], x).backward()
        if gradients == "updated" or step % 2:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert_same(*nets, 1e-10)
