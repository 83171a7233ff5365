"""Launches after the first call the compiled kernel directly, with the arguments that Triton would pass."""

import pytest
import torch
from triton import knobs
from triton.knobs import HookChain

import lc_triton
from lc_triton import launch
from lc_triton.core.activations import Activation
from lc_triton.core.geometry import Geometry
from lc_triton.core.problem import Problem
from lc_triton.kernels.forward import forward_kernel
from lc_triton.launch import launcher, passes
from lc_triton.launch.absent import absent_gpu
from lc_triton.launch.build import build
from lc_triton.ops import run
from lc_triton.tiles.config import TileConfig

SMALL = Geometry.make((6, 6), 8, 16, 3)
FEW_POSITIONS = Geometry.make((4, 4), 512, 256, 3, padding=1)  # the k-loop of its forward is split


def tensors(geo, batch=32, dtype=torch.float16):
    """x, weight, bias, y and g, uninitialised."""
    shapes = [(batch, *geo.in_spatial, geo.in_channels), geo.weight_shape, geo.bias_shape]
    shapes += [(batch, *geo.out_spatial, geo.out_channels)] * 2
    return [torch.empty(shape, dtype=dtype) for shape in shapes]


def forward(geo, bias, z):
    problem = Problem(geo, Activation("relu"), backend="triton")
    x, weight, position_bias, y, g = tensors(geo)
    passed_bias = {"none": None, "channel": position_bias.flatten()[: geo.out_channels], "position": position_bias}[
        bias
    ]
    return problem, lambda: launch.forward(x, weight, passed_bias, y, g if z else None, problem)


def input_grad(geo):
    problem = Problem(geo, backend="triton")
    x, weight, _, _, g = tensors(geo)
    return problem, lambda: launch.input_grad(g, weight, None, x, problem)


def weight_grad(geo, with_bias, fused):
    problem = Problem(geo, Activation("relu"), backend="triton")
    x, dw, db, y, g = tensors(geo)
    activation_args = {"saved": y, "dz": torch.empty_like(g)} if fused else {}
    return problem, lambda: launch.weight_grad(x, g, dw, db if with_bias else None, problem, **activation_args)


CALLS = {
    **{f"forward, {bias} bias": lambda bias=bias: forward(SMALL, bias, False) for bias in ("none", "channel")},
    "forward with z": lambda: forward(SMALL, "position", True),
    "forward in two launches": lambda: forward(FEW_POSITIONS, "position", False),
    "input gradient": lambda: input_grad(SMALL),
    "weight gradient": lambda: weight_grad(SMALL, False, False),
    "weight gradient through relu": lambda: weight_grad(SMALL, True, True),
}


@pytest.mark.compile
@pytest.mark.parametrize("name", CALLS)
def test_the_driver_receives_the_arguments_of_triton(name, monkeypatch):
    _, call = CALLS[name]()
    triton_launches = []

    def launch_by_triton(launches, kernel, grid, config, tensors, constants, device):
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        return lambda *tensors: triton_launches.append(kernel[(grid,)](*tensors, *constants, **options))

    with absent_gpu() as gpu:
        with monkeypatch.context() as patch:
            patch.setattr(passes, "prepare", launch_by_triton)
            call()
        assert len(triton_launches) == (2 if "two" in name else 1)
        expected, gpu.launches = gpu.launches, []
        call()
        call()
    for first, second in zip(expected * 2, gpu.launches, strict=True):
        assert first.grid == second.grid
        assert first.binary == second.binary
        for a, b in zip(first.args, second.args, strict=True):
            # The parts of a split loop are new tensors.
            assert (a is b or a.shape == b.shape) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.compile
def test_a_bound_pass_does_not_call_triton(monkeypatch):
    problem = Problem(SMALL, backend="triton")
    x, weight, bias, y, _ = tensors(SMALL)
    with absent_gpu() as gpu:
        bound = launch.bind_forward(x, weight, bias, y, None, problem)

        def refuse(*args, **kwargs):
            raise AssertionError("through Triton's look-ups")

        monkeypatch.setattr(forward_kernel, "run", refuse)
        bound(x, weight, bias, y, None)
    assert len(gpu.launches) == 1


