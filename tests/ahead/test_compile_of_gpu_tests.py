"""All kernels that tests/gpu launches can be compiled ahead."""

import pytest

from lc_triton.ahead.session import collecting
from lc_triton.launch import launcher
from lc_triton.ops.position_penalty import KINDS
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import by_name
from tests.cases import CASES
from tests.gpu.compile import calls
from tests.gpu.test_on_a_gpu import BATCHES, DTYPES


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.compile
def test_every_call_of_the_tests_on_a_gpu_can_be_compiled_ahead(tmp_path, monkeypatch):
    """The calls run without the compiler, which takes 15 minutes: `python -m tests.gpu.compile` compiles."""
    launched = set()
    monkeypatch.setattr(launcher.Launch, "__init__", lambda self, kernel, *_: launched.add(kernel.__name__))
    monkeypatch.setattr(launcher.Launch, "__call__", lambda *args: None)
    device = by_name("h200")
    with collecting(device, tmp_path) as session:
        for call in calls(device):
            call()
    other_kernels = ["low_rank_forward"]
    other_kernels += [
        f"{kind}_{name}" for kind in ("four_bits", "four_bits_vector") for name in ("forward", "input_grad")
    ]
    other_kernels += [f"gather_{name}" for name in PASSES]
    other_kernels += [f"{kind}{suffix}" for kind in KINDS for suffix in ("", "_grad")]
    assert launched >= {
        f"{name}_kernel" for name in (*PASSES, "shared_weight_grad", "combine", "pad_channels", *other_kernels)
    }
    assert {task.pass_name for task in session.tiles} == set(PASSES)
    assert len(session.tiles) >= len(CASES) * len(BATCHES) * len(DTYPES)
