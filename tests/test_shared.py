"""Filters that positions share: values, derivatives, memory, recorded programs and errors, on the CPU."""

import itertools
import threading
from dataclasses import replace

import pytest
import torch
from torch import library, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import lc_triton
from lc_triton import _cpu
from lc_triton import errors as E
from lc_triton._cpu import workspace
from lc_triton.core.activations import Activation
from lc_triton.core.problem import Problem
from lc_triton.core.share import parse_share, share_of
from lc_triton.ops import decompositions, operators, reference
from tests.cases import (
    Case,
    assert_as_accurate,
    assert_close,
    assert_results_close,
    expected,
    run,
    tensors,
    torch_results,
)
from tests.cpu_strategies import CpuStrategy
from tests.shared_cases import SHARED

IDS = [case.name for case in SHARED]
BY_NAME = {case.name: case for case in SHARED}


def regions_by_position(case):
    """The region of every position, in row-major order, and the number of regions in each dimension."""
    geo = case.geometry
    share, ndim = case.share, geo.ndim
    regions = []
    for position in itertools.product(*map(range, geo.out_spatial)):
        if share == "all":
            region = (0,) * ndim
        elif share == "rows":
            region = (*position[:-1], 0)
        elif share == "columns":
            region = (*position[:-2], 0, position[-1])
        elif isinstance(share, int):
            region = tuple(p // share for p in position)
        elif share[0] == "tile":
            periods = share[1:] if len(share) == 1 + ndim else share[1:] * ndim
            region = tuple(p % n for p, n in zip(position, periods, strict=True))
        else:
            region = tuple(p // n for p, n in zip(position, share, strict=True))
        regions.append(region)
    return regions, tuple(1 + max(r[d] for r in regions) for d in range(ndim))


@pytest.mark.parametrize("case", SHARED, ids=IDS)
def test_the_definition_gives_each_position_the_filters_of_its_region(case):
    geo, t = case.geometry, tensors(case)
    regions, counts = regions_by_position(case)
    assert t.weight.shape == (*counts, *geo.kernel, geo.in_channels // geo.groups, geo.out_channels)
    unshared = torch.stack([t.weight[region] for region in regions]).view(*geo.out_spatial, *t.weight.shape[geo.ndim :])
    want = reference.forward(t.x, unshared, t.bias, replace(geo, regions=()))
    assert torch.equal(reference.forward(t.x, t.weight, t.bias, geo), want)
    assert share_of(geo) is not None
    assert replace(geo, regions=parse_share(share_of(geo), geo.ndim)) == geo


@pytest.mark.parametrize("block_bytes", [None, 600, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("case", SHARED, ids=IDS)
def test_values(case, block_bytes):
    with CpuStrategy(block_bytes=block_bytes, most_bytes=None if block_bytes is None else 500).applied():
        t = tensors(case)
        assert_results_close(run(case, t, activation="tanh"), expected(case, t, Activation("tanh")))
        channel = t.bias.reshape(-1, t.bias.shape[-1])[0].clone()
        got, want = run(case, t, channel), expected(case, t, bias=channel)
        assert_results_close(got, want)


@pytest.mark.parametrize("name", ["rows", "all_groups", "block_depthwise", "1d_tile"])
def test_derivatives_of_any_order(name):
    case = BY_NAME[name]
    t = tensors(replace(case, batch=1))
    leaves = [v.clone().requires_grad_() for v in (t.x, t.weight, t.bias)]

    def call(x, weight, bias):
        return lc_triton.local_conv(x, weight, bias, **case.arguments, activation="gelu", data_format="channels_last")

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rows", "all_groups", "block", "1d_tile"])
def test_accuracy_is_that_of_torchs_matmul(name, dtype):
    case = replace(BY_NAME[name], batch=5)
    for seed in range(3):
        t = tensors(case, dtype, seed=seed)
        got, want, of_torch = run(case, t), expected(case, t), torch_results(case, t)
        for key, factor in {"y": 2, "dx": 3, "dw": 3, "db": 3}.items():
            assert_as_accurate(got[key], want[key], of_torch[key], factor, key)


SHARED_BY_ALL = ("all", "all_groups", "1d_all", "3d_all", "all_one_channel")


@pytest.mark.parametrize("activation", ["linear", "relu", "gelu"])
@pytest.mark.parametrize("name", SHARED_BY_ALL)
def test_float32_layers_with_one_set_of_filters(name, activation):
    """Torch's convolution computes these layers, with the same padding on both sides."""
    more = {
        "3d_all": Case("3d_all", (4, 3, 5), 2, 4, 2, stride=(1, 2, 1), padding=1, share="all"),
        "all_one_channel": Case("all_one_channel", (6, 5), 1, 1, 3, padding=1, share="all", batch=5),
    }
    case = more.get(name) or BY_NAME[name]
    t = tensors(case, torch.float32)
    got, want = run(case, t, activation=activation), expected(case, t, Activation(activation))
    for key in ("y", "dx", "dw", "db"):
        assert_close(got[key], want[key], 2e-6, key)


@pytest.mark.parametrize("activation", ["gelu", "mish", "hardswish", "silu", "softmax"])
def test_activations(activation):
    """Some of torch's activations take at most twelve dimensions, and a box of positions has more."""
    t = tensors(BY_NAME["block"], torch.float32)
    arguments = {**BY_NAME["block"].arguments, "data_format": "channels_last", "activation": activation}
    with lc_triton.backend("reference"):
        want = lc_triton.local_conv(t.x, t.weight, t.bias, **arguments)
    assert_close(lc_triton.local_conv(t.x, t.weight, t.bias, **arguments), want.double(), 1e-6)


def test_float32_weights_beside_a_16_bit_input():
    t = tensors(BY_NAME["block"], torch.bfloat16, weight_dtype=torch.float32)
    got, want = run(BY_NAME["block"], t), expected(BY_NAME["block"], t)
    assert [got[k].dtype for k in ("y", "dx", "dw", "db")] == [torch.bfloat16] * 2 + [torch.float32] * 2
    for name, tolerance in {"y": 2e-2, "dx": 2e-2, "dw": 1e-6, "db": 1e-6}.items():
        assert_close(got[name], want[name], tolerance, name)


@pytest.mark.parametrize("filters", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_region_of_few_filters(filters, batch):
    case = Case("all", (5, 4), 3, filters, 3, batch=batch, share="all")
    t = tensors(case, torch.float32)
    assert_results_close(run(case, t), expected(case, t), 1e-6)


@pytest.mark.parametrize("filters", [1, 2])
def test_one_region_of_one_channel(filters):
    """Torch 2.13's 3-D convolution computes wrong numbers for channels-last strides of one channel."""
    case = Case("3d_all", (4, 4, 4), 1, filters, (1, 3, 4), stride=(2, 1, 3), batch=17, share="all")
    t = tensors(case, torch.float32)
    assert_results_close(run(case, t), expected(case, t), 1e-6)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_one_region_is_a_convolution(ndim, groups):
    conv = getattr(nn, f"Conv{ndim}d")(4, 6, 3, stride=2, padding=1, groups=groups).double()
    x = torch.randn(2, 4, *(7, 6, 5)[:ndim], dtype=torch.float64, requires_grad=True)
    layer = getattr(lc_triton, f"LocalConv{ndim}d").from_conv(conv, x.shape[2:], bias="channel", share="all")
    assert layer.weight.numel() == conv.weight.numel()
    y, want = layer(x), conv(x)
    assert_close(y, want.detach(), 1e-13)
    g = torch.randn_like(want)
    got = torch.autograd.grad(y, [x, layer.weight, layer.bias], g)
    dx, dw, db = torch.autograd.grad(want, [x, conv.weight, conv.bias], g)
    for value, exact in zip(got, (dx, dw.movedim((0, 1), (-1, -2)).expand(got[1].shape), db), strict=True):
        assert_close(value, exact, 1e-12)


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest tensor that an operator returned, views included."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor):
                self.bytes = max(self.bytes, t.nbytes)
        return out


@pytest.mark.parametrize("share", ["rows", "columns", "all", (4, 4), ("tile", 3, 2)], ids=str)
@pytest.mark.parametrize("passes", [_cpu, decompositions], ids=["passes", "decompositions"])
def test_no_tensor_of_the_unshared_size_is_made(share, passes, monkeypatch):
    monkeypatch.setattr(workspace, "_kept", threading.local())  # buffers of earlier calls may be larger
    case = Case("", (12, 12), 8, 64, 3, padding=1, batch=1, share=share)
    t, problem = tensors(case, torch.float32), Problem(case.geometry)
    unshared_bytes = replace(case, share=None).geometry.weight_numel * 4
    with LargestTensor() as largest:
        passes.forward(t.x, t.weight, t.bias, problem, store_z=True)
        passes.input_grad(t.g, t.weight, None, problem)
        passes.weight_grad(t.x, t.g, problem, torch.float32, with_bias=True)
    assert t.weight.nbytes <= largest.bytes < unshared_bytes / 4


@pytest.mark.parametrize("share", ["rows", "all", (4, 4), ("tile", 3, 2)], ids=str)
def test_a_conversion_between_regions_makes_no_tensor_of_the_unshared_size(share):
    layer = lc_triton.LocalConv2d(8, 64, 3, (12, 12), padding=1, share="all")
    with LargestTensor() as largest, torch.no_grad():
        layer.with_share(share)
    assert 0 < largest.bytes < 12 * 12 * layer.weight.nbytes / 4


def test_gradients_have_the_same_bits_each_time():
    case = replace(BY_NAME["block"], batch=64)
    t = tensors(case, torch.float32)
    one, other = run(case, t), run(case, t)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_empty_batch():
    layer = lc_triton.LocalConv2d(2, 3, 3, 5, share="rows")
    y = layer(torch.zeros(0, 2, 5, 5))
    assert y.shape == (0, 3, 3, 3)
    y.sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape
    assert not layer.weight.grad.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tile", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("columns", "3d_block"))]
)
def test_recorded_programs_compute_the_same(name):
    case = BY_NAME[name]
    t = tensors(case, torch.float32)
    cls = getattr(lc_triton, f"LocalConv{case.geometry.ndim}d")
    layer = cls(case.channels, case.filters, case.kernel, case.in_spatial, **case.arguments, activation="tanh")
    x = t.x.movedim(-1, 1)
    want = layer(x).detach()
    program = torch.export.export(layer, (x,))
    assert torch.equal(program.module()(x), want)
    assert_close(program.run_decompositions(lc_triton.decompositions()).module()(x), want.double(), 1e-6)
    assert torch.equal(torch.jit.trace(layer, x)(x), want)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(layer))(x), want)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    of_compiled, layer.weight.grad = layer.weight.grad, None
    layer(x).square().sum().backward()
    assert_close(of_compiled, layer.weight.grad.double(), 1e-6)
    meta = cls(case.channels, case.filters, case.kernel, case.in_spatial, **case.arguments, device="meta")
    assert meta(x.to("meta")).shape == want.shape
    with FlopCounterMode(display=False) as counted:
        layer(x).sum().backward()
    assert counted.get_total_flops() == 2 * case.geometry.flops(case.batch)  # x needs no gradient


@pytest.mark.parametrize("case", SHARED, ids=IDS)
def test_decomposed_passes_are_the_definition(case):
    t, problem = tensors(case), Problem(case.geometry)
    y, z = decompositions.forward(t.x, t.weight, t.bias, problem, store_z=True)
    dw, db = decompositions.weight_grad(t.x, t.g, problem, torch.float64, with_bias=True)
    dx = decompositions.input_grad(t.g, t.weight, None, problem)
    got, want = {"y": y, "z": z, "dx": dx, "dw": dw, "db": db}, expected(case, t)
    assert_results_close(got, want | {"z": want["y"]})
    assert all(value.is_contiguous() for value in got.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["block", pytest.param("3d_tile", marks=pytest.mark.nightly)])
def test_opcheck(name):
    t, problem = tensors(BY_NAME[name]), Problem(BY_NAME[name].geometry, Activation("tanh"))
    layer, regions = operators.problem_to_args(problem), operators.regions_to_arg(problem)
    x, weight, bias, g = (v.requires_grad_() for v in (t.x, t.weight, t.bias, t.g))
    for operator, args in (
        ("forward", (x, weight, bias, *layer, False, regions)),
        ("input_grad", (g, weight, None, *layer, regions)),
        ("weight_grad", (x, g, *layer, torch.float64, True, regions)),
    ):
        library.opcheck(getattr(torch.ops.lc_triton, operator).default, args)


def test_an_operator_that_was_recorded_without_regions():
    """Programs of earlier versions have no argument for regions."""
    x, weight = torch.randn(2, 5, 3), torch.randn(3, 3, 3, 4)
    args = [5], [3], [1], [1], [0, 0], 1, 3, 4, "linear", 0.0, "cpu", "ieee"
    y, _ = torch.ops.lc_triton.forward(x, weight, None, *args, False)
    assert torch.equal(y, lc_triton.local_conv(x, weight, data_format="channels_last"))


@pytest.mark.parametrize("name", ["rows", "1d_tile", "3d_columns"])
def test_vmap_over_weights_inputs_and_samples(name):
    case = BY_NAME[name]
    members = [tensors(case, seed=seed) for seed in range(3)]

    def call(x, weight, bias):
        return lc_triton.local_conv(x, weight, bias, **case.arguments, data_format="channels_last", activation="tanh")

    def loss(weight, x):
        return call(x, weight, members[0].bias).square().sum()

    x, weight, bias = (torch.stack([getattr(t, n) for t in members]) for n in ("x", "weight", "bias"))
    for dims in [(0, 0, 0), (None, 0, None), (0, None, None)]:
        args = [v if d == 0 else v[0] for v, d in zip((x, weight, bias), dims, strict=True)]
        got = torch.func.vmap(call, dims)(*args)
        for n, y in enumerate(got):
            own = [v[n] if d == 0 else v for v, d in zip(args, dims, strict=True)]
            assert_close(y, call(*own), 1e-12)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight[0], x[0][:, None])
    for n, dw in enumerate(each):
        assert_close(dw, torch.func.grad(loss)(weight[0], x[0][n : n + 1]), 1e-12)
    twice = torch.func.vmap(torch.func.vmap(call, (None, 0, None)), (None, 0, None))(x[0], weight[None], bias[0])
    assert_close(twice[0, 1], call(x[0], weight[1], bias[0]), 1e-12)


class TestLayers:
    def test_attributes_repr_and_parameters(self):
        layer = lc_triton.LocalConv2d(3, 8, 3, 6, share=[2, 4])
        assert layer.share == (2, 4)
        assert repr(layer).endswith("stride=(1, 1), share=(2, 4))")
        assert layer.weight.shape == (2, 1, 3, 3, 3, 8)
        assert layer.bias.shape == (4, 4, 8)
        assert lc_triton.LocalConv2d(3, 8, 3, 6, share="all", bias="channel").bias.shape == (8,)
        assert layer.weight.abs().max() <= 27**-0.5

    def test_a_lazy_layer_takes_its_regions_from_the_first_input(self):
        lazy = lc_triton.LazyLocalConv2d(8, 3, share="columns")
        lazy(torch.randn(1, 2, 6, 7))
        assert type(lazy) is lc_triton.LocalConv2d
        assert lazy.weight.shape == (1, 5, 3, 3, 2, 8)

    def test_regions_set_later_must_fit_the_weight(self):
        layer, x = lc_triton.LocalConv1d(2, 3, 3, 8, share=3), torch.randn(1, 2, 8)
        layer.share = ("tile", 2)
        want = lc_triton.local_conv(x, layer.weight, layer.bias, share=("tile", 2))
        assert torch.equal(layer(x), want)
        with pytest.raises(E.AttributeChangeError, match=r"weight would need the shape \(6, 3, 2, 3\) and has \(2, 3"):
            layer.share = None
        assert layer.share == ("tile", 2)

    def test_equal_regions_are_none(self):
        layer = lc_triton.LocalConv2d(2, 3, 3, 5, share=1)
        plain = lc_triton.LocalConv2d(2, 3, 3, 5)
        assert layer.geometry == plain.geometry
        assert lc_triton.LocalConv2d(2, 3, 3, 5, share=("tile", 9)).geometry == plain.geometry

    def test_state_goes_from_layer_to_layer(self):
        layer, x = lc_triton.LocalConv2d(2, 3, 3, 5, share="rows"), torch.randn(1, 2, 5, 5)
        other = lc_triton.LocalConv2d(2, 3, 3, 5, share="rows")
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), layer(x))
        with pytest.raises(RuntimeError, match="size mismatch"):
            lc_triton.LocalConv2d(2, 3, 3, 5).load_state_dict(layer.state_dict())

    def test_initialisation_takes_regions_for_positions(self):
        layer, x = lc_triton.LocalConv2d(3, 3, 3, 6, padding=1, bias=False, share=(2, 3)), torch.randn(1, 3, 6, 6)
        lc_triton.init.dirac_(layer.weight)
        assert torch.equal(layer(x), x)

    def test_it_trains(self):
        torch.manual_seed(0)
        x, target = torch.randn(8, 2, 6, 6), torch.randn(8, 3, 4, 4)
        layer = lc_triton.LocalConv2d(2, 3, 3, 6, share="rows")
        optimizer = torch.optim.SGD(layer.parameters(), 0.5)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]


