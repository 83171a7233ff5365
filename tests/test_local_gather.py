"""LocalGather: positions that read any sites, beside a definition position by position, and local_conv on a grid."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton import errors as E
from lc_triton.ops import gather as ours
from tests.cases import CASES, IDS, assert_close, tensors
from tests.errors.checking import check_message, parametrize_errors

TABLES = {
    "distinct": [[0, 1], [3, 2], [4, 6]],
    "duplicates": [[0, 0, 0], [0, 5, 0], [6, 6, 5]],
    "masks": [[0, -1, 1], [-1, -1, 2], [-1, 3, -1]],
    "empty_rows": [[-1, -1], [2, 3], [-1, -1], [3, 2]],
    "nothing": [[-1], [-1]],
    "one": [[6]],
    "all": [list(range(7))] * 5,
}
EACH = pytest.mark.parametrize("name", TABLES)


def definition(layer, x, table, activation=lambda y: y):
    """The output, summed position by position and neighbour by neighbour."""
    rows = []
    for p, row in enumerate(table):
        y = x.new_zeros(len(x), layer.out_channels)
        for t, site in enumerate(row):
            if site >= 0:
                y = y + x[:, site] @ layer.weight[p, t]
        rows.append(y if layer.bias is None else y + layer.bias[p])
    return activation(torch.stack(rows, 1))


@EACH
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_the_sum_over_the_neighbours(name, bias):
    torch.manual_seed(0)
    table = TABLES[name]
    layer = lc_triton.LocalGather(7, table, 2, 3, bias=bias, activation="tanh", dtype=torch.float64)
    x = torch.randn(4, 7, 2, dtype=torch.float64, requires_grad=True)
    y, want = layer(x), definition(layer, x, table, torch.tanh)
    assert_close(y, want.detach())
    want = want + 0 * x.sum()  # depends on x even if no site is read
    g, leaves = torch.randn_like(y), [x, *layer.parameters()]
    found = torch.autograd.grad(y, leaves, g)
    for got, exact in zip(found, torch.autograd.grad(want, leaves, g, allow_unused=True), strict=True):
        assert_close(got, torch.zeros_like(got) if exact is None else exact)
    absent = torch.tensor(table) < 0
    assert found[1][absent].abs().sum() == 0
    unread = set(range(7)) - {site for row in table for site in row}
    assert found[0][:, sorted(unread)].abs().sum() == 0


@EACH
def test_the_adjoint_of_the_gather(name):
    neighbours = torch.tensor(TABLES[name])
    table = ours.table_of(neighbours, 7, ours.inverse_of(neighbours, 7))
    matrix = torch.zeros(neighbours.numel(), 7, dtype=torch.float64)
    for tap, site in enumerate(neighbours.flatten().tolist()):
        if site >= 0:
            matrix[tap, site] = 1
    x, g = torch.randn(2, 7, 3).double(), torch.randn(2, neighbours.numel(), 3).double()
    assert torch.equal(ours.gather(x, table), matrix @ x)
    assert_close(ours.spread(g, table), matrix.T @ g)
    taps_of_sites = torch.cat([taps.flatten() for _, taps in table.inverse]) if table.inverse else torch.zeros(0)
    assert sorted(taps_of_sites.tolist()) == (neighbours.flatten() >= 0).nonzero().flatten().tolist()  # each tap once
    assert all(len(set(sites.tolist())) == len(sites) for sites, _ in table.inverse)
    if table.absent is not None:  # the gradient of an absent neighbour reaches no site
        g[:, table.absent] = float("nan")
        assert ours.spread(g, table).isfinite().all()


def test_a_site_that_many_positions_read():
    torch.manual_seed(0)
    table = torch.randint(-1, 4, (300, 5))
    layer = lc_triton.LocalGather(4, table, 1, 1, bias=False, dtype=torch.float64)
    x = torch.randn(2, 4, 1, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).sum(), x)
    want = torch.stack([layer.weight.detach()[table == site].sum() for site in range(4)])
    assert_close(dx, want.view(1, 4, 1).expand(2, 4, 1))
    (rebuilt,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(dx, rebuilt)


def test_an_absent_neighbour_does_not_read_a_nan():
    layer = lc_triton.LocalGather(3, [[1, -1], [2, -1]], 1, 1)
    x = torch.tensor([float("nan"), 1.0, 2.0]).view(1, 3, 1).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert layer.weight.grad.isfinite().all()


GRIDS = [case for case in CASES if case.groups == 1]


def gather_of_grid(case, t):
    """A LocalGather with the windows of a grid, found by a convolution of the numbers of the sites."""
    geo = case.geometry
    numbers = torch.arange(1, geo.sites + 1, dtype=torch.float64).view(1, 1, *geo.in_spatial)
    one_hot = torch.eye(geo.taps, dtype=torch.float64).view(*geo.kernel, 1, geo.taps)
    reads = lc_triton.local_conv(
        numbers, one_hot.expand(*geo.out_spatial, *one_hot.shape).contiguous(), **case.arguments
    )
    table = (reads.movedim(1, -1).view(geo.positions, geo.taps) - 1).long()  # padding, which reads 0, is -1
    layer = lc_triton.LocalGather(geo.sites, table, case.channels, case.filters, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(t.weight.view(layer.weight.shape))
        layer.bias.copy_(t.bias.view(layer.bias.shape))
    return layer


@pytest.mark.parametrize("case", GRIDS, ids=[name for name in IDS if "groups" not in name and "depth" not in name])
def test_the_table_of_a_grid_equals_local_conv(case):
    t = tensors(case)
    layer, x, g = gather_of_grid(case, t), t.x.clone().requires_grad_(), t.g
    want = lc_triton.local_conv(x, t.weight, t.bias, **case.arguments, data_format="channels_last")
    y = layer(x.flatten(1, -2))
    assert_close(y, want.detach().view(y.shape))
    (dx,), (exact,) = (torch.autograd.grad(of, x, g.reshape(of.shape)) for of in (y, want))
    assert_close(dx, exact)


def test_forms_of_neighbours():
    table = torch.tensor([[0, 1, 2], [3, -1, -1], [-1, -1, -1], [4, 0, -1]])
    indptr, indices = [0, 3, 4, 4, 6], [0, 1, 2, 3, 4, 0]
    sparse = torch.sparse_csr_tensor(indptr, [0, 1, 2, 3, 0, 4], torch.ones(6), (4, 5))
    forms = (
        table.tolist(),
        table.numpy(),
        table.int(),
        (indptr, indices),
        (torch.tensor(indptr), torch.tensor(indices)),
    )
    for form in forms:
        assert torch.equal(lc_triton.LocalGather(5, form, 1, 1).neighbours, table)
    assert torch.equal(lc_triton.LocalGather(5, sparse, 1, 1).neighbours.sort(1)[0], table.sort(1)[0])
    layer = lc_triton.LocalGather(5, table, 1, 1)
    table.zero_()
    assert layer.neighbours.max() == 4
    assert lc_triton.LocalGather(5, ([0, 0, 0], []), 1, 1).weight.shape == (2, 1, 1, 1)


def test_parameters_are_drawn_with_the_fan_of_each_position():
    table = torch.full((2, 400), -1)
    table[0, 0], table[1] = 1, 1
    layer = lc_triton.LocalGather(3, table, 4, 5)
    assert 0.4 < layer.weight[0].abs().max() <= 0.5
    assert 0.024 < layer.weight[1].abs().max() <= 0.025
    assert layer.bias[1].abs().max() <= 0.025


def test_assigning_another_table():
    layer = lc_triton.LocalGather(7, TABLES["masks"], 2, 3, dtype=torch.float64)
    x = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    table = [[5, 6, 5], [-1, 0, -1], [2, 3, 4]]
    layer.neighbours = torch.tensor(table)
    exact_y, upstream = definition(layer, x, table), torch.randn(2, 3, 3, dtype=torch.float64)
    y = layer(x)
    assert_close(y, exact_y)
    for got, want in zip(
        torch.autograd.grad(y, [x, layer.weight], upstream),
        torch.autograd.grad(exact_y, [x, layer.weight], upstream),
        strict=True,
    ):
        assert_close(got, want)
    assert copy.deepcopy(layer).state_dict()["neighbours"].tolist() == table


def test_state_dicts_hold_the_table():
    first, second = (lc_triton.LocalGather(4, table, 2, 3) for table in ([[0, 1], [2, 2]], [[3, -1], [1, 0]]))
    x = torch.randn(2, 4, 2, requires_grad=True)
    second.load_state_dict(first.state_dict())
    copied = copy.deepcopy(second)
    for layer in (second, copied):
        assert torch.equal(layer(x), first(x))
        (dx,), (want,) = (torch.autograd.grad(of(x).square().sum(), x) for of in (layer, first))
        assert torch.equal(dx, want)
    assert set(first.state_dict()) == {"weight", "bias", "neighbours"}
    wrong = first.state_dict() | {"neighbours": torch.tensor([[0, 1], [2, 4]])}
    with pytest.raises(E.ArgumentValueError, match="an entry of neighbours must be sites from 0 to 3"):
        second.load_state_dict(wrong)
    assert torch.equal(second(x), first(x))


def make(neighbours=((0, 1), (1, 2)), sites=4, **kwargs):
    neighbours = list(map(list, neighbours)) if isinstance(neighbours, tuple) else neighbours
    return lc_triton.LocalGather(sites, neighbours, **{"in_channels": 2, "out_channels": 3} | kwargs)


def rows(indptr, indices):
    return lc_triton.LocalGather(4, (indptr, indices), 2, 3)


CALLS = [
    (lambda: make(sites=0), E.ArgumentValueError, "sites must be an integer >= 1, got 0"),
    (lambda: make(in_channels=0), E.ArgumentValueError, "in_channels must be an integer >= 1, got 0"),
    (lambda: make(bias="channel"), E.ArgumentTypeError, "bias must be True or False"),
    (
        lambda: make([[0, 4]]),
        E.ArgumentValueError,
        "must be sites from 0 to 3, or -1 for none, got 4",
    ),
    (lambda: make([[0, -2]]), E.ArgumentValueError, "or -1 for none, got -2"),
    (lambda: make([[0.0, 1.0]]), E.ArgumentTypeError, "neighbours must be a table (P, T) of integers"),
    (lambda: make([[0], [1, 2]]), E.ArgumentTypeError, "neighbours must be a table (P, T) of integers"),
    (lambda: make("0 1"), E.ArgumentTypeError, "neighbours must be a table (P, T) of integers"),
    (lambda: make([0, 1]), E.RankError, "neighbours must have 2 dimension(s)"),
    (lambda: make([]), E.RankError, "neighbours must have 2 dimension(s)"),
    (lambda: make(torch.zeros(0, 2, dtype=torch.long)), E.ArgumentValueError, "of at least one position"),
    (lambda: rows([0, 2, 1], [0, 1]), E.ArgumentValueError, "positions + 1 numbers that rise from 0 to 2"),
    (lambda: rows([1, 2], [0, 1]), E.ArgumentValueError, "indptr must be positions + 1 numbers"),
    (lambda: rows([0], []), E.ArgumentValueError, "indptr must be positions + 1 numbers"),
    (lambda: rows([0, 2], [0, -1]), E.ArgumentValueError, "rows have no absent neighbours"),
    (lambda: rows([0, 1], [4]), E.ArgumentValueError, "an entry of neighbours must be sites from 0 to 3"),
    (lambda: lc_triton.LocalGather(4, ([0], [1], [2]), 1, 1), E.ArgumentTypeError, "or a pair (indptr, indices)"),
    (
        lambda: make(torch.sparse_csr_tensor([0, 1], [0], torch.ones(1), (1, 5))),
        E.ArgumentValueError,
        "neighbours.shape must be a matrix of 4 columns, one a site",
    ),
    (lambda: make()(torch.zeros(1, 3, 2)), E.ArgumentValueError, "(B, sites, in_channels) = (B, 4, 2)"),
    (lambda: make()(torch.zeros(4)), E.RankError, "(B, sites, in_channels) = (B, 4, 2)"),
    (lambda: make()(torch.zeros(1, 4, 2).double()), E.DtypeError, "float64"),
    (lambda: make(device="meta")(torch.zeros(1, 4, 2)), E.ArgumentValueError, "load a state dict with assign=True"),
    (lambda: setattr(make(), "sites", 5), E.AttributeChangeError, "sites of LocalGather cannot be set to 5"),
    (lambda: torch.fx.symbolic_trace(nn.Sequential(make())), E.ArgumentTypeError, "keep the layer whole"),
    (lambda: make()(torch.zeros(1, 4, 2, device="meta")), E.DeviceMismatchError, "x on meta, neighbours on cpu"),
    (lambda: setattr(make([[0, 1]]), "neighbours", [[0, 4]]), E.ArgumentValueError, "sites from 0 to 3"),
    (lambda: setattr(make([[0, 1]]), "neighbours", [[0]]), E.ArgumentValueError, "neighbours.shape must be (1, 2)"),
    (lambda: setattr(make(), "neighbours", None), E.ArgumentTypeError, "neighbours must be a table (P, T)"),
]


@parametrize_errors(CALLS)
def test_errors(call, kind, message):
    check_message(call, kind, message)


def test_positions_that_all_have_no_neighbours():
    layer = lc_triton.LocalGather(6, torch.zeros(2, 0, dtype=torch.long), 3, 4)
    nn.init.normal_(layer.bias)
    y = layer(torch.full((5, 6, 3), float("nan")))
    assert torch.equal(y, layer.bias.expand(5, 2, 4))
    assert layer.neighbours.tolist() == [[-1], [-1]]


def test_an_optimizer_sees_that_a_layer_ran_in_evaluation_mode():
    layer, same = (lc_triton.LocalGather(4, [[0, 1], [2, -1]], 3, 2, dtype=torch.float64) for _ in range(2))
    same.load_state_dict(layer.state_dict())
    x = torch.rand(5, 4, 3, dtype=torch.float64)
    runs = [(layer, lc_triton.FusedAdamW(layer)), (same, torch.optim.AdamW(same.parameters(), lr=1e-3))]
    for module, optimizer in runs:
        module.eval()(x).square().sum().backward()
        said = pytest.warns(UserWarning, match="its layer ran in evaluation mode") if module is layer else nullcontext()
        with said:
            optimizer.step()
    assert_close(layer.weight.detach(), same.weight.detach(), 1e-12)


def test_what_it_prints():
    layer = lc_triton.LocalGather(6, [[0, 1], [2, -1]], 3, 4, bias=False, activation="relu")
    assert layer.extra_repr() == "6, neighbours=(2, 2), in_channels=3, out_channels=4, bias=False, activation='relu'"


def test_a_table_keeps_its_dtype():
    layer = lc_triton.LocalGather(6, [[0, 1], [2, -1]], 3, 4)
    x = torch.randn(2, 6, 3)
    right = layer(x).double()
    layer.type(torch.float64)
    assert (layer.neighbours.dtype, layer.weight.dtype) == (torch.int64, torch.float64)
    torch.testing.assert_close(layer(x.double()), right, atol=1e-5, rtol=0)
