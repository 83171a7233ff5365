"""Simulated times of a large matmul and a copy, whose speeds are roughly known.

On an H200, cuBLAS was measured at 790 TFLOP/s, and copies at 4.3 TB/s (`tiles/device.py`). The simulated speed of a
simple kernel with a good tile should be a little lower.
"""

from dataclasses import replace

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from lc_triton.launch.disassembly import disassemble
from lc_triton.simulator import constants_of
from lc_triton.simulator.kernel import resident_programs
from lc_triton.simulator.operations import classify, products_of
from lc_triton.simulator.sass import loops, parse
from lc_triton.simulator.subpartition import Grid, Traffic, execute
from lc_triton.simulator.trace import trace_of
from lc_triton.tiles.device import by_name

pytestmark = [pytest.mark.compile, pytest.mark.slow, pytest.mark.nightly]

CONSTANTS = constants_of(by_name("h200"))
SIZE = 8192


@triton.jit
def matmul_kernel(
    p_a, p_b, p_c, M, N, K, stride_a, stride_b, stride_c,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The matmul of Triton's tutorial, which computes blocks of c in groups of ROWS rows, for reuse in L2."""
    pid = tl.program_id(0)
    across = tl.cdiv(N, BN)
    group = pid // (ROWS * across)
    rows = min(tl.cdiv(M, BM) - group * ROWS, ROWS)
    m = (group * ROWS + pid % (ROWS * across) % rows) * BM + tl.arange(0, BM)
    n = pid % (ROWS * across) // rows * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    p_a += (m % M)[:, None] * stride_a + k[None, :]
    p_b += k[:, None] * stride_b + (n % N)[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(0, tl.cdiv(K, BK)):
        a = tl.load(p_a, mask=k[None, :] < K - step * BK, other=0.0)
        b = tl.load(p_b, mask=k[:, None] < K - step * BK, other=0.0)
        acc = tl.dot(a, b, acc)
        p_a += BK
        p_b += BK * stride_b
    tl.store(p_c + stride_c * m[:, None] + n[None, :], acc.to(tl.float16), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def copy_kernel(p_from, p_to, N, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_to + o, tl.load(p_from + o, mask=o < N), mask=o < N)


def compiled(kernel, types, constants, warps, stages):
    """The machine code for arguments that are all multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants}
    values = {(names.index(name),): value for name, value in constants.items()}
    target = GPUTarget("cuda", 90, 32)
    source = ASTSource(kernel, signature, values, aligned)
    return disassemble(compile(source, target=target, options={"num_warps": warps, "num_stages": stages}))


def seconds(code, trace, category_of, grid, traffic):
    operations = classify(parse(code.sass), category_of, CONSTANTS)
    resident = resident_programs(code.registers, code.shared_bytes, grid.warps)
    use = execute(operations, replace(grid, resident=resident, traces=[trace]), traffic, CONSTANTS)
    return use.cycles / CONSTANTS.clock + 1e-6 * CONSTANTS.launch_us


@pytest.mark.parametrize(
    ("bm", "bn", "bk", "warps", "stages", "min_speed", "max_speed"),
    [(128, 256, 64, 8, 3, 500, 650), (128, 128, 64, 4, 4, 370, 480), (64, 128, 32, 4, 4, 250, 330)],
)
def test_a_matmul_of_8192(bm, bn, bk, warps, stages, min_speed, max_speed):
    types = dict.fromkeys(["p_a", "p_b", "p_c"], "*fp16")
    types |= dict.fromkeys(["M", "N", "K", "stride_a", "stride_b", "stride_c"], "i32")
    code = compiled(matmul_kernel, types, {"BM": bm, "BN": bn, "BK": bk, "ROWS": 8}, warps, stages)
    instructions = parse(code.sass)
    products = {
        (first, last): products_of(instructions[first : last + 1], warps) for first, last in loops(instructions)
    }
    main = max(products, key=products.__getitem__)
    steps = SIZE // bk / round(products[main] / (bm * bn * bk))
    trace = trace_of(instructions, {main[1]: round(steps)})
    # Many programs read the same operands from L2, and about one of each wave reads them from memory.
    traffic = {
        "operand": Traffic(1.0, 0.08, CONSTANTS.l2_latency),
        "result": Traffic(1.0, 1.0, CONSTANTS.memory_latency),
    }

    def category_of(instruction):
        return "result" if instruction.opcode.startswith("STG") else "operand"

    grid = Grid(SIZE // bm * SIZE // bn, warps, 1, [])
    teraflops = 2e-12 * SIZE**3 / seconds(code, trace, category_of, grid, traffic)
    assert min_speed < teraflops < max_speed, teraflops


@pytest.mark.parametrize(("block", "warps", "min_speed"), [(1024, 4, 0.85), (8192, 8, 0.85)])
def test_a_copy(block, warps, min_speed):
    numbers = 1 << 24
    code = compiled(copy_kernel, {"p_from": "*bf16", "p_to": "*bf16", "N": "i64"}, {"BLOCK": block}, warps, 3)
    trace = trace_of(parse(code.sass), {})
    traffic = {"": Traffic(1.0, 1.0, CONSTANTS.memory_latency)}
    rate = 4 * numbers / seconds(code, trace, lambda _: "", Grid(numbers // block, warps, 1, []), traffic)
    assert min_speed < rate / CONSTANTS.memory_rate < 0.95, rate
