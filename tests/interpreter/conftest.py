import os

import pytest


def pytest_collection_modifyitems(config, items):
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.exit("tests/interpreter must run in a process of its own, with TRITON_INTERPRET=1: see `make test`", 4)
