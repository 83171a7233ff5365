"""Penalties and projections: values in every dtype, and the number of times that they read and write a weight."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lc_triton
from lc_triton.keras import constraints, layout, penalty, regularizers
from tests.cases import assert_close

REGULARIZERS = {
    "l1": (regularizers.L1(0.3), 0.3, 0.0),
    "l2": (regularizers.L2(0.7), 0.0, 0.7),
    "l1_l2": (regularizers.L1L2(0.3, 0.7), 0.3, 0.7),
    "l1_l2_of_l1": (regularizers.L1L2(0.3, 0.0), 0.3, 0.0),
    "l1_l2_of_none": (regularizers.L1L2(0.0, 0.0), 0.0, 0.0),
}
NORMS = {
    "max_norm": (constraints.MaxNorm(2.0), lambda n: n.clamp(0, 2)),
    "unit_norm": (constraints.UnitNorm(), torch.ones_like),
    "min_max_norm": (constraints.MinMaxNorm(0.5, 2.0, 0.75), lambda n: 0.75 * n.clamp(0.5, 2) + 0.25 * n),
}
HALVES = (torch.float16, torch.bfloat16)


def layer_of(**kwargs):
    """A layer with taps on padding; `kwargs` replace its arguments."""
    arguments = {"padding": "same", "input_shape": (9, 8, 5), "kernel_initializer": "normal", "dtype": torch.float64}
    return lc_triton.LocallyConnected2D(6, 3, **(arguments | kwargs))


def inside_mask(layer):
    """1 for the taps that meet the input, else 0, in the shape of the weight."""
    return layout.connected(torch.ones_like(layer.weight), layer.geometry).detach()


@pytest.fixture(params=["one", "several"], autouse=True)
def _blocks(request, monkeypatch):
    if request.param == "several":
        for module in (penalty, constraints):
            monkeypatch.setattr(module, "BLOCK", 1000)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_penalty_and_its_gradient(name, padding):
    regularizer, l1, l2 = REGULARIZERS[name]
    layer = layer_of(padding=padding, kernel_regularizer=regularizer)
    mask = inside_mask(layer)
    assert bool((mask == 0).any()) == (padding == "same")
    with torch.no_grad():
        layer.weight[0, 0, 1, 1, 0] = 0  # the sign of 0 is 0
        layer.weight[mask == 0] = torch.nan
    w = torch.where(mask == 0, 0, layer.weight.detach())
    loss = lc_triton.regularization_loss(layer)
    assert_close(loss, l1 * w.abs().sum() + l2 * w.square().sum(), 1e-13)
    (3 * loss).backward()
    assert_close(layer.weight.grad, 3 * (l1 * w.sign() + 2 * l2 * w), 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.nightly) for name in ("l1", "l2")), "l1_l2"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_second_derivatives_of_penalties(name, padding):
    regularizer, _, _ = REGULARIZERS[name]
    geometry = layer_of(padding=padding, input_shape=(3, 4, 1), groups=1).geometry
    weight = torch.randn(geometry.weight_shape, dtype=torch.float64, requires_grad=True)
    for f in (regularizer, lambda w: regularizer.of_weight(w, geometry)):
        assert torch.autograd.gradcheck(f, weight)
        assert torch.autograd.gradgradcheck(f, weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2"])
def test_penalties_under_transforms(name):
    regularizer, l1, l2 = REGULARIZERS[name]
    layer = layer_of()
    geometry, mask = layer.geometry, inside_mask(layer)
    weights, tangent = torch.randn(2, 3, *geometry.weight_shape, dtype=torch.float64)

    def f(w):
        return regularizer.of_weight(w, geometry)

    values = torch.stack([f(w) for w in weights])
    gradients = mask * (l1 * weights.sign() + 2 * l2 * weights)
    assert_close(torch.func.vmap(f)(weights), values, 1e-13)
    assert_close(torch.func.grad(f)(weights[0]), gradients[0], 1e-13)
    assert_close(torch.func.vmap(torch.func.grad(f))(weights), gradients, 1e-13)
    value, slope = torch.func.jvp(f, (weights[0],), (tangent[0],))
    assert_close(value, values[0], 1e-13)
    assert_close(slope, (gradients[0] * tangent[0]).sum(), 1e-13)
    with torch.autograd.forward_ad.dual_level():
        dual = f(torch.autograd.forward_ad.make_dual(weights[0], tangent[0]))
        assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope, 1e-13)
    curvature = torch.func.jvp(torch.func.grad(f), (weights[0],), (tangent[0],))[1]
    assert_close(curvature, 2 * l2 * mask * tangent[0], 1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2"])
def test_a_compiled_step_has_the_penalty(name):
    layer = layer_of(kernel_regularizer=name, activity_regularizer=name, bias_regularizer=name)
    x = torch.randn(2, 9, 8, 5, dtype=torch.float64)

    def loss():
        return layer(x).square().sum() + lc_triton.regularization_loss(layer)

    want = torch.autograd.grad(loss(), layer.parameters())
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(), layer.parameters())
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, 1e-12)


def test_gradients_of_penalties_of_a_computed_weight():
    layer = layer_of(kernel_regularizer="l2")
    nn.utils.parametrizations.weight_norm(layer, dim=None)
    lc_triton.regularization_loss(layer).backward()
    (g, v) = layer.parametrizations.weight.parameters()
    g_, v_ = (p.detach().requires_grad_() for p in (g, v))
    want = (0.01 * (inside_mask(layer) * v_ * g_ / v_.norm()).square()).sum()
    for got, exact in zip((g, v), torch.autograd.grad(want, (g_, v_)), strict=True):
        assert_close(got.grad, exact, 1e-12)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scale", [60.0, 1.0, 1e-4])
@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2"])
def test_penalties_in_16_bits_are_summed_in_float32(dtype, scale, name):
    factors = {"l1": (3e-7, 0.0), "l2": (0.0, 3e-7), "l1_l2": (3e-7, 1e-3)}[name]
    regularizer = regularizers.L1L2(*factors)
    layer = layer_of(dtype=dtype, kernel_regularizer=regularizer, kernel_initializer="random_normal")
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) * scale)
    w = layer.weight.detach().double() * inside_mask(layer)
    loss = lc_triton.regularization_loss(layer)
    assert loss.dtype == torch.float32
    want = factors[0] * w.abs().sum() + factors[1] * w.square().sum()
    assert abs(loss.item() / want.item() - 1) < 1e-5
    loss.backward()
    gradient = factors[0] * w.sign() + 2 * factors[1] * w
    error = (layer.weight.grad.double() - gradient).abs().max()
    info = torch.finfo(dtype)
    assert error <= 2 * info.eps * gradient.abs().max() + 2 * info.smallest_normal * info.eps
    assert (loss + torch.ones((), dtype=dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_other_penalties_in_16_bits(dtype):
    y = (torch.randn(4, 9, 8, 6) * 60).to(dtype)
    assert_close(regularizers.activity_penalty(regularizers.L2(1.0), y), y.double().square().sum() / 4, 1e-5)
    layer = layer_of(dtype=dtype, bias_regularizer="l2", bias_initializer="ones", use_bias=True)
    with torch.no_grad():
        layer.bias.mul_(60)
    assert_close(lc_triton.regularization_loss(layer), 0.01 * layer.bias.detach().double().square().sum(), 1e-5)
    for scale in (60.0, 1.0, 1e-3):
        w = (torch.randn(5, 6, 4) * scale).to(dtype)
        for mode in ("rows", "columns"):
            orthogonal = regularizers.OrthogonalRegularizer(1.0, mode)
            assert orthogonal(w).dtype == torch.float32
            assert_close(orthogonal(w), orthogonal(w.double()), 1e-5)


@pytest.mark.parametrize("scale", [1e25, 1e-4])
def test_orthogonality_does_not_depend_on_the_scale(scale):
    w = torch.randn(5, 6, 4)
    orthogonal = regularizers.OrthogonalRegularizer(1.0)
    assert_close(orthogonal(w * scale), orthogonal(w.double()), 1e-5)


def test_the_orthogonal_penalty_has_kerass_least_norm():
    w = torch.randn(5, 6, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        w[0] *= 1e-9
        w[1, 2] = 0
    vectors = w * w.square().sum(-1, keepdim=True).clamp(min=1e-12).rsqrt()
    want = 0.5 * ((vectors @ vectors.mT) * (1 - torch.eye(6))).abs().sum() / 15
    got = regularizers.OrthogonalRegularizer(1.0)(w)
    assert_close(got, want.detach(), 1e-12)
    ours, theirs = (torch.autograd.grad(loss, w)[0] for loss in (got, want))
    assert_close(ours, theirs, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float16, (60.0, 1.0, 1e-4)),
        (torch.bfloat16, (1e25, 60.0, 1e-4, 1e-25)),
        (torch.float32, (1e25, 60.0, 1e-4, 1e-25)),
        (torch.float64, (60.0, 1e-4)),
    ],
)
def test_norms_are_right_at_every_scale(name, padding, dtype, scales):
    constraint, desired = NORMS[name]
    for data_format in ("channels_last", "channels_first"):
        shape = (9, 8, 5) if data_format == "channels_last" else (5, 9, 8)
        for scale in scales:
            layer = layer_of(
                dtype=dtype, padding=padding, kernel_constraint=constraint, input_shape=shape, data_format=data_format
            )
            with torch.no_grad():
                layer.weight.copy_(torch.randn(layer.weight.shape, dtype=torch.float64) * scale)
            w = (layer.weight.detach().double() * inside_mask(layer)).flatten(2, 4)
            norm = w.norm(dim=2, keepdim=True)
            want = (w * desired(norm) / (1e-7 + norm)).view(layer.weight.shape)
            functional = constraint(w.to(dtype).flatten(0, 1)).view(layer.weight.shape)
            lc_triton.apply_constraints(layer)
            for got in (functional, layer.weight.detach()):
                assert got.dtype == dtype
                tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
                assert ((got.double() - want).abs() <= 4 * torch.finfo(dtype).eps * want.abs() + tiny).all()


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1), (0, 2), [1, 2], (0, 1, 2), -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_axes_of_projections_in_place(axis, dtype):
    constraint = constraints.MaxNorm(0.1, axis)
    for data_format in ("channels_last", "channels_first"):
        shape = (9, 8, 5) if data_format == "channels_last" else (5, 9, 8)
        layer = layer_of(dtype=dtype, data_format=data_format, input_shape=shape, kernel_constraint=constraint)
        want = constraint(layer._connected(1).detach())
        lc_triton.apply_constraints(layer)
        assert_close(layer._connected(1), want.double(), 2 * torch.finfo(dtype).eps)
        assert_close(
            layer.weight[inside_mask(layer) == 0], torch.zeros(int((inside_mask(layer) == 0).sum())).double(), 0
        )


@pytest.mark.parametrize("name", ["max_norm", "non_neg"])
def test_projections_of_biases(name):
    for data_format in ("channels_last", "channels_first"):
        shape = (9, 8, 5) if data_format == "channels_last" else (5, 9, 8)
        layer = layer_of(
            bias_constraint=name, bias_initializer="normal", input_shape=shape, data_format=data_format, padding="same"
        )
        with torch.no_grad():
            layer.bias.mul_(100)
        want = constraints.get(name)(layer._read("bias").detach(), constraints.BIAS_AXIS)
        lc_triton.apply_constraints(layer)
        assert_close(layer._read("bias"), want, 1e-12)


def test_autograd_refuses_a_weight_projected_after_the_forward():
    layer = layer_of(kernel_constraint="max_norm")
    memory, version = layer.weight.data_ptr(), layer.weight._version
    loss = layer.weight.square().sum()
    lc_triton.apply_constraints(layer)
    assert layer.weight.data_ptr() == memory
    assert layer.weight._version > version
    assert layer.weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    layer.requires_grad_(requires_grad=False)
    with torch.no_grad():
        layer.weight.fill_(100)
    lc_triton.apply_constraints(layer)
    assert (layer.weight == 100).all()


@pytest.mark.parametrize("name", ["l1", "l2", "l1_l2"])
def test_tensors_of_any_strides(name):
    regularizer, l1, l2 = REGULARIZERS[name]
    first = torch.randn(7, 6, 5, 4, dtype=torch.float64)
    for w in (
        first.permute(2, 0, 3, 1),
        first.mT,
        first[:, ::2],
        first[0, 0, 0, :1].expand(3, 5),
        first[0, 0, 0, 0],
        first[:0],
    ):
        w = w.detach().requires_grad_()
        loss = regularizer(w)
        assert_close(loss, (l1 * w.abs().sum() + l2 * w.square().sum()).detach(), 1e-13)
        assert_close(torch.autograd.grad(loss, w)[0], (l1 * w.sign() + 2 * l2 * w).detach(), 1e-13)


# The numbers of entries of the last two have no small factors.
@pytest.mark.parametrize("shape", [(1 << 22,), (4, 1000003), (3, 1000003)])
def test_long_sums_have_the_accuracy_of_float32(shape):
    w = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for regularizer in (regularizers.L1(1.0), regularizers.L2(1.0)):
        assert abs(regularizer(w).item() / regularizer(w.double()).item() - 1) < 3e-7


class Traffic(TorchDispatchMode):
    """Count the bytes that operations read and write: of tensors of at least `size` bytes, and of all tensors."""

    def __init__(self, size):
        super().__init__()
        self.size, self.large, self.all, self.largest_scratch = size, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if is_view or "empty" in func._schema.name or "split" in func._schema.name:
            return result
        named = [(a, args[i]) for i, a in enumerate(func._schema.arguments) if i < len(args)]
        named += [(a, (kwargs or {})[a.name]) for a in func._schema.arguments if a.name in (kwargs or {})]
        touched = {}
        for argument, value in named:
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, torch.Tensor):
                    writes = argument.alias_info is not None and argument.alias_info.is_write
                    reads = not writes or not (func._schema.name == "aten::copy_" or argument.is_out)
                    _, read, written = touched.get(id(tensor), (tensor, False, False))
                    touched[id(tensor)] = tensor, read or reads, written or writes
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                touched.setdefault(id(tensor), (tensor, False, True))
        for tensor, reads, writes in touched.values():
            part = 1.0
            if func._schema.name == "aten::index_fill_":  # it writes only some rows
                part = args[2].numel() / len(tensor) if tensor is args[0] else 1.0
            self._count(tensor, (reads + writes) * part)
        return result

    def _count(self, tensor, times):
        moved = tensor.numel() * tensor.element_size() * times
        self.all += moved
        if tensor.untyped_storage().nbytes() >= self.size:
            self.large += moved
        else:
            self.largest_scratch = max(self.largest_scratch, tensor.untyped_storage().nbytes())


def traffic(layer, f):
    size = layer.weight.numel() * layer.weight.element_size()
    with Traffic(size) as counted:
        f()
    assert counted.largest_scratch <= max(8 * penalty.BLOCK, size / 16)  # small enough for a cache
    return counted.large / size, counted.all / size


def test_the_counter_of_traffic():
    layer = layer_of(padding="valid")
    with torch.no_grad():
        assert traffic(layer, lambda: (layer.weight * layer.weight).sum())[1] == pytest.approx(3, abs=0.01)
        assert traffic(layer, lambda: layer.weight.mul_(2.0))[1] == 2
        assert traffic(layer, lambda: torch.add(layer.weight, layer.weight.clone(), out=layer.weight))[1] == 5


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("name", "maximum"), [("l1", 5), ("l2", 3), ("l1_l2", 9)])
def test_traffic_of_a_penalty_and_its_gradient(name, maximum, padding, monkeypatch):
    for module in (penalty, constraints):
        monkeypatch.setattr(module, "BLOCK", 1 << 13)
    layer = layer_of(padding=padding, kernel_regularizer=name, use_bias=False, input_shape=(12, 12, 64))
    large, all_ = traffic(layer, lambda: lc_triton.regularization_loss(layer).backward())
    edges = 1 - inside_mask(layer).mean().item()
    assert 0 < large <= maximum + 2 * edges + 0.01
    if name == "l2":
        assert all_ <= 3.1 + 2 * edges <= 4  # the traffic of all tensors
    assert layer.weight.grad is not None


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("name", "maximum"), [("max_norm", 3), ("unit_norm", 3), ("min_max_norm", 3), ("non_neg", 2)])
def test_traffic_of_a_projection(name, maximum, padding, monkeypatch):
    for module in (penalty, constraints):
        monkeypatch.setattr(module, "BLOCK", 1 << 13)
    layer = layer_of(padding=padding, kernel_constraint=name, input_shape=(12, 12, 64))
    large, _ = traffic(layer, lambda: lc_triton.apply_constraints(layer))
    edges = 1 - inside_mask(layer).mean().item()
    assert 0 < large <= maximum + 2 * edges + 0.01  # taps on padding are set to 0 first
