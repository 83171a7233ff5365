"""Checks on four ranks, in one test, because the processes take longer to start than the checks."""

import pytest
import torch.distributed as dist

from tests.parallel import checks_of_cost, checks_of_regions, checks_of_styles, checks_of_training, ranks

pytestmark = [pytest.mark.subprocess, pytest.mark.slow]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_on_four_ranks(tmp_path):
    failed = ranks.run([checks_of_styles, checks_of_training, checks_of_cost, checks_of_regions], 4, tmp_path)
    assert not failed, "\n".join(f"{name} {text}" for name, text in failed.items())
