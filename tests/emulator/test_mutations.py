"""The emulator finds faults: PTX from which one thing is removed gives findings or wrong numbers."""

from dataclasses import replace

import pytest
import triton

from lc_triton.tiles.config import TileConfig
from tests.cases import Case
from tests.emulator.execute import execute
from tests.emulator.jobs import Job
from tests.emulator.mutations import MAY_CHANGE_NOTHING, MUTATIONS
from tests.emulator.ptx import parse
from tests.machine.gate import reviewed

pytestmark = pytest.mark.compile

LAYER = Case("broken", (3, 2), 64, 64, 3, padding=1, batch=66)
TILE = TileConfig(1, 1, 64, 64, 64)
JOBS = {
    "sm_80": Job("broken", LAYER, "bf16", 80, (TILE,) * 3),
    "sm_90": Job("broken", LAYER, "bf16", 90, (TILE,) * 3),
    "sm_90 with descriptors": Job("broken", LAYER, "bf16", 90, (replace(TILE, descriptor=True),) * 3),
}
SMALL = Case("broken", (1, 2), 64, 64, (1, 3), padding=(0, 1), batch=18)
QUICK = [
    ("no cp.async.wait_group", "sm_80"),
    ("no bar.sync", "sm_80"),
    ("copies that are not masked", "sm_80"),
    ("no fence.proxy.async", "sm_90"),
    ("no mbarrier wait", "sm_90 with descriptors"),
]


def broken(name, job):
    """By kernel, how many places are changed, and whether something was seen."""
    hits = {}

    def change(ptx):
        new, count = MUTATIONS[name](ptx)
        hits[parse(ptx).name] = count
        return new

    report = execute(job, change)
    return {kernel: bool(report.wrong[kernel] or report.findings.get(kernel)) for kernel, n in hits.items() if n}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), QUICK)
def test_a_broken_forward_is_seen(name, target):
    job = replace(JOBS[target], case=SMALL, configs=(JOBS[target].configs[0], None, None))
    found = broken(name, job)
    if not found and triton.__version__ != reviewed()["triton"]:
        pytest.skip(f"Triton {triton.__version__} writes none of it into this kernel")
    assert found == {"forward_kernel": True}


@pytest.mark.nightly
@pytest.mark.parametrize("target", JOBS)
def test_kernels_as_they_are_are_sound(target):
    assert not execute(JOBS[target]).faults


@pytest.mark.nightly
@pytest.mark.parametrize("name", MUTATIONS)
def test_whatever_is_broken_is_seen(name):
    seen = [pair for target, job in JOBS.items() for pair in broken(name, job).items()]
    assert seen, "nothing was changed: Triton writes this otherwise now"
    if not MAY_CHANGE_NOTHING.match(name):
        assert not [kernel for kernel, was_seen in seen if not was_seen]
