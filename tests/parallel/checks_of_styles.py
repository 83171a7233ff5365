"""Both styles: values, and gradients of any order, equal those of one process for all layouts."""

import torch
from torch import nn
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import parallelize_module

import lc_triton
from lc_triton import errors
from lc_triton.core.ranges import by_filters
from lc_triton.parallel import FilterParallel, PositionParallel
from tests.cases import CASES, Case, assert_close, expected, tensors
from tests.parallel import ranks
from tests.parallel.networks import data, full, network, shared
from tests.shared_cases import SHARED

LAYERS = {1: lc_triton.LocalConv1d, 2: lc_triton.LocalConv2d, 3: lc_triton.LocalConv3d}


def layer_of(case, t, **kwargs):
    """A layer in torch's convention with a case's weights."""
    geo = case.geometry
    kind = LAYERS[geo.ndim]
    layer = kind(
        case.channels, case.filters, case.kernel, case.in_spatial, dtype=t.weight.dtype, **case.arguments, **kwargs
    )
    with torch.no_grad():
        layer.weight.copy_(t.weight)
        if layer.bias is not None:
            layer.bias.copy_(t.bias if layer.bias.ndim > 1 else t.bias.flatten(0, -2)[0])
    return layer


def channels_first(tensor):
    """Move the channels of a tensor to the front."""
    return tensor.movedim(-1, 1)


def assert_geometries(mesh, cases, kind, dim, axis):
    """Compare each rank's part with the definition; `dim` splits input and output, and `axis` the weights."""
    split = Shard(dim)

    def part(tensor, is_split):
        return ranks.local_part(tensor, mesh, dim) if is_split else tensor

    for number, case in enumerate(cases):
        t = tensors(case)
        want = expected(case, t)
        splits = [(False, False), (True, True)]
        for split_in, split_out in splits if number else [*splits, (False, True), (True, False)]:
            style = kind(input_layouts=split if split_in else None, output_layouts=split if split_out else None)
            layer = parallelize_module(layer_of(case, t), mesh, style, src_data_rank=None)
            x = part(channels_first(t.x), split_in).clone().requires_grad_()
            y = layer(x)
            dx, *gradients = torch.autograd.grad(y, [x, *layer.parameters()], part(channels_first(t.g), split_out))
            name = f"{case.name} {split_in} {split_out}"
            assert_close(y, part(channels_first(want["y"]), split_out), name=name)
            assert_close(dx, part(channels_first(want["dx"]), split_in), name=name)
            for gradient, exact in zip(gradients, (want["dw"], want["db"]), strict=True):
                assert gradient.placements == (Shard(axis % exact.ndim),), name
                assert_close(gradient.to_local(), ranks.local_part(exact, mesh, axis), name=name)


def check_positions_of_every_geometry(mesh, folder):
    assert_geometries(mesh, CASES, PositionParallel, 2, 0)


def check_filters_of_every_geometry(mesh, folder):
    def fits(case):
        try:
            return bool(by_filters(case.geometry, mesh.size()))
        except errors.ParallelError:
            return False

    in_groups = Case("in_groups", (4, 5), 4, 8, 3, groups=2), Case("whole_groups", (4, 5), 4, 8, 3, groups=4)
    assert_geometries(mesh, [*in_groups, *filter(fits, CASES[::3]), *filter(fits, SHARED[::5])], FilterParallel, 1, -1)


def penalized(net, x):
    """The loss, first derivatives, and gradients of a loss that contains first derivatives."""
    x = x.clone().requires_grad_()
    parameters = list(net.parameters())
    loss = net(x).square().sum()
    dx, *dp = torch.autograd.grad(loss, [x, *parameters], create_graph=True)
    penalty = dx.pow(3).sum() + sum(full(d.square().sum()) for d in dp)
    found = torch.autograd.grad(loss + penalty, [x, *parameters])
    return [full(d).detach() for d in (loss, dx, *dp, *found)]


def check_gradients_of_second_order(mesh, folder):
    for layout, rows, activation in [
        ("whole", 6, "tanh"),
        ("whole", 3, "gelu"),
        ("rows between", 3, "tanh"),
        ("rows between", 6, ("leaky_relu", 0.1)),
        ("DTensors between", 3, "gelu"),
    ]:
        x = data(rows)
        want = penalized(network(activation, rows), x)
        got = penalized(shared(mesh, network(activation, rows), layout), x)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_close(a, b, 1e-10, f"{layout} {rows} {activation} {i}")


