"""Kernels executed from their PTX: a few of the jobs of `make emulate`, which runs them all."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lc_triton.tiles.device import DEVICES
from lc_triton.tiles.model import choose
from lc_triton.tiles.task import Task
from tests.cases import Case
from tests.emulator import check
from tests.emulator.execute import execute
from tests.emulator.jobs import ARCHS, PARTS, TYPES, Job, jobs

pytestmark = pytest.mark.compile

ROOT = Path(__file__).parents[2]
# One job or two for each of the types; together they hold every kernel, both architectures and every kind of tile.
QUICK = {
    ("boxes/boxes_narrow swap", "bf16", 90),
    ("cases/2d_dilated 1x2 split", "bf16", 80),
    ("cases/2d_same 2x4 swap", "fp16", 90),
    ("cases/2d_groups 1x1 reduce split", "fp32", 80),
    ("cases/3d_stride_same 2x2", "tf32", 90),
    ("cases/2d_whole_input 2x2", "bf16/fp32", 90),
    ("cases/2d_depthwise_multiplier 1x2 reduce", "fp64", 90),
    ("updates/1d 1x2 split", "fp32", 80),
    ("updates/2d_asymmetric 1x2 stream", "bf16/fp32", 90),
    ("updates/2d_groups 1x2 reduce", "fp64", 90),
    ("updates/1d 2x4 swap", "fp32", 80),  # states in bfloat16
    ("updates/1d 1x2 split", "bf16", 80),  # masters of 24 bits
    ("updates/filters_40 1x2 split, 8 bits", "fp32", 90),
    ("shared/rows 1x4 2 warps, region 16 swap", "fp16/fp32", 90),
    ("shared/block 1x2 reduce, region 64", "tf32", 80),
}

FIXED = jobs(parts=("boxes", "wide", "cases", "shared", "updates"))  # the model takes a while to pick tiles


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("job", [job for job in FIXED if (job.name, job.types, job.arch) in QUICK], ids=str)
def test_kernels_compute_the_definition_and_touch_nothing_else(job):
    report = execute(job.sound)
    assert not report.faults
    assert report.compared
    assert not report.refused


def test_the_sweep_has_all_types_and_architectures():
    assert {(job.types, job.arch) for job in FIXED} == {(types, arch) for types in TYPES for arch in ARCHS}
    assert {(job.name, job.types, job.arch) for job in FIXED} >= QUICK


@pytest.mark.nightly
def test_the_sweep_has_2000_jobs():
    everything = jobs()
    assert len(everything) >= 2000
    assert len({check.key_of(job) for job in everything}) == len(everything)
    assert {job.name.split("/")[0] for job in everything} == set(PARTS)


@pytest.mark.nightly
@pytest.mark.parametrize(("device", "batch"), [("h100", 256), ("a100", 64)])
def test_the_weight_gradient_that_triton_compiled_wrongly(device, batch):
    """docs/dev/nvptx-16-bit-index.md: bfloat16 x beside float32 weights, with the model's own tile."""
    case = Case("miscompiled", (8, 8), 24, 64, 5, padding=2, batch=64)
    gpu = DEVICES[device]
    config = choose(Task("weight_grad", case.geometry, batch, "bfloat16", "float32"), gpu)
    report = execute(Job("miscompiled", case, "bf16/fp32", int(gpu.arch), (None, None, config), most=12))
    assert not report.faults
    assert report.compared


@pytest.mark.nightly
@pytest.mark.subprocess
def test_a_sweep_goes_on_where_it_was_stopped(tmp_path):
    out = tmp_path / "jobs.jsonl"
    command = [sys.executable, "-m", "tests.emulator.check", "--parts", "cases", "--dtypes", "bf16", "--arch", "80"]
    command += ["--filter", "1d_one", "--out", str(out)]

    def sweep(*more):
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=True)
        return int(re.findall(r"(\d+) of them finished before", done.stdout)[0])

    assert sweep() == 0
    lines = out.read_text().splitlines()
    assert len(lines) > 3
    assert all(json.loads(line)["numbers"] for line in lines[1:])
    out.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # a kill in the middle of a line
    assert sweep("--resume") == len(lines) - 2
    assert len(out.read_text().splitlines()) == len(lines)
    out.write_text(json.dumps({"sources": "other"}) + "\n")
    other = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "is of other kernels" in other.stderr
