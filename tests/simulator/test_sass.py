"""The parser of machine code: instructions, control bits, branches, and the resources of each instruction."""

import pytest

from lc_triton.simulator.constants import Constants
from lc_triton.simulator.operations import classify, group_mma_shape, products_of
from lc_triton.simulator.sass import loops, parse
from lc_triton.simulator.trace import trace_of

CONSTANTS = Constants(memory_rate=4.3e12, tag_cycles=1.5)


def control(stall=1, at_end=7, at_read=7, waits=0):
    return (stall | at_end << 5 | at_read << 8 | waits << 11) << 41


def sass(*lines):
    """Instructions as nvdisasm prints them; a line is (text, control bits), a label or a source position."""
    text = [".text.kernel:"]
    address = 0
    for line in lines:
        if isinstance(line, str):
            text.append(line)
            continue
        text.append(f"        /*{address:04x}*/                   {line[0]} ;           /* 0x{0x1234:016x} */")
        text.append(f"                                                    /* 0x{line[1]:016x} */")
        address += 16
    return "\n".join(text) + "\n"


LOOP = sass(
    '\t//## File "/somewhere/kernels/forward.py", line 42',
    ("MOV R1, c[0x0][0x28]", control()),
    (".L_x_0:",)[0],
    ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", control(stall=3, at_read=1, waits=0b100001)),
    '\t//## File "/somewhere/kernels/common.py", line 7',
    ("@!P0 BRA `(.L_x_1)", control()),
    ("@P1 IADD3 R1, R1, 0x1, RZ", control(stall=15)),
    ("@P2 BRA `(.L_x_0)", control()),
    ".L_x_1:",
    ("EXIT", control(at_end=2)),
    ".L_x_2:",
    ("BRA `(.L_x_2)", control()),
)


def test_parsing():
    instructions = parse(LOOP)
    opcodes = ["MOV", "LDGSTS.E.BYPASS.128", "BRA", "IADD3", "BRA", "EXIT", "BRA"]
    assert [i.opcode for i in instructions] == opcodes
    assert [i.predicate for i in instructions] == [None, None, "@!P0", "@P1", "@P2", None, None]
    assert [i.target for i in instructions] == [None, None, 5, None, 1, None, 6]
    assert [i.place for i in instructions] == [("forward.py", 42)] * 2 + [("common.py", 7)] * 5
    copy = instructions[1]
    assert (copy.stall, copy.sets_at_end, copy.sets_at_read, copy.waits_for) == (3, None, 1, (0, 5))
    assert (instructions[3].stall, instructions[5].sets_at_end) == (15, 2)
    assert loops(instructions) == [(1, 4)]


