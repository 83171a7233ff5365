"""The kernels of LocalGather, interpreted, against the definition and against local_conv on a grid."""

import pytest
import torch

import lc_triton
from lc_triton.core.problem import Problem
from lc_triton.launch import gather as launch
from lc_triton.ops import gather_passes
from lc_triton.ops.gather_passes import readers_of
from lc_triton.tiles.config import TileConfig
from tests.cases import CASES, assert_close, tensors
from tests.interpreter.test_low_rank import results
from tests.test_local_gather import TABLES, definition, gather_of_grid

NAN = float("nan")


FEW = ("duplicates", "masks", "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.nightly) for n in TABLES])
def test_values_and_gradients_of_two_orders(name, monkeypatch):
    torch.manual_seed(0)
    activation = ("tanh", "gelu")[list(TABLES).index(name) % 2]  # their derivatives need y and z
    layer = lc_triton.LocalGather(7, TABLES[name], 2, 3, activation=activation, dtype=torch.float64)
    x, g = torch.randn(2, 7, 2).double(), torch.randn(2, len(TABLES[name]), 3).double()
    want = results(layer, x, g)
    monkeypatch.setattr(gather_passes, "gather", None)  # no window is copied
    monkeypatch.setattr(gather_passes, "spread", None)
    with lc_triton.backend("triton"):
        got, rebuilt = results(layer, x, g), results(layer, x, g)
    exact = getattr(torch.nn.functional, activation)
    assert_close(got[0], definition(layer, x, TABLES[name], exact).detach())
    for a, b, c in zip(got, want, rebuilt, strict=True):
        assert_close(a, b, 1e-12)
        assert torch.equal(a, c)


TILES = {
    "dot": TileConfig(1, 1, 16, 16, 16),
    "blocks": TileConfig(1, 1, 2, 2, 4, dot=False),
}


@pytest.mark.parametrize(
    ("tile", "dtype", "weight_dtype"),
    [
        ("dot", torch.float16, torch.float32),
        ("blocks", torch.float32, torch.float32),
        pytest.param("dot", torch.float32, torch.float32, marks=pytest.mark.nightly),
        pytest.param("blocks", torch.float16, torch.float16, marks=pytest.mark.nightly),
    ],
)
def test_given_tiles(tile, dtype, weight_dtype, monkeypatch):
    """Each dimension has several blocks, which it does not fill; the input is a crop; one tile has 64-bit loops."""
    torch.manual_seed(0)
    batch, sites, channels, filters = 3, 5, 6, 3
    table = torch.tensor([[0, -1, 4, 0], [-1, -1, -1, -1], [3, 1, 4, 0]])
    index = launch.Index(sites, *readers_of(table, sites))
    plan = lc_triton.LocalGather(sites, table, channels, filters)._plan
    problem = Problem(plan.geometry, backend="triton")
    wide, g = torch.randn(batch, sites + 2, channels).to(dtype), torch.randn(batch, 3, filters).to(dtype)
    x = wide[:, 1:-1]
    weight = torch.randn(3, 4, channels, filters).to(weight_dtype)
    weight[table < 0] = NAN  # no kernel reads these
    wide[:, 0] = wide[:, -1] = wide[:, 3] = NAN  # nor these sites: site 2 has no reader
    g[:, 1] = NAN  # the position without neighbours
    y, dx, dw = (
        torch.full_like(g, NAN),
        torch.full((batch, sites, channels), NAN, dtype=dtype),
        torch.empty_like(weight),
    )
    dw.fill_(NAN)
    if tile == "dot":
        monkeypatch.setattr(launch, "_INT32", 2**16)
    launch.gather_forward(x, weight, None, y, None, index, problem, TILES[tile])
    launch.gather_input_grad(g, weight, dx, index, problem, TILES[tile])
    launch.gather_weight_grad(x, g, dw, index, problem, TILES[tile])
    windows = x.double()[:, table.clamp(min=0)].nan_to_num() * (table >= 0).unsqueeze(-1)
    w = weight.to(dtype).double().nan_to_num()
    tolerance = 4 * torch.finfo(dtype).eps
    assert_close(y, torch.einsum("bptc,ptcf->bpf", windows, w), tolerance)
    exact = g.double().nan_to_num()
    scattered = torch.einsum("bpf,ptcf->bptc", exact, w).flatten(1, 2)
    want = torch.zeros(batch, sites + 1, channels).double().index_add(1, table.flatten() % (sites + 1), scattered)
    assert_close(dx, want[:, :sites], tolerance)
    assert dx[:, 2].abs().max() == 0
    assert_close(dw, torch.einsum("bptc,bpf->ptcf", windows, exact), tolerance)
    assert dw[table < 0].abs().max() == 0


@pytest.mark.parametrize("name", ["1d_stride_same", pytest.param("2d_asymmetric", marks=pytest.mark.nightly)])
def test_the_table_of_a_grid_equals_local_conv(name):
    case = next(c for c in CASES if c.name == name)
    t = tensors(case)
    layer = gather_of_grid(case, t)
    x = t.x.clone().requires_grad_()
    with lc_triton.backend("triton"):
        y = layer(x.flatten(1, -2))
        (dx,) = torch.autograd.grad(y, x, t.g.reshape(y.shape))
    want = lc_triton.local_conv(x, t.weight, t.bias, **case.arguments, data_format="channels_last")
    assert_close(y, want.detach().view(y.shape))
    assert_close(dx, torch.autograd.grad(want, x, t.g)[0])


def test_vmap_of_a_backward_empty_batches_and_autocast():
    layer = lc_triton.LocalGather(4, [[0, -1], [2, 0]], 1, 2, activation="softmax")
    x = torch.randn(2, 4, 1, requires_grad=True)
    g = torch.randn(3, 2, 2, 2)
    with lc_triton.backend("triton"):
        y = layer(x)
        batched_grads = torch.func.vmap(lambda vector: torch.autograd.grad(y, x, vector, retain_graph=True)[0])(g)
        for one, vector in zip(batched_grads, g, strict=True):
            assert_close(one, torch.autograd.grad(y, x, vector, retain_graph=True)[0], 1e-6)
        assert layer(x[:0]).shape == (0, 2, 2)
        assert torch.autograd.grad(layer(x[:0]).sum(), layer.weight)[0].abs().sum() == 0
        with torch.autocast("cpu", torch.float16):
            half = layer(x)
        with pytest.raises(lc_triton.errors.DtypeError, match="weight has dtype float32"):
            layer(x.double())
    assert half.dtype == torch.float16
    assert_close(half, y.detach(), 2e-3)


@pytest.mark.slow
def test_an_optimizer_that_updates_in_backward(monkeypatch):
    layer = lc_triton.LocalGather(4, [[0, -1], [2, 0]], 1, 2)
    optimizer = lc_triton.FusedSGD(layer.parameters(), lr=0.1)
    x, before = torch.randn(2, 4, 1), layer.weight.detach().clone()
    (dw,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    monkeypatch.setattr(launch, "gather_weight_grad", None)
    with lc_triton.backend("triton"):
        layer(x).square().sum().backward()
        optimizer.step()
    assert_close(layer.weight.detach(), (before - 0.1 * dw).double(), 1e-6)
