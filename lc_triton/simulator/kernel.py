"""The simulated time of one launch: its machine code, its loops' iterations and its bytes, executed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lc_triton.errors import ArgumentValueError
from lc_triton.simulator.constants import Constants
from lc_triton.simulator.counts import Counts, counts_of
from lc_triton.simulator.operations import Operation, classify, products_of
from lc_triton.simulator.sass import Instruction, loops, parse
from lc_triton.simulator.subpartition import Grid, Traffic, Use, execute
from lc_triton.simulator.trace import Trace, trace_of
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.limits import on_vector_units
from lc_triton.tiles.task import Task

if TYPE_CHECKING:
    from lc_triton.launch.disassembly import Disassembly

Loop = tuple[int, int]

# The category of an access by the kernel's argument that its address derives from.
_CATEGORIES: dict[Pass, dict[str, str]] = {
    "forward": {
        **{"p_x": "x", "p_w": "w", "p_scale": "w", "p_mixing": "bias", "p_bias": "bias"},
        **{"p_y": "out", "p_z": "out"},
    },
    "input_grad": {"p_g": "x", "p_w": "w", "p_scale": "w", "p_bias": "bias", "p_dx": "out"},
    "weight_grad": {
        **{"p_x": "x", "p_g": "g", "p_saved": "g", "p_dw": "out", "p_db": "db", "p_dz": "dz"},
        **{"p_m": "states", "p_v": "states", "p_amax": "states", "p_correction": "out"},
        **{"p_added": "added", "p_scalars": "scalars"},
    },
}
# What is small, and counted by no formula: the share of its lanes that is not masked.
_SMALL, _SMALL_LIVE = ("bias", "db"), 0.3
# All lanes of a warp read one hyperparameter, which stays in L2.
_SCALARS, _SCALARS_LIVE = "scalars", 1 / 32
# Accesses to registers that were spilled, on whatever line; they count as accesses to x.
_LOCAL = ("LDL", "STL")
# Registers, shared memory and warps of a multiprocessor, and how they are allocated.
_REGISTERS, _REGISTER_STEP, _LANES = 65_536, 8, 32
_SHARED_BYTES, _SHARED_OF_A_PROGRAM = 233_472, 1024
_WARPS, _MOST_PROGRAMS = 64, 32
# ptxas unrolls the loop of the bias gradient four times, with a second loop for the rest.
_UNROLLED = 4


@dataclass(frozen=True)
class KernelCode:
    """A kernel's instructions and what a launch executes of them.

    Args:
        instructions: as disassembled.
        operations: one for each.
        main: the loop with most matrix instructions; without any, the last one that loads; None if no loop does.
        iterations: of the main loop.
        traces: of a warp, by the kind of its program.
        shares: of all programs, for each kind.
        period: the first of so many programs is of the first kind, the others are of the second.
    """

    instructions: list[Instruction]
    operations: list[Operation]
    main: Loop | None
    iterations: int
    traces: Sequence[Trace]
    shares: Sequence[float]
    period: int

    def kind_of(self, program: int) -> int:
        """The kind of a program."""
        return 0 if self.period == 1 or program % self.period == 0 else 1


@dataclass(frozen=True)
class Simulation:
    """A simulated launch.

    Args:
        microseconds: its time, never less than that of the unavoidable bytes.
        use: of one multiprocessor.
        resident: programs that one holds at once.
        per_multiprocessor: programs that the busiest one executes.
        code: what they executed.
    """

    microseconds: float
    use: Use
    resident: int
    per_multiprocessor: int
    code: KernelCode


def simulate(
    task: Task,
    config: TileConfig,
    disassembly: Disassembly,
    constants: Constants,
    counts: Counts | None = None,
) -> Simulation:
    """Simulate a launch on dense tensors, with a bias and no activation; without a bias where the weight is updated.

    Args:
        task: the pass, layer, batch and dtypes.
        config: the tile that was compiled.
        disassembly: what was compiled, for sm_90.
        constants: the GPU.
        counts: of another kernel for the same pass, such as an experiment; by default those of lc_triton's own.

    Raises:
        ArgumentValueError: products without tensor cores, or a tile whose weights move by tensor descriptors.
        RuntimeError: one warp executes more than three million instructions.
    """
    check_simulated(task)
    if config.descriptor:
        raise ArgumentValueError(name="config", value=config, allowed="without descriptor: boxes are not simulated")
    # The update of a split loop is made by its second launch.
    of_first = replace(task, update=None) if config.split > 1 else task
    least = of_first.least_bytes if counts is None else sum(moved.memory for moved in counts.moved.values())
    counts = counts or counts_of(task, config)
    code = read_code(task.pass_name, config, disassembly, constants, counts)
    resident = resident_programs(disassembly.registers, disassembly.shared_bytes, config.num_warps)
    traffic = _traffic(code, counts, config.num_warps, constants)
    grid = Grid(counts.programs, config.num_warps, resident, code.traces, code.kind_of)
    use = execute(code.operations, grid, traffic, constants)
    seconds = max(use.cycles / constants.clock, least / constants.memory_rate)
    return Simulation(
        microseconds=1e6 * seconds + constants.launch_us + _other_launches_us(counts, constants),
        use=use,
        resident=resident,
        per_multiprocessor=-(-counts.programs // constants.multiprocessors),
        code=code,
    )


def check_simulated(task: Task, name: str = "dtype") -> None:
    """Check that a task's products are made by tensor cores, by which the iterations of its loops are found.

    Args:
        task: the pass, layer, batch and dtypes.
        name: what the caller calls the dtype, for the message.

    Raises:
        ArgumentValueError: float32 without tf32, or float64.
    """
    if on_vector_units(task):
        allowed = "float16, bfloat16, tf32, or one of these beside float32 weights: only tensor cores are simulated"
        raise ArgumentValueError(name=name, value=task.dtype, allowed=allowed)


def read_code(
    pass_name: Pass, config: TileConfig, disassembly: Disassembly, constants: Constants, counts: Counts
) -> KernelCode:
    """What a launch executes of a kernel's machine code."""
    instructions = parse(disassembly.sass)
    by_argument, arguments = _CATEGORIES[pass_name], disassembly.argument_at

    def category_of(instruction: Instruction) -> str:
        if instruction.opcode.startswith(_LOCAL) or instruction.place not in arguments:
            return "x"
        return by_argument[arguments[instruction.place]]

    operations = classify(instructions, category_of, constants)
    main = _main_loop(instructions, operations, config)
    iterations: dict[int, int] = {}
    if main is not None:
        iterations[main[1]] = max(1, round(counts.steps / _unrolled(instructions, main, config)))
    of_main = iterations[main[1]] if main is not None else 0
    if pass_name != "weight_grad":
        trace = trace_of(instructions, iterations)
        return KernelCode(instructions, operations, main, of_main, (trace,), (1.0,), 1)
    with_bias, without = _weight_grad_traces(instructions, main, iterations, counts.steps)
    shares = 1 / counts.blocks, 1 - 1 / counts.blocks
    return KernelCode(instructions, operations, main, of_main, (with_bias, without), shares, counts.blocks)