@pytest.mark.parametrize(
    ("iterations", "jumps", "executed"),
    [
        ({4: 1}, {}, [0, 1, 2, 3, 4, 5]),
        ({4: 3}, {}, [0] + [1, 2, 3, 4] * 3 + [5]),
        ({4: 0}, {}, [0, 5]),
        ({4: 3}, {2: 5}, [0, 1, 2, 5]),
        ({}, {}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_executed_instructions(iterations, jumps, executed):
    assert trace_of(parse(LOOP), iterations, jumps) == executed


def test_each_iteration_executes_the_inner_loop():
    text = sass(
        ".L_x_0:", ("NOP", control()), ".L_x_1:", ("NOP", control()), ("@P0 BRA `(.L_x_1)", control()),
        ("@P0 BRA `(.L_x_0)", control()), ("EXIT", control()),
    )  # fmt: skip
    assert trace_of(parse(text), {2: 2, 3: 3}) == ([0] + [1, 2] * 2 + [3]) * 3 + [4]


@pytest.mark.slow
def test_a_warp_without_an_end_is_refused():
    text = sass(".L_x_0:", ("NOP", control()), ("@P0 BRA `(.L_x_0)", control()), ("EXIT", control()))
    with pytest.raises(RuntimeError, match="executes more than 3,000,000 instructions"):
        trace_of(parse(text), {1: 10**9})


@pytest.mark.parametrize(
    ("text", "pipe", "busy", "latency", "kind", "number"),
    [
        ("IADD3 R1, R2, R3, RZ", "alu", 2, 6, None, 0),
        ("IMAD.WIDE R1, R2, R3, R4", "heavy_fma", 2, 6, None, 0),
        ("FFMA R1, R2, R3, R4", "fma", 1, 6, None, 0),
        ("MUFU.EX2 R1, R2", "special", 8, 22, None, 0),
        ("ULDC.64 UR4, c[0x0][0x208]", "uniform", 2, 12, None, 0),
        ("S2R R1, SR_TID.X", "constants", 2, 35, None, 0),
        ("HMMA.16816.F32.BF16 R1, R2, R3, R4", "tensor", 6.4, 34, None, 0),
        ("LDS.128 R1, [R2]", "load_store", 16, 30, None, 0),
        ("LDS.U16 R1, [R2]", "load_store", 4, 30, None, 0),
        ("LDSM.16.MT88.4 R1, [R2]", "load_store", 16, 30, None, 0),
        ("SHFL.BFLY PT, R1, R2, 0x1, 0x1f", "load_store", 4, 24, None, 0),
        ("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "load_store", 24, 40, "copy", 512),
        ("LDG.E.U16 R1, desc[UR4][R2.64]", "load_store", 6, 40, "load", 64),
        ("STG.E.64 desc[UR4][R2.64], R4", "load_store", 12, 40, "store", 256),
        ("STL [R1], R2", "load_store", 6, 40, "store", 128),
        ("LDGDEPBAR", None, 0, 0, "commit", 0),
        ("DEPBAR.LE SB0, 0x2", None, 0, 0, "wait_copies", 2),
        ("WARPGROUP.DEPBAR.LE gsb0, 0x1", None, 0, 0, "wait_mma", 1),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", None, 0, 0, "barrier", 0),
        ("BAR.ARV 0x0, 0x80", None, 0, 0, None, 0),
        ("EXIT", None, 0, 0, "exit", 0),
        ("@P0 EXIT", None, 0, 0, None, 0),
        ("@!PT LDS R1, [R2]", None, 0, 0, None, 0),
        ("NOP", None, 0, 0, None, 0),
    ],
)
def test_resources_of_an_instruction(text, pipe, busy, latency, kind, number):
    (operation,) = classify(parse(sass((text, control()))), lambda _: "x", CONSTANTS)
    assert (operation.pipe, operation.kind, operation.number) == (pipe, kind, number)
    assert (operation.busy, operation.latency) == (busy, latency)
    assert operation.category == ("x" if kind in ("copy", "load", "store") else "")


@pytest.mark.parametrize(
    ("text", "busy", "shared", "ends"),
    [
        ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", 64, 48, 1),
        ("HGMMA.64x16x16.F32.BF16 R24, gdesc[UR4], R24", 20, 20, 0),
        ("HGMMA.64x16x16.F32.BF16 R24, R4, gdesc[UR4], R24, !UPT", 8, 4, 0),
    ],
)
def test_products_of_a_warp_group(text, busy, shared, ends):
    instructions = parse(sass((text, control())))
    (operation,) = classify(instructions, lambda _: "x", CONSTANTS)
    assert (operation.kind, operation.busy, operation.shared) == ("group_mma", busy, shared)
    assert (operation.number, operation.latency) == (ends, 32)
    n, k = group_mma_shape(instructions[0].opcode)
    assert products_of(instructions, 8) == 64 * n * k * 2


def test_products_of_one_warp():
    instructions = parse(
        sass(("HMMA.16816.F32.BF16 R1, R2, R3, R4", control()), ("HMMA.1688.F32.TF32 R1, R2, R3, R4", 0))
    )
    assert products_of(instructions, 4) == 4 * (16 * 8 * 16 + 16 * 8 * 8)
