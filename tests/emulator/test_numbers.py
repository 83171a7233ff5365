"""The emulator's own arithmetic and parsing."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.emulator.machine.order import order_of
from tests.emulator.ptx import parse
from tests.emulator.translate.numbers import (
    float_to_bf16,
    fma64,
    halves_of_e4m3,
    logic_of_three,
    permute_bytes,
    round_to_tf32,
)


def test_fma_of_float64_rounds_once():
    rng, n = np.random.default_rng(0), 4000
    a, b = (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 20, n) for _ in range(2))
    cancelling = -a * b * (1 + rng.integers(-3, 4, n) * 2.0**-52)
    c = np.where(rng.random(n) < 0.5, cancelling, rng.standard_normal(n) * 2.0 ** rng.integers(-40, 40, n))
    a[:200], b[:200] = 1 + 2.0**-52, 1 + 2.0**-53 * rng.integers(0, 8, 200)  # near ties
    exact = [
        Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    wanted = np.array([e.numerator / e.denominator for e in exact])
    np.testing.assert_array_equal(fma64(a, b, c), wanted)
    assert (a * b + c != wanted).any()
    with np.errstate(all="ignore"):
        infinite = fma64(np.array([np.inf, 1e300, 0.0]), np.array([1.0, 1e10, 1.0]), np.array([1.0, 0.0, -0.0]))
    assert infinite.tolist() == [np.inf, np.inf, 0.0]


def test_rounding_to_short_floats():
    one = np.array([1.0, 1 + 2**-8, 1 + 2**-8 + 2**-20, np.nan, np.inf], np.float32)
    assert float_to_bf16(one).tolist() == [0x3F80, 0x3F80, 0x3F81, 0x7FFF, 0x7F80]
    tie = np.array([1 + 2**-11], np.float32).view(np.uint32)
    assert round_to_tf32(tie, away=True).view(np.float32).tolist() == [1 + 2**-10]
    assert round_to_tf32(tie, away=False).view(np.float32).tolist() == [1.0]


def test_all_numbers_of_float8():
    every = torch.arange(256, dtype=torch.uint8)
    pairs = every.numpy().view(np.uint16)
    wanted = every.view(torch.float8_e4m3fn).to(torch.float16).numpy()
    np.testing.assert_array_equal(halves_of_e4m3(pairs).view(np.float16), wanted)


def test_bytes_and_bits():
    a, b = np.array([0x44332211], np.uint32), np.array([0x88776655], np.uint32)
    assert permute_bytes(a, b, np.array([0x7610], np.uint32)).tolist() == [0x88772211]
    assert permute_bytes(a, b, np.array([0x000F], np.uint32)).tolist() == [0x111111FF]  # byte 7, its sign alone
    assert logic_of_three(a, b, a, 0b10010110).tolist() == [0x44332211 ^ 0x88776655 ^ 0x44332211]


@pytest.mark.parametrize(
    ("successors", "before"),
    [
        ([[1, 2], [3], [3], []], [(1, 3), (2, 3)]),  # both branches before the block where they meet
        ([[1], [2, 3], [1], []], [(1, 2), (2, 3)]),  # the whole loop before what follows it
        ([[1], [2, 4], [3, 2], [1], []], [(2, 3), (3, 4)]),  # a loop in a loop
    ],
)
def test_threads_meet_again(successors, before):
    rank = order_of(successors)
    assert sorted(rank) == list(range(len(successors)))
    assert all(rank[a] < rank[b] for a, b in before)


def test_labels_and_registers_of_inline_assembly_are_its_own():
    kernel = parse(
        """
.visible .entry k(
  .param .u64 .ptr .global .align 1 k_param_0,
  .param .align 64 .b8 k_param_1[128]
)
.reqntid 32
{
  .reg .pred %p<2>;
  .reg .b32 %r<3>;
  { .reg .b32 tmp; mov.b64 {tmp, %r1}, %rd1; }
  { .reg .b32 l<2>; add.u32 l0, l1, %r1; }
  {
  .reg .pred done;
  again:
  @!done bra.uni again;
  }
  @%p1 bra $L;
$L:
  ret;
}
"""
    )
    assert [(p.size, p.offset) for p in kernel.params] == [(8, 0), (128, 64)]
    moves, loop, branch, end = kernel.blocks[:4]
    assert moves[0].args == ["{%tmp_s1, %r1}", "%rd1"]
    assert moves[1].args == ["%l0_s2", "%l1_s2", "%r1"]
    assert (kernel.registers["%l1_s2"], kernel.registers["%r"]) == ("b32", "b32")
    assert loop[0].guard == ("%done_s3", True)
    assert kernel.labels[loop[0].args[0]] == 1
    assert branch[0].args == ["$L"]
    assert kernel.blocks[kernel.labels["$L"]] == end
    assert kernel.threads == 32