def check_third_order(mesh, folder):
    def third(net):
        x = data(3).requires_grad_()
        out = net(x).sum()
        for _ in range(3):
            (out,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return out

    assert_close(third(shared(mesh, network(rows=3))), third(network(rows=3)).detach(), 1e-9)


def check_training_of_single_parameters(mesh, folder):
    """If only a weight, only a bias or only the input needs gradients, ranks still agree on the communication."""
    for names in (["0.weight"], ["1.bias"], [], ["3.weight"]):

        def run(net, names=names):
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(name in names)
            x = data(3).requires_grad_(not names)
            net(x).square().sum().backward()
            return [x.grad, *(full(p.grad) if p.grad is not None else None for p in net.parameters())]

        for got, want in zip(run(shared(mesh, network(rows=3))), run(network(rows=3)), strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                assert_close(got, want)


def normalized(y):
    return y / y.norm()


def check_formats_and_arguments(mesh, folder):
    conv, keras = lc_triton.LocalConv2d, lc_triton.LocallyConnected2D
    one = torch.randn(2, 7, 5, dtype=torch.float64)
    batch = torch.randn(3, 7, 5, 2, dtype=torch.float64)
    for make, x in [
        (lambda: conv(2, 4, 3, (7, 5), activation="softmax"), one),
        (lambda: conv(2, 4, 3, (7, 5), padding=1, padding_mode="reflect"), one),
        (lambda: conv(2, 4, 3, (7, 5), padding=1, padding_mode=("zeros", "circular")), one),
        (lambda: conv(2, 4, 3, (7, 5), padding=2, padding_mode="circular", stride=2), channels_first(batch)),
        (lambda: conv(2, 4, 3, (7, 5), bias="channel"), channels_first(batch)),
        (lambda: conv(2, 4, 3, (7, 5), bias=False, activation=nn.PReLU()), channels_first(batch)),
        (lambda: conv(2, 4, 3, (7, 5), activation=normalized), channels_first(batch)),
        (lambda: keras(4, 3, input_shape=(7, 5, 2), activation="relu", activity_regularizer="l2"), batch),
        (
            lambda: keras(4, 3, padding="same", input_shape=(2, 7, 5), data_format="channels_first"),
            channels_first(batch),
        ),
        (lambda: lc_triton.LocallyConnected1D(3, 2, 2, input_shape=(9, 2)), torch.randn(2, 9, 2, dtype=torch.float64)),
    ]:
        torch.manual_seed(3)
        single = make().double()
        torch.manual_seed(3)
        layer = parallelize_module(make().double(), mesh, PositionParallel())
        x, single_x = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, want = layer(x), single(single_x)
        assert_close(y, want.detach(), name=str(single))
        assert y.stride() == want.stride(), single
        losses = [out.pow(3).sum() + lc_triton.regularization_loss(net) for out, net in ((y, layer), (want, single))]
        for loss in losses:
            loss.backward()
        assert_close(x.grad, single_x.grad, name=str(single))
        for p, q in zip(layer.parameters(), single.parameters(), strict=True):
            assert_close(full(p.grad), q.grad, name=str(single))


def check_dtypes(mesh, folder):
    """16-bit inputs with weights of 16 or 32 bits, and autocast, also on empty ranks."""
    for dtype, weight_dtype, autocast in [
        (torch.bfloat16, torch.bfloat16, False),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.float32, False),
        (torch.float32, torch.float32, True),
    ]:
        case = CASES[6]
        t = tensors(case, dtype, weight_dtype=weight_dtype)
        found = []
        for layout in (None, Shard(2)):
            layer = layer_of(case, t)
            if layout is not None:
                layer = parallelize_module(layer, mesh, PositionParallel())
            x = channels_first(t.x).clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = layer(x)
            dx, dw, db = torch.autograd.grad(y, [x, layer.weight, layer.bias], torch.ones_like(y))
            found.append([y.detach(), dx, full(dw), full(db)])
        for got, want in zip(*reversed(found), strict=True):
            assert got.dtype == want.dtype
            assert_close(got, want.double(), 2 * torch.finfo(torch.bfloat16).eps)