@pytest.mark.compile
def test_launch_hooks_see_each_launch(monkeypatch):
    problem = Problem(SMALL, backend="triton")
    x, weight, bias, y, _ = tensors(SMALL)
    calls = []
    with absent_gpu():
        bound = launch.bind_forward(x, weight, bias, y, None, problem)
        for name in ("launch_enter_hook", "launch_exit_hook"):
            monkeypatch.setattr(knobs.runtime, name, HookChain())
            getattr(knobs.runtime, name).add(lambda metadata, name=name: calls.append(name))
        bound(x, weight, bias, y, None)
    assert calls == ["launch_enter_hook", "launch_exit_hook"]


@pytest.mark.compile
def test_an_unaligned_tensor_has_a_build_of_its_own():
    problem = Problem(SMALL, backend="triton")
    x, weight, _, y, _ = tensors(SMALL)
    unaligned = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
    with absent_gpu() as gpu:
        for given in (x, unaligned, x, unaligned):
            launch.forward(given, weight, None, y, None, problem)
    aligned, other, *rebuilt = [launched.binary for launched in gpu.launches]
    assert aligned != other
    assert rebuilt == [aligned, other]


@pytest.mark.compile
def test_another_pitch_or_dtype():
    problem = Problem(SMALL, backend="triton")
    x, weight, bias, y, _ = tensors(SMALL)
    crop = torch.empty(32, 6, 7, 8, dtype=x.dtype)[:, :, :6]
    with absent_gpu() as gpu:
        for given, b in ((x, bias), (crop, bias), (x, bias.float()), (x, bias)):
            launch.forward(given, weight, b, y, None, problem)
    plain, cropped, wide, rebuilt = gpu.launches
    assert cropped.args[6] == (42, 0, 0, 7)
    assert wide.binary != plain.binary
    assert rebuilt.binary == plain.binary


@pytest.mark.compile
def test_each_architecture_in_a_process_has_its_own_builds(monkeypatch):
    """Triton caches kernels by device, and a layer caches its launches."""
    monkeypatch.setattr(run, "resolve", lambda device_type: "triton")
    layer, x = lc_triton.LocalConv2d(8, 16, 3, input_size=6), torch.empty(32, 8, 6, 6)
    launched = []
    for arch in (80, 90, 80):
        with absent_gpu(arch) as gpu, torch.no_grad():
            layer(x)
            layer(x)
        assert len(gpu.launches) == 2
        launched += gpu.launches
    binaries = [launch.binary for launch in launched]
    assert binaries[0] == binaries[1] == binaries[4] == binaries[5]
    assert binaries[2] == binaries[3] != binaries[0]
    problem, config = Problem(SMALL, backend="triton"), TileConfig(1, 1, 16, 16, 16)
    for arch in (80, 90, 80, 100):
        assert f".target sm_{arch}" in build("forward", problem, config, arch).asm["ptx"]


def test_on_amd_memory_past_32_bits_has_a_launch_of_its_own(monkeypatch):
    monkeypatch.setattr(launcher, "BY_SIZE", True)
    problem = Problem(SMALL, backend="triton")
    x, weight, _, y, _ = tensors(SMALL)
    far_view = torch.empty(2**30 + x.numel(), dtype=x.dtype, device="meta")[2**30 :].view(x.shape)
    with absent_gpu():
        for given in (x, far_view, x, far_view):
            launch.forward(given, weight, None, y, None, problem)
    (plan,) = problem.launches.values()
    assert len(plan.launches) == 2


def test_launches_of_a_given_tile_are_not_cached():
    """A search launches thousands of tiles, whose builds must not stay in the problem."""
    problem = Problem(SMALL, backend="triton")
    x, weight, _, y, _ = tensors(SMALL)
    with absent_gpu():
        launch.forward(x, weight, None, y, None, problem)
        (plan,) = problem.launches.values()
        launch.forward(x, weight, None, y, None, problem, plan.config)
    assert len(problem.launches) == 1
    assert len(plan.launches) == 1
