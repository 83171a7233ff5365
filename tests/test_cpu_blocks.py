"""Blocks and buffers of the CPU path: the results of blocks of any size, and the sizes of buffers."""

import itertools
import math
import threading
from dataclasses import replace

import pytest
import torch

import lc_triton
from lc_triton._cpu import blocks, passes, workspace
from lc_triton._cpu.blocks import Layer
from lc_triton._cpu.workspace import Buffer
from lc_triton.core.problem import Problem
from lc_triton.ops import dispatch
from tests.cases import CASES, Case, assert_close, assert_results_close, expected, run, tensors
from tests.cpu_strategies import CpuStrategy
from tests.pairwise import pairwise

TWO_D = next(case for case in CASES if case.name == "2d_asymmetric")


STRATEGIES = {
    "as they lie": CpuStrategy(),
    "few samples": CpuStrategy(few_samples=True),
    "few filters": CpuStrategy(few_filters=True),
}


@pytest.fixture(params=STRATEGIES.values(), ids=STRATEGIES)
def strategy(request):
    return request.param


MOST_BYTES = [1, 600, 1 << 20]  # one sample, a few samples or the whole batch at a time
BLOCK_BYTES = [1, 1500, 5000]  # one position, or part of a row or of a plane, at a time


@pytest.mark.parametrize(
    ("case", "block_bytes", "most_bytes", "name"),
    pairwise(CASES, BLOCK_BYTES, MOST_BYTES, list(STRATEGIES)),
    ids=lambda value: value.name if isinstance(value, Case) else str(value),
)
def test_many_small_blocks(case, block_bytes, most_bytes, name, monkeypatch):
    replace(STRATEGIES[name], block_bytes=block_bytes, most_bytes=most_bytes).apply(monkeypatch)
    t = tensors(case)
    assert_results_close(run(case, t), expected(case, t))


@pytest.mark.parametrize(
    "case",
    [
        Case("1d", (500,), 8, 2, 3),
        Case("2d", (40, 40), 8, 2, 3, padding=1),
        Case("depthwise", (500,), 8, 8, 3, groups=8),
    ],
    ids=lambda case: case.name,
)
def test_windows_are_never_all_in_memory(case, strategy, monkeypatch):
    replace(strategy, block_bytes=10_000, most_bytes=20_000).apply(monkeypatch)
    sizes, take = [], Buffer.take
    monkeypatch.setattr(Buffer, "take", lambda *a: (sizes.append(8 * math.prod(a[1:])), take(*a))[1])
    t = tensors(case)
    assert_results_close(run(case, t), expected(case, t))
    padded = 8 * math.prod(case.geometry.padded().in_spatial) * case.channels * case.batch
    assert max(sizes) <= max(10_000 * torch.get_num_threads(), padded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case",
    [
        Case("one_tap", (5, 4), 3, 6, 1, groups=3),
        Case("side_by_side", (4, 6), 3, 3, 2, stride=2, groups=3),
        Case("side_by_side_dilated", (8,), 1, 1, 2, stride=3, dilation=2),
    ],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("most_bytes", [200, 1 << 20])
def test_no_gradient_is_added_to_what_memory_holds(case, dtype, most_bytes, monkeypatch):
    """Windows without a common site write each site once, into memory that held NaN."""
    CpuStrategy(most_bytes=most_bytes, tap_by_tap=True).apply(monkeypatch)
    monkeypatch.setattr(workspace, "_kept", threading.local())
    t = tensors(case, dtype)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert_results_close(run(case, t), expected(case, t), 8 * torch.finfo(dtype).eps)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "case",
    [
        Case("2d", (4, 5), 3, 4, 2, batch=9),
        Case("2d_groups", (4, 5), 6, 6, (2, 1), groups=2, batch=9),
        Case("one_position", (3, 2), 3, 4, (3, 1), stride=2, batch=9),
        Case("2d_blocks", (3, 3), 3, 4, 1, share=(1, 1), batch=9),
        Case("2d_padded", (3, 3), 2, 4, 2, padding=1, batch=9),
    ],
    ids=lambda case: case.name,
)
def test_parts_of_different_sizes_are_added(case, dtype, monkeypatch):
    """The first part may have more samples than there are filters, and the last part fewer."""
    t, geo = tensors(case, dtype), case.geometry
    # Numbers of the windows, or of a turned input.
    sample_sizes = (geo.groups * geo.window, geo.sites * geo.in_channels)
    for samples, numbers in itertools.product(range(1, case.batch), sample_sizes):
        monkeypatch.setattr(blocks, "MOST_BYTES", samples * numbers * max(4, dtype.itemsize))
        dw, _ = dispatch.weight_grad(t.x, t.g, Problem(geo), dtype, with_bias=False)
        assert_close(dw, expected(case, t)["dw"], 8 * torch.finfo(dtype).eps, f"{samples} samples at most")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case",
    [
        Case("2d", (8, 8), 8, 2, 3, batch=64),
        Case("2d_rows", (8, 8), 8, 2, 3, batch=64, share="rows"),
        Case("depthwise", (8, 8), 8, 8, 3, groups=8, batch=64),
    ],
    ids=lambda case: case.name,
)
def test_no_buffer_grows_with_the_batch(case, dtype, monkeypatch):
    """A buffer may hold 32 samples of the input or its gradient, and the batch has 64."""
    most = 32 * 4 * case.geometry.sites * case.channels
    # All taps are multiplied at once only in layers that are small with all their samples.
    CpuStrategy(block_bytes=10_000, most_bytes=most, tap_by_tap=True).apply(monkeypatch)
    monkeypatch.setattr(workspace, "_kept", threading.local())
    sizes, take = [], Buffer.take
    monkeypatch.setattr(Buffer, "take", lambda *a: (sizes.append(4 * math.prod(a[1:])), take(*a))[1])
    t = tensors(case, dtype)
    assert_results_close(run(case, t), expected(case, t), 8 * torch.finfo(dtype).eps)
    assert max(sizes) <= most


