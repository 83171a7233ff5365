"""`lc-triton inspect` for GPUs that are not present."""

import json

import pytest

from lc_triton import cli
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import by_name

KEYS = {
    "workload": str,
    "batch": int,
    "dtype": str,
    "face": str,
    "arch": str,
    "device": str,
    "config": dict,
    "source": str,
    "registers": int,
    "spills": int,
    "shared_bytes": int,
    "programs": int,
    "occupancy": float,
    "wgmma": bool,
    "weight_load_bits": int,
    "weight_traffic_ratio": float,
    "predicted_us": float,
    "roofline_us": float,
}


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(("device", "arch"), [("h200", "sm_90"), ("mi300x", "gfx942")])
def test_json_output_is_one_array(device, arch, capsys):
    assert cli.main(["inspect", "--workload", "lrlc_l2", "--batch", "512", "--device", device, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["face"] for r in rows] == list(PASSES)
    for row in rows:
        assert {name: type(v) for name, v in row.items()} == KEYS
        assert (row["workload"], row["batch"], row["arch"], row["spills"]) == ("lrlc_l2", 512, arch, 0)
        assert 0 < row["occupancy"] <= 1
        assert row["predicted_us"] >= row["roofline_us"] > 0
        assert row["weight_load_bits"] == 128 or device != "h200"
        assert row["weight_traffic_ratio"] == 1.0
        assert row["wgmma"] == (device == "h200")


@pytest.mark.compile
@pytest.mark.slow
def test_weight_gradients_that_update_the_weight(capsys):
    command = ["inspect", "--workload", "lrlc_l2", "--batch", "32", "--face", "weight_grad", "--update", "adamw"]
    assert cli.main([*command, "--dtype", "bfloat16/float32"]) == 0
    out = capsys.readouterr().out
    assert "lrlc_l2, batch 32, bfloat16/float32, weight_grad and adamw update on sm_90\n" in out
    assert "registers, 0 spills" in out
    assert cli.main([*command, "--dtype", "float16"]) == 2
    assert "dtype must be with weights of float32 for an update, as in 'float16/float32'" in capsys.readouterr().err
    assert cli.main([*command[:-1], "sgd", "--dtype", "bfloat16"]) == 2
    assert cli.main([*command[:-1], "sgd", "--dtype", "float32", "--states", "bfloat16"]) == 2
    capsys.readouterr()
    assert cli.main([*command, "--dtype", "bfloat16", "--states", "8 bits"]) == 0
    out = capsys.readouterr().out
    assert "lrlc_l2, batch 32, bfloat16, weight_grad and adamw update with states in 8 bits on sm_90\n" in out
    assert "registers, 0 spills" in out


@pytest.mark.compile
@pytest.mark.slow
def test_text_output(capsys):
    assert cli.main(["inspect", "--workload", "deepface_l4", "--batch", "32", "--face", "forward"]) == 0
    out = capsys.readouterr().out
    assert "deepface_l4, batch 32, bfloat16, forward on sm_90\n" in out
    for word in ("registers, 0 spills", "bytes shared", "occupancy", "wgmma", "weight 128", "the unavoidable takes"):
        assert word in out
    assert out.count("  next ") == 3


def test_occupancy_is_limited_by_the_scarcest_resource():
    h100 = by_name("h100")
    assert h100.occupancy(32, 1000, 4) == 1.0
    assert h100.occupancy(255, 1000, 8) == 8 / 64  # 65,536 registers hold one program of 8 warps
    assert h100.occupancy(32, 120_000, 4) == 4 / 64  # shared memory holds one