KINDS = ["rows", "columns", "all", (2, 3), ("tile", 2, 2), None]


class TestConversion:
    @pytest.mark.parametrize("share", KINDS, ids=str)
    @pytest.mark.parametrize("bias", ["position", "channel"])
    def test_from_a_convolution_and_back(self, share, bias):
        conv = nn.Conv2d(4, 6, 3, padding=1, groups=2).double().eval()
        conv.weight.requires_grad_(False)
        layer = lc_triton.LocalConv2d.from_conv(conv, (5, 6), bias=bias, share=share)
        x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        assert_close(layer(x), conv(x).detach(), 1e-13)
        assert (layer.weight.requires_grad, layer.bias.requires_grad, layer.training) == (False, True, False)
        rebuilt = layer.to_conv()
        assert torch.equal(rebuilt.weight, conv.weight)
        assert torch.equal(rebuilt.bias, conv.bias)

    def test_a_model(self):
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3)).double()
        x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
        want = model(x).detach()
        lc_triton.convert_convs(model, x, share=(2, 2))
        assert [tuple(model[i].weight.shape[:2]) for i in (0, 2)] == [(3, 3), (2, 2)]
        assert_close(model(x), want, 1e-13)
        transposed = nn.Sequential(nn.ConvTranspose2d(2, 3, 3))
        with pytest.raises(E.ConversionError, match="a transposed layer has filters of its own at every input site"):
            lc_triton.convert_convs(transposed, x.float(), share="all")

    @pytest.mark.parametrize("share", KINDS[:-1], ids=str)
    def test_to_filters_of_each_position_and_back(self, share):
        layer = lc_triton.LocalConv2d(2, 3, 3, (6, 7), padding=1, share=share, activation="tanh").double().eval()
        x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
        unshared = layer.with_share(None)
        assert unshared.weight.shape == (6, 7, 3, 3, 2, 3)
        assert unshared.weight.is_contiguous()
        assert_close(unshared(x), layer(x).detach(), 1e-13)
        assert not unshared.training
        back = unshared.with_share(share)
        assert torch.equal(back.weight, layer.weight)
        assert torch.equal(back.bias, layer.bias)

    def test_between_regions_that_are_parts_of_others(self):
        rows = lc_triton.LocalConv2d(2, 3, 3, (8, 8), share=(3, 2)).double()
        x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
        assert_close(rows.with_share((1, 2))(x), rows(x).detach(), 1e-13)
        with pytest.raises(
            E.ConversionError, match=r"differs between positions by up to .* one region has one for all"
        ):
            rows.with_share("rows")
        middle = rows.with_share("rows", tolerance=10)
        low, high = rows.weight.amin(1), rows.weight.amax(1)
        want = ((low + high) / 2).detach().repeat_interleave(3, 0)[:6, None]
        assert_close(middle.weight, want, 1e-13)

    def test_to_low_rank(self):
        layer = lc_triton.LocalConv1d(2, 3, 2, 5, share="all").double()
        low, x = lc_triton.LowRankLocalConv1d.from_local(layer, rank=1), torch.randn(1, 2, 5, dtype=torch.float64)
        assert_close(low(x), layer(x).detach(), 1e-12)

    def test_attributes_are_kept(self):
        layer = lc_triton.LocalConv2d(
            2, 3, 3, 5, share="all", activation=nn.PReLU(3), bias=False, padding_mode="circular"
        )
        layer._follows_input_format = True
        other = layer.with_share("rows")
        assert other.activation is not layer.activation
        assert torch.equal(other.activation.weight, layer.activation.weight)
        assert (other.bias, other.padding_mode, other._follows_input_format) == (None, "circular", True)

    def test_refused_conversions(self):
        layer = lc_triton.LocalConv2d(2, 3, 3, 5)
        with pytest.raises(E.ArgumentValueError, match="tolerance must be a number >= 0, got -1"):
            layer.with_share("all", tolerance=-1)
        with pytest.raises(E.NotBuiltError):
            lc_triton.LazyLocalConv2d(3, 3).with_share("all")
        with pytest.raises(E.ConversionError, match="a convolution has one for all"):
            lc_triton.LocalConv2d(2, 3, 3, 5, share="rows").to_conv()
        low_rank = lc_triton.LowRankLocalConv2d(2, 3, 3, 5, rank=2)
        with pytest.raises(E.ConversionError, match="its positions share a basis: use to_local"):
            low_rank.with_share("all")
        with pytest.raises(E.ArgumentValueError, match="share must be None: positions of this layer share a basis"):
            low_rank.share = "rows"
        with pytest.raises(E.ArgumentValueError, match="share must be None: a transposed layer has filters of its own"):
            lc_triton.LocalConvTranspose2d.from_conv(nn.ConvTranspose2d(2, 3, 3), 5, share="all")


