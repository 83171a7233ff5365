"""Files of workloads, and the commands that read them."""

import json

import pytest

from lc_triton import cli
from lc_triton.core.geometry import Geometry
from lc_triton.errors import WorkloadError
from lc_triton.tiles import paths, workloads
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import DEVICES, by_name
from lc_triton.tiles.model import gather_traffic_ratio, roofline, roofline_terms, weight_traffic_ratio
from lc_triton.tiles.task import Task

GOOD = {"name": "a", "input": [8, 8, 4], "kernel": [3, 3], "filters": 8, "batches": [1, 32]}


def test_the_published_workloads():
    found = workloads.read(paths.shipped_workloads())
    assert len(found) == 18
    layer = found["deepface_l4"]
    assert layer.geometry.out_spatial == (55, 55)
    assert layer.batches == (1, 32, 128, 512)
    assert found["grouped_28"].geometry.groups > 1
    assert found["genome_1d"].geometry.ndim == 1


WRONG = [
    (lambda w: w | {"kernle": 3}, 3, "field 'kernle' is not known (did you mean 'kernel'?)"),
    (lambda w: w | {"kernel": [3, 3, 3]}, 6, "kernel_size must be an int or 2 ints"),
    (lambda w: w | {"kernel": "3"}, 6, "kernel must be a list of integers, got '3'"),
    (lambda w: w | {"padding": "causal"}, 9, "padding='causal' exists in 1-D only"),
    (lambda w: w | {"filters": 0}, 7, "out_channels must be an integer >= 1, got 0"),
    (lambda w: w | {"batches": []}, 8, "batches must be a list of integers, got []"),
    (lambda w: w | {"batches": [2.5]}, 8, "batches must be an integer >= 1, got 2.5"),
    (lambda w: w | {"input": [8]}, 5, "input must be [L, C], [H, W, C] or [D, H, W, C]"),
    (lambda w: w | {"input": [8, True, 3]}, 5, "input must be an integer >= 1, got True"),
    (lambda w: w | {"name": 7}, 4, "name must be a string, got 7"),
    (lambda w: {k: v for k, v in w.items() if k != "filters"}, 3, "filters must be given"),
    (lambda w: w | {"name": "first"}, 4, "name must be given once, got 'first'"),
    (lambda w: 5, 3, "a workload must be an object, got 5"),
]


@pytest.mark.parametrize(("change", "line", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_field_is_named_with_its_line(change, line, message, tmp_path):
    wrong = change(GOOD)
    if isinstance(wrong, dict):
        body = ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in wrong.items())
        lines = "{\n" + body + "}"
    else:
        lines = json.dumps(wrong)
    first = json.dumps(GOOD | {"name": "first"})
    path = tmp_path / "w.json"
    path.write_text(f'{{"workloads": [\n{first},\n{lines}]}}')
    if "kernle" in message:
        line = 9
    with pytest.raises(WorkloadError) as caught:
        workloads.read(path)
    assert str(caught.value).startswith(f"workload file {path}, line {line}: ")
    assert message in str(caught.value)


TRAPS = """{
 "comment": "these \\"workloads\\": [",
 "nested": {"workloads": [{"name": "x"}]},
 "workloads": [
  {"name": "kernel", "source": "filters",
   "input": [8, 8, 4], "filters": 8, "batches": [1],
   "kernel": %s},
  {"name": "later", "filters": 8, "batches": [1],
   "input": [8, 8, 4], "kernel": 3,
   "stride": 2,
   "kernel": %s,
   "padding": 0%s
  }
 ]
}"""


@pytest.mark.parametrize(
    ("values", "line", "message"),
    [
        (("[0, 3]", "[3, 3]", ""), 7, "kernel_size must be an integer >= 1, got 0"),
        (
            ("[3, 3]", "[0, 3]", ""),
            11,
            "kernel_size must be an integer >= 1, got 0",
        ),  # the last of two equal keys is used
        (("[3, 3]", "[3, 3]", ', "groups": 3'), 12, "in_channels must be divisible by groups"),
        (("[3, 3]", "[3, 3]", ', "filters": 0'), 12, "out_channels must be an integer >= 1, got 0"),
        (("[3, 3]", "[9, 9]", ""), 11, "kernel_size (9, 9) with dilation"),
        (("[3, 3]", "[3, 3]", ', "kernle": 0'), 12, "field 'kernle' is not known"),
    ],
)
def test_an_error_names_the_line_of_the_field(values, line, message, tmp_path):
    """Other entries, texts and names also contain the name of the field."""
    path = tmp_path / "w.json"
    path.write_text(TRAPS % values)
    with pytest.raises(WorkloadError) as caught:
        workloads.read(path)
    assert f"line {line}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n\n,}", "line 3: it is no JSON"),
        ("[]", 'line 1: it must be an object with a list "workloads"'),
        ('{"workloads": 3}', 'it must be an object with a list "workloads"'),
    ],
)
def test_a_file_without_workloads(text, message, tmp_path):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        workloads.read(path)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path, capsys):
    assert cli.main(["configs", "--all", "--workloads", str(tmp_path / "none.json")]) == 2
    assert "line 1: it cannot be read" in capsys.readouterr().err


