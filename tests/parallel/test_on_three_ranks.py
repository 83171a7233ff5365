"""Checks on two and three ranks, some of which have no part of a layer, in one test: processes are slow to start."""

import pytest
import torch.distributed as dist

from tests.parallel import checks_of_clipping, checks_of_copies, checks_of_empty_parts, checks_of_replicas, ranks

pytestmark = [pytest.mark.subprocess, pytest.mark.slow]


@pytest.mark.nightly
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_on_three_ranks(tmp_path):
    failed = ranks.run(
        [checks_of_replicas, checks_of_clipping, checks_of_copies, checks_of_empty_parts], 3, tmp_path, seconds=20
    )
    assert not failed, "\n".join(f"{name} {text}" for name, text in failed.items())
