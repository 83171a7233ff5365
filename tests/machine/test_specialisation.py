"""Integer arguments under Triton's JIT, which turns 1 into a constant, and large values into 64-bit integers."""

import pytest
import torch

from lc_triton import launch
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.core.share import parse_share
from lc_triton.kernels.combine import combine_kernel
from lc_triton.kernels.pad_channels import pad_channels_kernel
from lc_triton.kernels.shared_weight_grad import shared_weight_grad_kernel
from lc_triton.launch import passes
from lc_triton.launch.absent import compile_call
from lc_triton.launch.build import call_args, combine_call_args
from lc_triton.launch.plan import KERNELS, kernel_of
from lc_triton.tiles.config import TileConfig
from tests.machine.first_ir import compile_to_first_ir

pytestmark = pytest.mark.compile

LAYERS = {
    "2d": Problem(Geometry.make((6, 6), 8, 16, 3), backend="triton"),
    "3d": Problem(Geometry.make((5, 6, 6), 8, 8, 3, stride=2, padding=1, groups=2), backend="triton"),
}
SHARED = Problem(
    Geometry.make((5, 6, 6), 8, 8, 3, padding=1, groups=2, regions=parse_share((2, 1, 3), 3)), backend="triton"
)
TILES = {
    "dot": TileConfig(1, 1, 16, 16, 16),
    "band": TileConfig(2, 2, 16, 16, 16, swap=True),
    "split": TileConfig(1, 1, 16, 16, 16, split=2),
    "reduced": TileConfig(1, 2, 16, 4, 16, dot=False),
    "boxes": TileConfig(1, 1, 16, 16, 16, descriptor=True),
}
# A value that becomes a constant, two that 16 divides, one that it does not, and one of 64 bits.
VALUES = (1, 0, 16, 3, 2**31)


@pytest.fixture(autouse=True)
def stop_at_first_ir(monkeypatch):
    import triton.compiler

    kernels = [*KERNELS.values(), shared_weight_grad_kernel, combine_kernel, pad_channels_kernel]
    monkeypatch.setattr(triton.compiler, "compile", compile_to_first_ir)
    for kernel in kernels:
        monkeypatch.setattr(kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder))
    before = [vars(kernel).get("compile") for kernel in kernels]  # a kernel caches the function that compiles it
    yield
    for kernel, compiler in zip(kernels, before, strict=True):
        if compiler is not None:
            kernel.compile = compiler
        elif hasattr(kernel, "compile"):
            del kernel.compile


def arguments(kernel, layer, tile):
    """The function of a kernel, and the arguments of a launch."""
    problem, config = LAYERS[layer], TILES[tile]
    if kernel == "combine":
        return combine_kernel, combine_call_args(problem, 2)
    if kernel == "pad_channels":
        x, padded = (torch.empty(2, 6, 6, channels, device="meta") for channels in (3, 4))
        return pad_channels_kernel, [x, padded, (108, 0, 0, 18, 3, 1), (1, 1, 6, 6), 3, 4, passes.COMBINED]
    return KERNELS[kernel], call_args(kernel, problem, config)


def integers(kernel, args):
    """The positions of integers that are not declared constant: (argument, index in a tuple or None)."""
    for i, (parameter, arg) in enumerate(zip(kernel.params, args, strict=True)):
        if parameter.is_constexpr:
            continue
        if isinstance(arg, int):
            yield i, None
        elif isinstance(arg, tuple):
            yield from ((i, j) for j in range(len(arg)))


def with_value(args, positions, value):
    changed = list(args)
    for i, j in positions:
        changed[i] = value if j is None else (*changed[i][:j], value, *changed[i][j + 1 :])
    return changed


# Descriptors are for layers without groups: `limits.descriptor_fits`.
CALLS = [(k, t, layer) for k in KERNELS for t in TILES for layer in LAYERS if (t, layer) != ("boxes", "3d")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "tile", "layer"), [*CALLS, ("combine", "split", "2d"), ("pad_channels", "dot", "2d")]
)
def test_integers_may_have_every_value(kernel, tile, layer):
    function, args = arguments(kernel, layer, tile)
    positions = list(integers(function, args))
    assert len(positions) == {"weight_grad": 9, "combine": 1, "pad_channels": 6}.get(kernel, 5)
    for value in VALUES:
        compile_call(function, TILES[tile], 90, *with_value(args, positions, value))
    if (layer, tile) == ("2d", "dot"):
        for place in positions:
            compile_call(function, TILES[tile], 90, *with_value(args, [place], 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "pass_name", ["weight_grad", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("forward", "input_grad"))]
)
@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_integers_beside_shared_filters(pass_name, wide):
    function, config = kernel_of(pass_name, SHARED.geometry), TILES["split"]
    args = call_args(pass_name, SHARED, config, wide=wide)
    positions = list(integers(function, args))
    assert len(positions) == (9 if pass_name == "weight_grad" else 5)
    for value in VALUES:
        compile_call(function, config, 90, *with_value(args, positions, value))
    for place in positions:
        compile_call(function, config, 90, *with_value(args, [place], 1))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_both_launches_of_a_split_loop(batch, monkeypatch):
    problem, compiled = LAYERS["2d"], []
    geo, split = problem.geometry, TILES["split"]
    x, g = torch.empty(batch, 6, 6, 8), torch.empty(batch, 4, 4, 16)
    weight, bias = torch.empty(geo.weight_shape), torch.empty(geo.bias_shape)

    def prepare(launches, kernel, grid, config, tensors, constants, device):
        return lambda *tensors: compiled.append((kernel, compile_call(kernel, config, 90, *tensors, *constants)))

    monkeypatch.setattr(passes, "prepare", prepare)
    launch.forward(x, weight, bias, g, None, problem, split)
    launch.input_grad(g, weight, None, x, problem, split)
    launch.weight_grad(x, g, weight, bias, problem, split)
    assert sum(kernel is combine_kernel for kernel, _ in compiled) == 4  # one of them for the bias gradient
    assert len(compiled) == 7
