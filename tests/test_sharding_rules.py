"""The operators on DTensors, on two processes: values and gradients equal those of one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor

import lc_triton
from lc_triton.errors import ParallelError
from tests.cases import assert_close

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")

# Rows of 5 on two ranks are 3 and 2; of 1 are 1 and 0. With padding 4, the last rows read padding alone.
LAYERS = {
    "plain": ((6, 5), {"activation": "relu"}),
    "strided": ((11, 6), {"stride": 2, "activation": "silu"}),
    "dilated, groups": ((9, 5), {"dilation": (2, 1), "groups": 2, "padding": ((1, 0), (0, 2)), "activation": "tanh"}),
    "one row": ((3, 5), {}),
    "padding alone": ((3, 5), {"padding": ((0, 5), (0, 0)), "stride": (3, 1)}),
}
# Placements of x and weight, and those of y and of the weight's gradient, channels first.
PLACEMENTS = {
    "batch": (Shard(0), Replicate(), Shard(0), Partial()),
    "rows": (Replicate(), Shard(0), Shard(2), Shard(0)),
    "rows, x split": (Shard(0), Shard(0), Shard(2), Shard(0)),
    "whole": (Replicate(), Replicate(), Replicate(), Replicate()),
    "filters": (Replicate(), Shard(5), Replicate(), Replicate()),
}


def tensors(name, bias):
    size, options = LAYERS[name]
    layer = lc_triton.LocalConv2d(4, 6, 3, input_size=size, bias=bias, dtype=torch.float64, **options)
    x = torch.randn(5, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(layer.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    b = None if not bias else torch.linspace(-1, 1, layer.bias.numel(), dtype=torch.float64).view(layer.bias.shape)
    return [x, weight, b], options


def results_of_one_process(name, bias):
    leaves, options = tensors(name, bias)
    return gradients([t if t is None else t.requires_grad_() for t in leaves], options, lambda y: y)


def gradients(leaves, options, to_full):
    y = lc_triton.local_conv(*leaves, **options)
    full = to_full(y)
    scale = torch.linspace(0.5, 2.0, full.numel(), dtype=torch.float64).view(full.shape)
    wanted = [t for t in leaves if t is not None]
    return y, [full.detach(), *(to_full(g) for g in torch.autograd.grad((full * scale).sum(), wanted))]


def rules(mesh):
    for name in LAYERS:
        for placement, (x_place, weight_place, y_place, _) in PLACEMENTS.items():
            bias = {"batch": "position", "rows": "position", "rows, x split": "channel"}.get(placement, False)
            (x, weight, b), options = tensors(name, bias)
            placements = [x_place, weight_place, Shard(0) if placement == "rows" else Replicate()]
            leaves = [
                None if t is None else distribute_tensor(t, mesh, [place]).requires_grad_()
                for t, place in zip((x, weight, b), placements, strict=True)
            ]
            y, found = gradients(leaves, options, lambda t: t.full_tensor())
            assert y.placements == (y_place,), (name, placement, y.placements)
            _, want = results_of_one_process(name, bias)
            for got, expected in zip(found, want, strict=True):
                assert_close(got, expected, 1e-12)


def transposed(mesh):
    """A transposed layer adds its bias after the sum over positions, so its rows are gathered first."""
    torch.manual_seed(0)
    y, weight = torch.randn(4, 6, 5, 3, dtype=torch.float64), torch.randn(5, 3, 3, 3, 2, 6, dtype=torch.float64)
    bias = torch.randn(7, 5, 2, dtype=torch.float64)
    for place in (Shard(0), Replicate()):
        for options in ({}, {"bias": bias, "activation": "relu"}):
            extra = dict(options)
            if "bias" in extra:
                extra["bias"] = distribute_tensor(bias, mesh, [Replicate()])
            given = distribute_tensor(y, mesh, [Replicate()]), distribute_tensor(weight, mesh, [place])
            assert_close(
                lc_triton.local_conv_transpose(*given, **extra).full_tensor(),
                lc_triton.local_conv_transpose(y, weight, **options),
                1e-12,
            )


def modules(mesh):
    """A module whose parameters are made DTensors as torch does it, trained for a step."""
    torch.manual_seed(0)
    net = nn.Sequential(lc_triton.LocalConv2d(2, 3, 3, input_size=7, activation="relu"), nn.Flatten(), nn.Linear(75, 2))
    want, x = [p.detach().clone() for p in net.parameters()], torch.randn(4, 2, 7, 7)
    loss = net(x).square().mean()
    for p, grad in zip(want, torch.autograd.grad(loss, list(net.parameters())), strict=True):
        p -= 0.1 * grad
    distribute_module(net, mesh)
    net(distribute_tensor(x, mesh, [Shard(0)])).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    for p, expected in zip(net.parameters(), want, strict=True):
        assert_close(p.full_tensor().detach(), expected, 1e-5)


def refusals(mesh):
    (x, weight, b), _ = tensors("plain", "position")
    with pytest.raises(ParallelError, match=r"bias is a plain tensor beside DTensors: distribute_tensor\(tensor, mesh"):
        lc_triton.local_conv(*(distribute_tensor(t, mesh, [Replicate()]) for t in (x, weight)), b)


def work(rank, check, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        check(init_device_mesh("cpu", (2,)))
    finally:
        dist.destroy_process_group()


@pytest.mark.subprocess
@pytest.mark.slow
def test_two_ranks_compute_what_one_does(tmp_path):
    mp.spawn(work, (check_all, str(tmp_path / "store")), nprocs=2)


def check_all(mesh):
    for check in (rules, transposed, modules, refusals):
        check(mesh)
    assert DTensor._op_dispatcher._custom_op_handlers[torch.ops.lc_triton.forward.default]


def test_the_cases_have_ranks_without_rows():
    """With one row, a rank has none; with wide padding, a rank reads none."""
    from lc_triton.core.geometry import Geometry
    from lc_triton.core.ranges import chunks, rows_read

    one = Geometry.make((3, 5), 4, 6, 3)
    assert [len(rows) for rows in chunks(one.out_spatial[0], 2)] == [1, 0]
    wide = Geometry.make((3, 5), 4, 6, 3, padding=((0, 5), (0, 0)), stride=(3, 1))
    assert [len(rows_read(wide, rows)) for rows in chunks(wide.out_spatial[0], 2)] == [3, 0]
