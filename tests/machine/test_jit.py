"""Everything that tests/gpu launches, compiled by Triton's JIT up to its first IR.

The interpreter and builds do not show how the JIT specialises arguments: integers of value 1 become constants, and None
and tuples are handled apart. The JIT here compiles up to the IR of Triton's front end, which takes a twentieth of a
full compilation.
"""

from dataclasses import replace

import pytest
import torch
import triton.compiler

from lc_triton.ahead.session import collecting
from lc_triton.core.activations import FUSED_NAMES
from lc_triton.kernels.combine import combine_kernel
from lc_triton.kernels.four_bits import four_bits_forward_kernel, four_bits_input_grad_kernel
from lc_triton.kernels.four_bits_vector import four_bits_vector_forward_kernel, four_bits_vector_input_grad_kernel
from lc_triton.kernels.gather import gather_forward_kernel, gather_input_grad_kernel, gather_weight_grad_kernel
from lc_triton.kernels.low_rank import low_rank_forward_kernel
from lc_triton.kernels.pad_channels import pad_channels_kernel
from lc_triton.kernels.position_penalty import (
    mean_grad_kernel,
    mean_kernel,
    neighbours_grad_kernel,
    neighbours_kernel,
    smooth_grad_kernel,
    smooth_kernel,
)
from lc_triton.kernels.shared_weight_grad import shared_weight_grad_kernel
from lc_triton.kernels.update import combine_update_kernel
from lc_triton.launch.absent import absent_gpu
from lc_triton.launch.plan import KERNELS
from lc_triton.ops import run
from lc_triton.tiles.device import by_name
from tests import cases
from tests.cases import CASES, tensors
from tests.gpu.compile import calls
from tests.machine.first_ir import compile_to_first_ir
from tests.shared_cases import SHARED

pytestmark = pytest.mark.compile

ALL = [
    *KERNELS.values(),
    shared_weight_grad_kernel,
    combine_kernel,
    pad_channels_kernel,
    combine_update_kernel,
    low_rank_forward_kernel,
    four_bits_forward_kernel,
    four_bits_input_grad_kernel,
    four_bits_vector_forward_kernel,
    four_bits_vector_input_grad_kernel,
    gather_forward_kernel,
    gather_input_grad_kernel,
    gather_weight_grad_kernel,
    smooth_kernel,
    smooth_grad_kernel,
    neighbours_kernel,
    neighbours_grad_kernel,
    mean_kernel,
    mean_grad_kernel,
]


class NoKernel:
    """A stand-in for a compiled kernel, which does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *_):
        return None

    def run(self, *_):
        return None


def stop_at_first_ir(monkeypatch):
    """End Triton's compilation after the first IR; return a list to which it appends the names of the kernels."""
    names = []

    def to_first_ir(source, target=None, options=None, **_):
        compile_to_first_ir(source, target, options)
        names.append(source.fn.__name__)
        return NoKernel()

    monkeypatch.setattr(triton.compiler, "compile", to_first_ir)
    for kernel in ALL:
        monkeypatch.setattr(kernel, "compile", to_first_ir, raising=False)  # the JIT caches the function here
    return names


@pytest.fixture
def kernel_names(monkeypatch):
    """The names of the kernels whose IR was made; the test runs CPU tensors by the Triton backend."""
    names = stop_at_first_ir(monkeypatch)
    monkeypatch.setattr(run, "resolve", lambda device_type: "triton")
    with absent_gpu() as gpu:
        gpu.get_current_device = lambda: f"stops at the IR of {id(names)}"  # the JIT caches kernels by this value
        yield names


def run_cases(selected, batch, dtype, weight_dtype=None, **arguments):
    for case in selected:
        case = replace(case, batch=batch)
        cases.run(case, tensors(case, dtype, weight_dtype=weight_dtype), **arguments)


@pytest.mark.slow
def test_a_few_cases(kernel_names):
    run_cases([case for case in CASES if case.name in ("2d_groups", "1d_one")], 1, torch.float32)
    assert set(kernel_names) >= {"forward_kernel", "input_grad_kernel", "weight_grad_kernel"}


def test_shared_filters(kernel_names):
    run_cases([case for case in SHARED if case.name == "1d_tile"], 1, torch.float32)
    assert set(kernel_names) >= {"forward_kernel", "shared_weight_grad_kernel"}
    assert "weight_grad_kernel" not in kernel_names


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_all_shared_filters(kernel_names, dtype):
    for batch in (1, 2, 33):
        run_cases(SHARED, batch, dtype)
    assert len(kernel_names) > 3 * len(SHARED)


@pytest.mark.nightly
@pytest.mark.parametrize("batch", [1, 2, 33, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_all_cases(kernel_names, batch, dtype):
    run_cases(CASES, batch, dtype)
    assert len(kernel_names) > 2 * len(CASES)


@pytest.mark.nightly
def test_float32_weights(kernel_names):
    run_cases(CASES[:12], 16, torch.bfloat16, torch.float32)
    assert len(kernel_names) > 20


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_activations(kernel_names, dtype):
    layer = [case for case in CASES if case.name == "2d"]
    for name in FUSED_NAMES:
        run_cases(layer, 32, dtype, activation=("gelu", "tanh") if name == "gelu_tanh" else name)
    assert len(kernel_names) > len(FUSED_NAMES)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(8))
def test_everything_that_the_tests_on_a_gpu_launch(part, monkeypatch, tmp_path):
    names, device = stop_at_first_ir(monkeypatch), by_name("h200")
    with collecting(device, tmp_path):
        for call in list(calls(device))[part::8]:
            call()
    assert set(names) == {kernel.__name__ for kernel in ALL}