def test_configs_lists_the_tiles_of_all_passes(capsys):
    assert cli.main(["configs", "--workload", "lrlc_l2", "--batch", "64", "--device", "a100", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["face"] for r in rows] == list(PASSES)
    for row in rows:
        assert TileConfig(**row["config"])
        assert (row["workload"], row["batch"], row["dtype"]) == ("lrlc_l2", 64, "bfloat16")
        assert row["source"] in ("user", "shipped", "architecture", "model")
    assert cli.main(["configs", "--all", "--face", "forward", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == sum(len(w.batches) for w in workloads.read(paths.shipped_workloads()).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "deepface_l9"], "workload 'deepface_l9' is not known (did you mean 'deepface_l"),
        (["--all", "--device", "h300"], "device 'h300' is not known (did you mean 'h"),
        (["--all", "--face", "backward"], "face 'backward' is not known (did you mean 'forward'?)"),
        (["--all", "--dtype", "fp16"], "dtype 'fp16' is not known"),
        (["--all", "--batch", "0"], "--batches must be an integer >= 1, got 0"),
        (["--workload", "lrlc_l2", "--dtypes", "float32/float16"], "dtype must be two equal ones, or float16/float32"),
        (
            ["--all", "--device", "L40S"],
            "device 'L40S' is not known; allowed: a100, b200, h100, h200, mi300x, rtx4090; or a GPU in a file",
        ),
        (["--all", "--devices", "none.json"], "device file none.json cannot be used: it cannot be read"),
        ([], "--workload must be given, or else --all or --shapes, got None"),
        (["--workload", "lrlc_l2", "--all"], "--workload must be given without --all"),
    ],
)
@pytest.mark.parametrize("command", ["configs", "inspect"])
def test_wrong_arguments(command, arguments, message, capsys):
    assert cli.main([command, *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lc-triton: " + message)
    if message.startswith("device '"):
        assert all(name in err for name in DEVICES)


def test_roofline_and_traffic():
    def task(batch, pass_name="forward"):
        layer = workloads.read(paths.shipped_workloads())["deepface_l4"].geometry
        return Task(pass_name, layer, batch, "bfloat16", "bfloat16")

    h200 = by_name("h200")
    bytes_moved = 2 * (55 * 55 * 81 * 16 * 16 + 32 * (63 * 63 * 16 + 55 * 55 * 16))
    assert roofline(task(32), h200) == pytest.approx(bytes_moved / h200.memory_rate)
    many = 2 * 10**5 * 55 * 55 * 81 * 16 * 16
    assert roofline(task(10**5), h200) == pytest.approx(many / h200.tensor_rate)
    full_sectors, half_sectors = TileConfig(2, 4, 16, 32, 64), TileConfig(4, 4, 8, 32, 64)
    assert roofline_terms(task(32), h200, full_sectors)[:3] == (
        bytes_moved,
        28 * 14 * 32 * (10 * 12 * 16) * 2
        + 2 * 55 * 55 * 81 * 16 * 16,  # a tile of 2 x 4 positions gathers 10 x 12 sites
        2 * 28 * 14 * 32 * (10 * 12 * 16) * 128,
    )
    assert weight_traffic_ratio(task(32), full_sectors) == 1.0  # 81 * 16 * 16 consecutive numbers a position
    assert weight_traffic_ratio(task(32), half_sectors) == 2.0  # runs of 8 numbers use half a sector
    assert weight_traffic_ratio(task(32, "input_grad"), half_sectors) == 1.0  # 8 channels of 16 filters are one run


@pytest.mark.parametrize(
    ("channels", "dtype", "tile", "ratio"),
    [
        (1, "bfloat16", TileConfig(), (6 + 30) / 6),  # runs of three numbers that begin at any even address
        (1, "float32", TileConfig(), (12 + 28) / 12),
        (3, "bfloat16", TileConfig(), (18 + 30) / 18),
        (3, "bfloat16", TileConfig(1, 16), 128 / (18 * 6)),  # all runs begin at the same alignment
        (16, "bfloat16", TileConfig(), 1.0),
        (8, "bfloat16", TileConfig(), (48 + 16) / 48),
    ],
)
def test_gathers_of_few_channels_read_full_sectors(channels, dtype, tile, ratio):
    layer = Geometry.make((34, 32), channels, 16, 3)
    task = Task("forward", layer, 16, dtype, dtype)
    assert gather_traffic_ratio(task, tile) == pytest.approx(ratio)


def test_the_weight_gradient_reads_g_again_for_the_bias():
    layer = Geometry.make((10,), 16, 32, 3)
    tile = TileConfig(1, 1, 32, 16, 16)  # three blocks of k
    terms = roofline_terms(Task("weight_grad", layer, 64, "bfloat16", "bfloat16"), by_name("h200"), tile)
    assert terms.l2_bytes == 8 * 64 * 2 * (48 + (3 + 1) * 32)
