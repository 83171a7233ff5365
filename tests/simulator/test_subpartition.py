"""Simulated cycles of short programs, which can be counted by hand."""

from dataclasses import replace

import pytest

from lc_triton.simulator.constants import Constants
from lc_triton.simulator.operations import Operation
from lc_triton.simulator.subpartition import Grid, Traffic, execute

CONSTANTS = Constants(memory_rate=4.3e12)
EXIT = Operation(1, (), None, None, kind="exit")
L2 = {"x": Traffic(1.0, 0.0, CONSTANTS.l2_latency)}
BYTES = 512  # bytes of an access by one warp; the four sub-partitions together access 2048


def op(stall=1, waits=(), at_end=None, at_read=None, **use):
    return Operation(stall, tuple(waits), at_end, at_read, **use)


def alu(**kwargs):
    return op(pipe="alu", busy=2, latency=6, **kwargs)


def access(kind, **kwargs):
    return op(kind=kind, pipe="load_store", busy=16, latency=40, number=BYTES, category="x", **kwargs)


def run(operations, programs=1, warps=4, resident=1, traffic=L2, constants=CONSTANTS):
    operations = [*operations, EXIT]
    return execute(operations, Grid(programs, warps, resident, [list(range(len(operations)))]), traffic, constants)


def test_stalls_add_up():
    use = run([op(stall=4), op(stall=7), op(stall=2)])
    assert use.cycles == 13
    assert use.issue == 4 / 13


def test_a_pipe_is_occupied():
    use = run([alu()] * 10)
    assert use.cycles == 19  # the tenth is issued in cycle 18, the exit after it
    assert use.alu == 20 / 19


def test_two_warps_take_turns_on_a_pipe():
    assert run([alu()] * 10, warps=8).cycles == pytest.approx(2 * 20 - 1, abs=1)


@pytest.mark.parametrize("warps", [1, 2, 4])
def test_a_program_of_few_warps_leaves_room_for_others(warps):
    """The programs that fill the four sub-partitions together take the time of one program."""
    side_by_side = 4 // warps
    programs = 132 * side_by_side
    assert run([alu()] * 10, programs=programs, warps=warps, resident=side_by_side).cycles == 19


def test_programs_run_one_after_another_without_room():
    one = run([alu()] * 10).cycles
    assert run([alu()] * 10, programs=132 * 3).cycles == 3 * one + 2 * CONSTANTS.program_start
    together = run([alu()] * 10, programs=132 * 2, resident=2).cycles
    assert one < together < one + CONSTANTS.program_start


def test_a_load_from_l2():
    """The port of a multiprocessor limits its loads when no other multiprocessor loads."""
    use = run([access("load", at_end=0), op(waits=[0])])
    arrives = 4 * BYTES / CONSTANTS.port_bytes + CONSTANTS.l2_latency
    assert use.cycles == pytest.approx(arrives + 1)
    assert use.l2 == pytest.approx(4 * BYTES / CONSTANTS.port_bytes / use.cycles)


def test_all_multiprocessors_share_l2_and_memory():
    traffic = {"x": Traffic(0.5, 1.0, CONSTANTS.memory_latency)}
    rate = CONSTANTS.memory_rate / 132 / CONSTANTS.clock
    use = run([access("load", at_end=0), op(waits=[0])], programs=132, traffic=traffic)
    assert use.cycles == pytest.approx(0.5 * 4 * BYTES / rate + CONSTANTS.memory_latency + 1)
    slower = replace(CONSTANTS, memory_rate=CONSTANTS.memory_rate / 2)
    more = run([access("load", at_end=0), op(waits=[0])], programs=132, traffic=traffic, constants=slower)
    assert more.cycles == pytest.approx(use.cycles + 0.5 * 4 * BYTES / rate)


def test_no_warp_waits_for_a_store_but_its_bytes_take_time():
    use = run([access("store")] * 100, programs=132)
    assert use.cycles == pytest.approx(100 * 4 * BYTES * 132 * CONSTANTS.clock / CONSTANTS.l2_rate)
    assert use.l2 == pytest.approx(1)


def test_groups_of_copies():
    copies = [access("copy"), op(kind="commit"), access("copy"), op(kind="commit")]
    first = 4 * BYTES / CONSTANTS.port_bytes + CONSTANTS.l2_latency
    one = run([*copies, op(kind="wait_copies", number=1)]).cycles
    both = run([*copies, op(kind="wait_copies", number=0)]).cycles
    assert one == pytest.approx(first + 1)
    assert both == pytest.approx(first + 4 * BYTES / CONSTANTS.port_bytes + 1)
    assert run(copies).cycles < one


def test_a_warp_continues_during_products_of_its_group():
    product = op(kind="group_mma", busy=64, latency=32, number=1, shared=48)
    assert run([product, op(kind="wait_mma", number=0)]).cycles == 64 + 32 + 1
    use = run([product, product, op(kind="wait_mma", number=1), op(kind="wait_mma", number=0)])
    assert use.cycles == 2 * 64 + 32 + 1
    assert (use.tensor, use.load_store) == (128 / use.cycles, 96 / use.cycles)


def test_the_warps_of_a_program_wait_at_a_barrier():
    use = run([alu(), op(kind="barrier")], warps=8)
    # The second warp is issued in cycle 2 and arrives in cycle 4; then both warps continue.
    assert use.cycles == pytest.approx(4 + CONSTANTS.barrier_latency + 1, abs=1)


def test_operands_are_free_after_they_were_read():
    assert run([alu(at_read=3), op(waits=[3])]).cycles == 12 + 1


def test_each_program_executes_the_trace_of_its_kind():
    operations = [op(stall=10), op(stall=1), EXIT]
    grid = Grid(132 * 4, 4, 1, [[0, 0, 2], [1, 2]], lambda program: 0 if program == 0 else 1)
    use = execute(operations, grid, L2, CONSTANTS)
    assert use.cycles == 20 + 3 * (CONSTANTS.program_start + 1)