def test_no_turned_input_grows_with_the_batch(monkeypatch):
    case = Case("2d", (8, 8), 3, 2, 3, batch=64)
    t, most = tensors(case, torch.float32), 32 * 4 * case.geometry.sites * case.channels
    CpuStrategy(most_bytes=most).apply(monkeypatch)
    found, original = [], passes.windows
    monkeypatch.setattr(passes, "windows", lambda *a, **k: (found.append(original(*a, **k)), found[-1])[1])
    with torch.no_grad():
        y = lc_triton.local_conv(t.x, t.weight, t.bias, data_format="channels_last")
    assert_close(y, expected(case, t)["y"], 1e-6)
    dw, _ = dispatch.weight_grad(t.x, t.g, Problem(case.geometry), torch.float32, with_bias=False)
    assert_close(dw, expected(case, t)["dw"], 1e-6)
    assert all(rows.layout.turned and rows.tensor.nbytes <= most for rows in found)
    samples = sum(rows.layout.rows.shape[-1] * math.prod(rows.box.shape) for rows in found)
    assert samples == 2 * case.batch * case.geometry.positions


MEMORY_ORDERS = {
    "channels last": lambda x: x,
    "channels first": lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "every second sample": lambda x: torch.stack([x, x], 1)[:, 0],
    "every second channel": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize("reorder", MEMORY_ORDERS.values(), ids=MEMORY_ORDERS)
@pytest.mark.parametrize("case", [TWO_D, Case("2d_padded", (5, 6), 3, 4, 2, padding=1, stride=2)], ids=lambda c: c.name)
def test_inputs_of_any_memory_order_are_turned(case, reorder):
    case = replace(case, batch=40)
    assert Layer.of(Problem(case.geometry)).turned_from < case.batch
    t, problem = tensors(case), Problem(case.geometry)
    x = reorder(t.x)
    y, _ = dispatch.forward(x, t.weight, t.bias, problem, store_z=False)
    assert_close(y, expected(case, t)["y"], 1e-12)
    dw, _ = dispatch.weight_grad(x, t.g, problem, t.x.dtype, with_bias=False)
    assert_close(dw, expected(case, t)["dw"], 1e-12)


def test_batches_of_different_sizes_share_their_boxes():
    """The boxes of each batch size would stay in memory, some megabytes a layer."""
    layer = Layer.of(Problem(Case("2d", (24, 24), 32, 4, 3, padding=1).geometry))
    found = [layer.cut(batch, torch.float32, torch.float32)[1] for batch in range(3700, 3800)]
    assert len(found[0]) == layer.geo.positions
    assert all(boxes is found[0] for boxes in found)


def test_large_buffers_are_not_kept(monkeypatch):
    CpuStrategy().apply(monkeypatch)
    monkeypatch.setattr(workspace, "_kept", threading.local())
    monkeypatch.setattr(workspace, "MOST_KEPT_BYTES", 2000)
    t = tensors(TWO_D, torch.float32)
    run(TWO_D, t)
    assert all(buffer.bytes.nbytes <= 2000 for buffer in workspace._kept.buffers)


def test_nested_buffers_do_not_overwrite_each_other():
    like = torch.empty(0)
    with workspace.buffers(like, torch.float32) as (outer, *_):
        first = outer.take(3).fill_(1)
        with workspace.buffers(like, torch.float64) as inner:
            for buffer in inner:
                buffer.take(3).fill_(2)
        assert first.tolist() == [1, 1, 1]
