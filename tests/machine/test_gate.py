"""A part of `make gate`: one row of each regime in every run, all rows in bfloat16 for sm_90 in the nightly run."""

import pytest
import triton

from tests.machine import by_rule
from tests.machine.gate import DEVICE_NAMES, DTYPES, Row, all_rows, faults, figures, reviewed, rows, updating_rows

# bfloat16 x with float32 weights needs many registers: both operands pass through them, or dw is float32.
MIXED = [
    Row("s_local", 512, "bfloat16/float32", "forward", "h100"),
    Row("yolov1_local", 64, "bfloat16/float32", "weight_grad", "a100"),
]
REGIMES = [("deepface_l4", 32), ("yolov1_local", 1), ("lrlc_l1", 512), ("d_local_l3", 64), ("depthwise_56", 32)]
OTHERS = [(dtype, device) for dtype in DTYPES for device in DEVICE_NAMES if (dtype, device) != ("bfloat16", "h100")]
# All rows but those of a layer that is similar to cuda_convnet2_local3.
ROWS = [row for row in rows() if (row.dtype, row.device) == ("bfloat16", "h100")] + MIXED
ROWS = [row for row in ROWS if row.workload != "cuda_convnet2_local4"]
ROWS += [
    Row(*REGIMES[i % len(REGIMES)], dtype, pass_name, device)
    for i, (dtype, device) in enumerate(OTHERS)
    for pass_name in ("forward", "weight_grad" if i % 2 else "input_grad")
]
ROWS += updating_rows()
DISTINCT_BUILDS = list({row.kernel: row for row in ROWS}.values())
UPDATING = Row("yolov1_local", 64, "bfloat16/float32", "weight_grad", "h100", "adamw")
# For kinds of layers that no regime has, the last row: the weight gradient of the largest batch.
OTHER_KINDS = ("all_tnn_l1", "d_local_l7", "genome_1d", "grouped_28", "lrlc_l2_rows")
LARGEST = {row.workload: row for row in ROWS if row.workload in OTHER_KINDS and row.update == "none"}

# The kernels whose tiles follow from a rule: every run builds one of each.
RULE_ROWS = [
    by_rule.RuleRow("table", "lrlc_l2", 64, "bfloat16", "weight_grad", "h100"),
    by_rule.RuleRow("four_bits", "lrlc_l2", 64, "bfloat16", "input_grad", "h100"),
    by_rule.RuleRow("low_rank4", "lrlc_l2", 64, "bfloat16", "forward", "h100"),
    by_rule.RuleRow("linear+adamw", "512x512", 32, "bfloat16", "input_grad", "h100"),
]


def nightly_mark(row):
    """Marks of a row. The rows of every run have none: regimes in bfloat16 on sm_90, and one row of each other kind."""
    if isinstance(row, by_rule.RuleRow):
        return () if row in RULE_ROWS else pytest.mark.nightly
    regime = (row.workload, row.batch) in REGIMES and (row.dtype, row.device) == ("bfloat16", "h100")
    other = (row.dtype, row.device) in OTHERS and " forward " not in str(row) and row.update == "none"
    return () if regime or other or row in [*LARGEST.values(), *MIXED, UPDATING] else pytest.mark.nightly


def test_at_most_180_builds():
    assert len(DISTINCT_BUILDS) <= 180


# The bytes that kernels spill with other versions of Triton, by row.
SPILLS = {"3.6": {"all_tnn_l1 b512 bfloat16 weight_grad h100": 176}}


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=nightly_mark(row)) for row in [*DISTINCT_BUILDS, *by_rule.rows()]], ids=str
)
def test_no_figure_is_worse_than_reviewed(row):
    on_file = reviewed()
    assert str(row) in on_file, "run `make gate`, and review the file it writes"
    # Registers depend on the compiler: with another Triton only the rules are checked, not the figures.
    is_same_triton = on_file["triton"] == triton.__version__
    found = figures(row)
    if not is_same_triton and found["spills"] <= SPILLS.get(triton.__version__[:3], {}).get(str(row), 0):
        found["spills"] = 0
    assert not faults(row, found, on_file[str(row)] if is_same_triton else None)


@pytest.mark.slow
def test_the_file_has_all_rows_without_faults():
    on_file = reviewed()
    assert {str(row) for row in all_rows()} == on_file.keys() - {"triton"}
    assert not [fault for row in all_rows() for fault in faults(row, on_file[str(row)], None)]


def test_worse_figures_are_faults():
    row = DISTINCT_BUILDS[0]
    figures_ = reviewed()[str(row)]
    assert not faults(row, figures_, figures_)
    for change in (
        {"registers": figures_["registers"] + 1},
        {"spills": 1},
        {"shared_bytes": 10**6},
        {"weight_traffic": 1.2},
        {"weight_bits": figures_["weight_bits"] // 2},
    ):
        assert faults(row, figures_ | change, figures_)
