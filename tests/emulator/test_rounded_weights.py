"""float32 weights that are rounded once: launches bound for a copy without memory, executed from their PTX."""

import pytest
import torch

from lc_triton.core.activations import Activation
from lc_triton.core.memory_format import INTERNAL
from lc_triton.core.problem import Problem
from lc_triton.launch import plan
from lc_triton.ops import reference
from lc_triton.ops.bound import NodeArguments
from lc_triton.ops.node import BoundNode
from tests.cases import Case, assert_close, tensors
from tests.emulator.driver import emulated_gpu

pytestmark = [pytest.mark.compile, pytest.mark.nightly]


def test_first_and_cached_calls_read_the_copy(monkeypatch):
    for name in ("LEAST_BATCH", "LEAST_WEIGHTS"):
        monkeypatch.setattr(plan, name, 0)
    case = Case("rounded", (3,), 8, 20, 2, batch=17)
    t = tensors(case, torch.float16, weight_dtype=torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (t.x, t.weight, t.bias)]
    problem = Problem(case.geometry, Activation("relu"), "triton")
    wide = [tensor.detach().double().requires_grad_() for tensor in (t.x, t.weight.half(), t.bias)]
    want = reference.forward(*wide, case.geometry, Activation("relu"))
    with emulated_gpu(90) as gpu:
        node = BoundNode(NodeArguments(problem, INTERNAL, INTERNAL), *leaves)
        for _ in range(2):
            y = node(*leaves)
            got = torch.autograd.grad(y, leaves, t.g)
            assert_close(y.detach(), want.detach(), 2e-3)
            for a, b in zip(got, torch.autograd.grad(want, wide, t.g.double(), retain_graph=True), strict=True):
                assert_close(a, b, 4e-3)
    assert node.operand_dtype is torch.float16
    assert [kernel for kernel, _ in gpu.results] == ["forward_kernel", "weight_grad_kernel", "input_grad_kernel"] * 2
    assert not any(result.findings for _, result in gpu.results)
