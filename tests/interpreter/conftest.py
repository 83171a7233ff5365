import os

import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

_create_splat = InterpreterBuilder.create_splat


def _create_splat_of_booleans(self, block_type, scalar):
    """`create_splat`, whose result has booleans where the block is of conditions.

    Triton makes integers of a scalar condition beside a block, and the masked loads of Triton 3.9 take only booleans.
    May go when the oldest Triton here has neither.
    """
    block = _create_splat(self, block_type, scalar)
    if block_type.scalar == tl.int1:
        return TensorHandle(block.data.astype(bool), tl.int1)
    return block


def pytest_collection_modifyitems(config, items):
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.exit("tests/interpreter must run in a process of its own, with TRITON_INTERPRET=1: see `make test`", 4)
    InterpreterBuilder.create_splat = _create_splat_of_booleans
