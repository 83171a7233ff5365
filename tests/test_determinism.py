"""Each line of the table in docs/determinism.md for the CPU path: the same bits."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import lc_triton
from tests.cases import BY_NAME, CASES, IDS, Case, run, tensors

ROOT = Path(__file__).parents[1]
# Layers that are too large for one block, one for each strategy: by rows, by windows, in 1-D, depthwise, in groups.
LARGER = [
    Case("rows", (25, 25), 16, 16, 9, batch=8),
    Case("wide", (12, 12), 64, 64, 3, padding=1, batch=16),
    Case("thin", (28, 28), 1, 8, 3, batch=64),
    Case("line", (1024,), 8, 16, 9, batch=8),
    Case("depthwise", (20, 20), 32, 32, 3, groups=32, padding=1, batch=8),
    Case("groups", (12, 12), 32, 32, 3, groups=2, batch=8),
]
ALL = [*CASES, *LARGER]
NAMES = [*IDS, *(case.name for case in LARGER)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def all_equal(first, second):
    return [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.nightly), torch.bfloat16], ids=str
)
@pytest.mark.parametrize("case", ALL, ids=NAMES)
def test_two_calls_agree(case, dtype):
    """Another layer runs between the two and leaves its numbers in the buffers."""
    t = tensors(case, dtype)
    first = run(case, t, activation="gelu")
    run(LARGER[0], tensors(LARGER[0], dtype, seed=1))
    assert all_equal(first, run(case, t, activation="gelu"))


DIGEST = """
import hashlib, torch
from tests.cases import Case, run, tensors
torch.set_num_threads(1)
digest = hashlib.sha256()
for case in (Case("small", (5, 6), 3, 4, 3, batch=3), Case("large", (25, 25), 16, 16, 9, batch=8)):
    for dtype in (torch.float32, torch.bfloat16):
        for value in run(case, tensors(case, dtype), activation="silu").values():
            digest.update(value.detach().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.subprocess
@pytest.mark.slow
def test_processes_agree():
    """Ranks with the same weights and samples are such processes."""
    runs = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], cwd=ROOT, env=os.environ | seed, capture_output=True, text=True, check=True
        ).stdout
        for seed in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"}, {})
    }
    assert len(runs) == 1
    assert re.fullmatch(r"[0-9a-f]{64}\n", runs.pop())


@pytest.mark.slow
def test_threads_agree():
    case, results = LARGER[0], {}
    t = tensors(case, torch.float32)

    def work(number):
        torch.set_num_threads(1)
        results[number] = run(case, t)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(all_equal(results[0], other) for other in results.values())


ONE_NUMBER = Case("one_number", (16, 16), 1, 1, 16, batch=3)  # one position, channel and filter


@pytest.mark.parametrize("case", [*ALL, ONE_NUMBER], ids=[*NAMES, "one_number"])
def test_training_and_inference_agree(case):
    t = tensors(case, torch.float32)
    y = run(case, t, activation="silu")["y"]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            rebuilt = lc_triton.local_conv(
                t.x, t.weight, t.bias, **case.arguments, activation="silu", data_format="channels_last"
            )
        assert torch.equal(rebuilt, y)


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGER, ids=lambda case: case.name)
def test_torchs_deterministic_mode_changes_no_bit(case):
    t = tensors(case, torch.float32)
    first, small = run(case, t), run(BY_NAME["2d"], tensors(BY_NAME["2d"], torch.float32))
    torch.use_deterministic_algorithms(True)
    try:
        assert all_equal(first, run(case, t))
        assert all_equal(small, run(BY_NAME["2d"], tensors(BY_NAME["2d"], torch.float32)))
    finally:
        torch.use_deterministic_algorithms(False)
