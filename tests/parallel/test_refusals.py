"""Layers and inputs that ranks cannot share are refused with one message; ranges of rows, chunks and costs."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.utils import parametrize, prune

import lc_triton
from lc_triton import errors as E
from lc_triton.core.geometry import Geometry
from lc_triton.core.ranges import by_filters, by_rows, chunks, slab, splits_regions
from lc_triton.core.share import parse_share
from lc_triton.parallel import FilterParallel, PositionParallel, cost
from tests.cases import CASES, IDS

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("data", "positions"))
    dist.destroy_process_group()


def conv(**kwargs):
    return lc_triton.LocalConv2d(2, 4, 3, input_size=(6, 5), **kwargs)


def keras(**kwargs):
    return lc_triton.LocallyConnected2D(4, 3, input_shape=(6, 5, 2), **kwargs)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(name):
    return parametrize.register_parametrization(conv(), name, Twice())


ROWS = {"input_layouts": Shard(2), "output_layouts": Shard(2)}

APPLIED = [
    (lambda: nn.Conv2d(2, 4, 3), {}, E.ArgumentTypeError, "module must be a LocalConv1d, 2d, 3d or a LocallyConnected"),
    (lambda: lc_triton.LazyLocalConv2d(4, 3), {}, E.NotBuiltError, "LazyLocalConv2d is not built: call it with an"),
    (lambda: lc_triton.LocallyConnected2D(4, 3), {}, E.NotBuiltError, "LocallyConnected2D is not built"),
    (lambda: lc_triton.LocalConvTranspose2d(2, 4, 3, 5), {}, E.ParallelError, "a transposed layer's output positions"),
    (
        conv,
        {"input_layouts": Shard(1)},
        E.ParallelError,
        "input_layouts=S(1) is not possible: this layer is split along",
    ),
    (keras, {"output_layouts": Shard(2)}, E.ParallelError, "is split along the rows, Shard(1)"),
    (
        lambda: conv(padding=1, padding_mode="reflect"),
        ROWS,
        E.ParallelError,
        "padding_mode='reflect' needs the whole input on every rank: input_layouts=Replicate()",
    ),
    (lambda: keras(kernel_regularizer="l2"), {}, E.ParallelError, "kernel_regularizer needs the whole weight on every"),
    (
        lambda: parametrized("weight"),
        {},
        E.ParallelError,
        "weight is computed by a parametrization, a pruning",
    ),
    (lambda: parametrized("bias"), {}, E.ParallelError, "bias is computed by a parametrization"),
    (lambda: prune.identity(keras(), "weight"), {}, E.ParallelError, "share the layer first and parametrize it then"),
    (lambda: keras(bias_constraint="non_neg"), {}, E.ParallelError, "bias_constraint needs the whole weight"),
    (
        lambda: lc_triton.quantize_weights(conv(), "int8"),
        {},
        E.ParallelError,
        "its weight is quantized, which only one process can have",
    ),
]


@pytest.mark.parametrize(("make", "arguments", "kind", "message"), APPLIED)
def test_layers_that_cannot_be_shared(make, arguments, kind, message, mesh):
    layer = make()
    with pytest.raises(kind) as caught:
        parallelize_module(layer, mesh["positions"], PositionParallel(**arguments))
    assert message in str(caught.value)
    assert all(type(p) is not type(distribute_tensor(torch.zeros(1), mesh["positions"])) for p in layer.parameters())


def test_meshes_of_two_dimensions_and_shared_layers_are_refused(mesh):
    with pytest.raises(
        E.ParallelError, match=r'the mesh has 2 dimensions: give one of them, such as mesh\["positions"'
    ):
        PositionParallel()._apply(conv(), mesh)
    layer = parallelize_module(conv(), mesh["positions"], PositionParallel())
    with pytest.raises(E.ParallelError, match="ranks share this layer already"):
        parallelize_module(layer, mesh["positions"], FilterParallel())


@pytest.mark.parametrize("layout", [Partial(), "rows", 2])
def test_layouts_of_another_kind(layout):
    with pytest.raises(E.ArgumentTypeError, match=r"input_layouts must be None, Replicate\(\) or Shard\(dim\), got"):
        PositionParallel(input_layouts=layout)


CALLED = [
    (
        conv,
        {},
        (2, 2, 7, 5),
        E.SpatialSizeError,
        "x has spatial size (7, 5) but this layer's filters were made for (6, 5)",
    ),
    (conv, {}, (2, 3, 6, 5), E.ChannelError, "x has 3 channels but the weight is for 2"),
    (
        conv,
        ROWS,
        (2, 2, 7, 5),
        E.PartShapeError,
        "rank 0 of 1 must be given ((6, 5), 2) of x (spatial size, channels), its part as torch.chunk splits "
        "((6, 5), 2), got ((7, 5), 2) from x.shape=(2, 2, 7, 5)",
    ),
    (
        lambda: conv(activation=nn.ReLU()),
        ROWS,
        (2, 2, 6, 5),
        E.ParallelError,
        "ReLU() would see one rank's part of the",
    ),
    (
        lambda: conv(activation=torch.tanh),
        ROWS,
        (2, 2, 6, 5),
        E.ParallelError,
        "would see one rank's part of the output",
    ),
    (
        lambda: keras(activity_regularizer="l2"),
        {"output_layouts": Shard(1)},
        (2, 6, 5, 2),
        E.ParallelError,
        "would see one rank's part of the output: gather it, output_layouts=Replicate()",
    ),
]


@pytest.mark.parametrize(("make", "arguments", "shape", "kind", "message"), CALLED)
def test_inputs_that_do_not_fit(make, arguments, shape, kind, message, mesh):
    layer = parallelize_module(make(), mesh["positions"], PositionParallel(**arguments))
    with pytest.raises(kind) as caught:
        layer(torch.zeros(shape))
    assert message in str(caught.value)


def test_softmax_over_split_filters_is_refused(mesh):
    style = FilterParallel(output_layouts=Shard(1))
    layer = parallelize_module(conv(activation="softmax"), mesh["positions"], style)
    with pytest.raises(E.ParallelError, match="'softmax' would see one rank's part of the output"):
        layer(torch.zeros(2, 2, 6, 5))


def test_an_input_on_another_mesh(mesh):
    layer = parallelize_module(conv(), mesh["positions"], PositionParallel())
    x = distribute_tensor(torch.zeros(2, 2, 6, 5), mesh, [Replicate(), Replicate()])
    with pytest.raises(E.ParallelError, match=r"x lies on .* the layer on"):
        layer(x)


def test_filters_that_straddle_groups():
    with pytest.raises(E.ParallelError, match="filters 2 to 4 of one rank belong to several of 2 groups of 3"):
        by_filters(Geometry.make((5,), 4, 6, 3, groups=2), 3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_rows_computed_owned_and_read_by_ranks(case, ranks):
    """A rank reads the rows that its output rows read, and its slab has as many output rows."""
    geo = case.geometry
    computed, owned, read = by_rows(geo, ranks)
    parts = torch.arange(geo.out_spatial[0]).chunk(ranks)
    assert [list(rows) for rows in computed if rows] == [part.tolist() for part in parts]
    assert [i for rows in owned for i in rows] == list(range(geo.in_spatial[0]))
    for rows, sites in zip(computed, read, strict=True):
        rows_read = {
            row * geo.stride[0] + tap * geo.dilation[0] - geo.padding[0][0]
            for row in rows
            for tap in range(geo.kernel[0])
        }
        footprint = range(min(rows_read, default=0), max(rows_read, default=-1) + 1)
        assert list(sites) == [row for row in footprint if row in range(geo.in_spatial[0])]
        if rows:
            assert slab(geo, rows).out_spatial == (len(rows), *geo.out_spatial[1:])


def test_chunks_equal_torchs():
    for size in range(1, 12):
        for ranks in range(1, 9):
            found = [len(part) for part in chunks(size, ranks)]
            assert found == [len(part) for part in torch.arange(size).chunk(ranks)] + [0] * found.count(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rows", 1, 1), "kind 'rows' is not known"),
        (("data", 0, 1), "batch must be an integer >= 1, got 0"),
        (("data", 1, 0), "ranks must be an integer >= 1, got 0"),
    ],
)
def test_cost_refuses_wrong_arguments(arguments, message):
    kind, batch, ranks = arguments
    with pytest.raises(E.LocalConvError, match=message):
        cost(kind, Geometry.make((5,), 2, 2, 3), batch, ranks)


def geometry_with_share(share):
    return Geometry.make((8, 7), 2, 2, 3, regions=parse_share(share, 2))  # 6 rows


@pytest.mark.parametrize(
    ("share", "ranks", "is_split"),
    [
        *((None, 4, True), ("rows", 4, True), ("all", 2, False), ("columns", 2, False), (("tile", 3), 2, False)),
        *(((3, 1), 2, True), ((2, 2), 3, True), ((2, 2), 6, None), ((4, 1), 2, None), ((9, 1), 2, False)),
    ],
)
def test_shares_that_are_split_over_ranks(share, ranks, is_split):
    geometry = geometry_with_share(share)
    if is_split is not None:
        assert splits_regions(geometry, ranks) == is_split
        return
    cut = -(-6 // ranks)
    message = f"share has blocks of {share[0]} rows, and {ranks} ranks would cut one at row {cut}: take blocks or a"
    with pytest.raises(E.ParallelError, match=message):
        splits_regions(geometry, ranks)
    with pytest.raises(E.ParallelError, match=message):
        cost("positions", geometry, 4, ranks)


def test_a_layer_whose_blocks_would_be_cut_is_left_unchanged(mesh, monkeypatch):
    layer = conv(share=(3, 1))
    monkeypatch.setattr("lc_triton.parallel.part.splits_regions", lambda geometry, _: splits_regions(geometry, 3))
    with pytest.raises(E.ParallelError, match="would cut one at row 2"):
        parallelize_module(layer, mesh["positions"], PositionParallel())
    assert type(layer.weight) is nn.Parameter


def test_costs_of_data_parallel_layers():
    """A layer of 3 positions: 3 * (3 * 2 * 2 + 2) = 42 numbers, of which each of 4 ranks owns 11; 3 of 10 samples."""
    found = cost("sharded data", Geometry.make((5,), 2, 2, 3), 10, 4)
    assert (found.weights, found.transient, found.activations) == (11 * (2 * 2 + 12), 2 * 42 * 2, 3 * (10 + 6) * 2)
    assert (found.sent_forward, found.sent_backward) == (42 * 2 * 3 // 4, 2 * (42 * 2 * 3 // 4))
    assert found.held == 11 * 16 + 168 + 96
    whole = cost("data", Geometry.make((5,), 2, 2, 3), 10, 4)
    assert (whole.weights, whole.held, whole.sent) == (42 * 16, 42 * 16 + 96, 2 * (42 * 2 * 3 // 4))


def test_costs_of_shared_filters():
    assert (
        cost("filters", geometry_with_share("rows"), 4, 2).weights
        < cost("filters", geometry_with_share(None), 4, 2).weights
    )
    rows, one = (
        cost("positions", geometry_with_share("rows"), 4, 2),
        cost("positions", geometry_with_share("all"), 4, 2),
    )
    assert rows.sent_backward < one.sent_backward