def conv2d(share):
    return lc_triton.local_conv(torch.ones(1, 1, 5, 5), torch.ones(3, 3, 3, 3, 1, 1), share=share)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: conv2d("row"), E.UnknownNameError, "share 'row' is not known (did you mean 'rows'?)"),
        (lambda: conv2d("tile"), E.ArgumentValueError, 'share must be ("tile", 2) or ("tile", 2, 2), with its period'),
        (lambda: conv2d(0), E.ArgumentValueError, "share must be an integer >= 1, got 0"),
        (lambda: conv2d((2, 0)), E.ArgumentValueError, "share must be an integer >= 1, got 0"),
        (lambda: conv2d((2, 2, 2)), E.LengthError, "share must be an int or 2 ints for 2 spatial dimension(s)"),
        (lambda: conv2d(("tile", 2, 2, 2)), E.LengthError, 'share must be ("tile", one period or 2 of them)'),
        (lambda: conv2d(("tile",)), E.LengthError, 'share must be ("tile", one period or 2 of them)'),
        (lambda: conv2d(("tile", 2.0)), E.ArgumentTypeError, "a period in share must be an integer >= 1, got 2.0"),
        (lambda: conv2d(("tiles", 2)), E.UnknownNameError, "the first entry of share 'tiles' is not known"),
        (lambda: conv2d(("all", 2)), E.UnknownNameError, "the first entry of share 'all' is not known"),
        (lambda: conv2d(True), E.ArgumentTypeError, 'share must be None, "rows", "columns", "all", a block of'),
        (lambda: conv2d(()), E.ArgumentTypeError, 'share must be None, "rows", "columns", "all", a block of'),
        (lambda: conv2d({2}), E.ArgumentTypeError, 'share must be None, "rows", "columns", "all", a block of'),
        (lambda: conv2d(b"rows"), E.ArgumentTypeError, 'share must be None, "rows", "columns", "all", a block of'),
        (lambda: conv2d([2.0, 2]), E.ArgumentTypeError, "share must be an integer >= 1, got 2.0"),
        (
            lambda: conv2d("rows"),
            E.WeightShapeError,
            "it must be (3, 1, 3, 3, 1, 1) = (*regions, *kernel, C // groups, F)",
        ),
        (
            lambda: lc_triton.LocalConv1d(1, 1, 3, 5, share="rows"),
            E.ArgumentValueError,
            'share must be "all", a block or a period in 1-D, where positions have no rows',
        ),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)