def resident_programs(registers: int, shared_bytes: int, warps: int) -> int:
    """How many programs one multiprocessor holds at once.

    Args:
        registers: of a thread.
        shared_bytes: of a program.
        warps: of a program.

    Example:
        >>> resident_programs(128, 100_000, 8)
        2
    """
    rounded = -(-registers // _REGISTER_STEP) * _REGISTER_STEP
    by_registers = _REGISTERS // (rounded * _LANES * warps)
    by_shared = _SHARED_BYTES // (shared_bytes + _SHARED_OF_A_PROGRAM) if shared_bytes else _MOST_PROGRAMS
    return max(1, min(by_registers, by_shared, _WARPS // warps, _MOST_PROGRAMS))


def _main_loop(instructions: list[Instruction], operations: list[Operation], config: TileConfig) -> Loop | None:
    all_loops = loops(instructions)

    def products(loop: Loop) -> float:
        return products_of(instructions[loop[0] : loop[1] + 1], config.num_warps)

    multiplying = [loop for loop in all_loops if products(loop) > 0]
    if multiplying:
        return max(multiplying, key=products)
    if config.dot:
        return None
    loading = [loop for loop in all_loops if any(o.kind in ("load", "copy") for o in operations[loop[0] : loop[1] + 1])]
    return loading[-1] if loading else None


def _unrolled(instructions: list[Instruction], main: Loop, config: TileConfig) -> int:
    """Steps that one iteration of the main loop makes."""
    if not config.dot:
        return 1
    products = products_of(instructions[main[0] : main[1] + 1], config.num_warps)
    return max(1, round(products / (config.block_b * config.block_k * config.block_n)))


def _weight_grad_traces(
    instructions: list[Instruction], main: Loop | None, iterations: Mapping[int, int], steps: int
) -> tuple[Trace, Trace]:
    """Of a program that also sums the bias gradient, in a loop before the main one, and of one that jumps over it."""
    before = main[0] if main is not None else len(instructions)
    bias_loops = [loop for loop in loops(instructions) if loop != main and loop[1] < before]
    iterations = dict(iterations)
    if len(bias_loops) == 2:
        iterations[bias_loops[0][1]], iterations[bias_loops[1][1]] = divmod(steps, _UNROLLED)
    elif len(bias_loops) == 1:
        iterations[bias_loops[0][1]] = steps
    with_bias = trace_of(instructions, iterations)
    if not bias_loops:
        return with_bias, with_bias
    first, last = min(loop[0] for loop in bias_loops), max(loop[1] for loop in bias_loops)
    for i, instruction in enumerate(instructions[:first]):
        if instruction.opcode.startswith("BRA") and instruction.target is not None and instruction.target > last:
            return with_bias, trace_of(instructions, iterations, {i: instruction.target})
    return with_bias, with_bias


def _traffic(code: KernelCode, counts: Counts, warps: int, constants: Constants) -> dict[str, Traffic]:
    """How the accesses of each category behave, so that together they move the bytes that were counted."""
    asked: dict[str, float] = defaultdict(float)
    for trace, share in zip(code.traces, code.shares, strict=True):
        for i in trace:
            operation = code.operations[i]
            if operation.kind in ("copy", "load", "store"):
                asked[operation.category] += operation.number * warps * share * counts.programs
    traffic = {name: Traffic(_SMALL_LIVE, 1.0, constants.memory_latency) for name in _SMALL}
    traffic[_SCALARS] = Traffic(_SCALARS_LIVE, 0.0, constants.l2_latency)
    for name, (l2, memory) in counts.moved.items():
        if asked[name]:
            live = min(1.0, l2 / asked[name])
            missed = min(1.0, memory / max(1, live * asked[name]))
            far = memory > 0.5 * l2
            traffic[name] = Traffic(live, missed, constants.memory_latency if far else constants.l2_latency)
    return traffic


def _other_launches_us(counts: Counts, constants: Constants) -> float:
    microseconds = 0.0
    for moved in counts.other_launches:
        rate = constants.cached_rate if moved < constants.cache_bytes else constants.memory_rate
        microseconds += constants.second_launch_us + 1e6 * moved / rate
    return microseconds
