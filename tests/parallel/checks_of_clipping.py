"""`clip_grad_norm_` gives what torch's gives for the same model on one process."""

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lc_triton.parallel import clip_grad_norm_
from tests.cases import assert_close

NORMS = [2.0, 1, 3.5, 0.5, 0, math.inf, -math.inf, -1, "inf"]


def parameters(*dtypes):
    """Of some sizes, with gradients: one has zeros, one has none."""
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (4,), (2, 2), (3, 2), (1, 4))]
    made = [nn.Parameter(p.to(dtypes[i % len(dtypes)])) for i, p in enumerate(made)]
    for i, p in enumerate(made):
        if i != 3:
            p.grad = torch.randn_like(p)
    made[2].grad[0] = 0
    return made


def placed(mesh, made):
    """Some of them on the ranks: in parts, of which some are empty, whole, and on a mesh of two dimensions."""
    grid = DeviceMesh("cpu", torch.arange(mesh.size()).view(1, -1), mesh_dim_names=("data", "positions"))
    meshes = [(mesh, [Shard(0)]), None, (grid, [Replicate(), Shard(1)]), (mesh, [Shard(1)]), (mesh, [Shard(0)])]
    out = []
    for p, where in zip(made, meshes, strict=True):
        if where is None:
            out.append(p)
            continue
        q = nn.Parameter(distribute_tensor(p.detach(), *where, src_data_rank=None))
        q.grad = None if p.grad is None else distribute_tensor(p.grad, *where, src_data_rank=None)
        out.append(q)
    return out


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check_norms_of_every_type(mesh, folder):
    for norm_type in NORMS:
        for foreach in (None, True, False):
            for dtypes in ((torch.float32,), (torch.float64, torch.float32)):
                alone, made = parameters(*dtypes), parameters(*dtypes)
                want = nn.utils.clip_grad_norm_(alone, 0.3, norm_type, foreach=foreach)
                made = placed(mesh, made)
                got = clip_grad_norm_(iter(made), 0.3, norm_type, foreach=foreach)
                name = f"{norm_type} {foreach} {dtypes}"
                assert type(got) is torch.Tensor
                assert got.dtype == want.dtype, name
                assert_close(got, want, 1e-5, name)
                for p, q in zip(made, alone, strict=True):
                    assert (p.grad is None) == (q.grad is None)
                    if q.grad is not None:
                        assert_close(whole(p.grad), q.grad, 1e-5, name)


def check_one_tensor_and_what_torch_takes(mesh, folder):
    for wrap in (lambda p: p, lambda p: [p], lambda p: (q for q in [p]), lambda p: {"w": p}.values()):
        plain = nn.Parameter(torch.zeros(4))
        plain.grad = torch.ones(4)
        part = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)], src_data_rank=None))
        part.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)], src_data_rank=None)
        for p in (plain, part):
            assert clip_grad_norm_(wrap(p), 1.0) == 2.0
            assert_close(whole(p.grad), torch.full((4,), 0.5), 1e-6)
    assert clip_grad_norm_([], 1.0) == 0.0
    assert clip_grad_norm_(nn.Parameter(torch.zeros(2)), 1.0) == 0.0
    with pytest.warns(UserWarning, match="empty generator"):
        clip_grad_norm_((p for p in []), 1.0)
    with pytest.raises(TypeError, match="max_norm must be a number, got 'much'"):
        clip_grad_norm_(plain, "much")
    with pytest.raises(TypeError, match="norm_type must be a number"):
        clip_grad_norm_(plain, 1.0, None)
    with pytest.raises(TypeError, match=r"parameters must be a torch.Tensor, or several, got 3"):
        clip_grad_norm_([3], 1.0)
    with pytest.raises(TypeError, match=r"parameters must be a torch.Tensor, or several, got 3"):
        clip_grad_norm_(3, 1.0)


def check_what_is_not_finite(mesh, folder):
    """One rank has the number, all raise."""
    for bad in (math.inf, math.nan):
        made = placed(mesh, parameters(torch.float32))
        if mesh.get_local_rank() == 0:
            made[0].grad.to_local()[0, 0] = bad
        with pytest.raises(RuntimeError, match=r"total norm of order 2.0 for gradients .* is non-finite"):
            clip_grad_norm_(made, 1.0, error_if_nonfinite=True)
        assert not clip_grad_norm_(made, 1.0).isfinite()


def check_gradients_of_16_bits(mesh, folder):
    """Their norm is one of float32: a sum of squares of float16 has no place in float16."""
    grad = torch.full((4, 300), 300.0, dtype=torch.float16)
    part = nn.Parameter(distribute_tensor(torch.zeros_like(grad), mesh, [Shard(0)], src_data_rank=None))
    part.grad = distribute_tensor(grad, mesh, [Shard(0)], src_data_rank=None)
    assert_close(clip_grad_norm_(part, 1.0), torch.tensor(300 * math.sqrt(1200)), 1e-5)
    assert_close(part.grad.full_tensor().float().norm(), torch.tensor(1.0), 2e-3)


def check_a_gradient_that_a_rank_lacks(mesh, folder):
    """What is sent follows from the parameters."""
    made = placed(mesh, parameters(torch.float32))
    alone = parameters(torch.float32)
    if mesh.get_local_rank() == 2:
        assert made[4].grad.to_local().numel() == 0
        made[4].grad = None
    assert_close(clip_grad_norm_(made, 1.0, math.inf), nn.utils.clip_grad_norm_(alone, 1.0, math.inf), 1e-6)
