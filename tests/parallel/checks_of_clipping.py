"""`clip_grad_norm_` equals torch's for the same model on one process."""

import math

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lc_triton.parallel import clip_grad_norm_
from tests.cases import assert_close
from tests.parallel.networks import full

NORMS = [2.0, 1, 3.5, 0.5, 0, math.inf, -math.inf, -1, "inf"]


def parameters(*dtypes):
    """Parameters of different sizes with gradients: one has zeros in it, and one parameter has none."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (4,), (2, 2), (3, 2), (1, 4))]
    params = [nn.Parameter(p.to(dtypes[i % len(dtypes)])) for i, p in enumerate(params)]
    for i, p in enumerate(params):
        if i != 3:
            p.grad = torch.randn_like(p)
    params[2].grad[0] = 0
    return params


def distributed(mesh, params):
    """Distribute parameters: most are split, some with empty parts, one over two mesh dimensions; one stays plain."""
    grid = DeviceMesh("cpu", torch.arange(mesh.size()).view(1, -1), mesh_dim_names=("data", "positions"))
    meshes = [(mesh, [Shard(0)]), None, (grid, [Replicate(), Shard(1)]), (mesh, [Shard(1)]), (mesh, [Shard(0)])]
    out = []
    for p, placement in zip(params, meshes, strict=True):
        if placement is None:
            out.append(p)
            continue
        q = nn.Parameter(distribute_tensor(p.detach(), *placement, src_data_rank=None))
        q.grad = None if p.grad is None else distribute_tensor(p.grad, *placement, src_data_rank=None)
        out.append(q)
    return out


def check_norms_of_every_type(mesh, folder):
    for norm_type in NORMS:
        for foreach in (None, True, False):
            for dtypes in ((torch.float32,), (torch.float64, torch.float32)):
                single, params = parameters(*dtypes), parameters(*dtypes)
                want = nn.utils.clip_grad_norm_(single, 0.3, norm_type, foreach=foreach)
                params = distributed(mesh, params)
                got = clip_grad_norm_(iter(params), 0.3, norm_type, foreach=foreach)
                name = f"{norm_type} {foreach} {dtypes}"
                assert type(got) is torch.Tensor
                assert got.dtype == want.dtype, name
                assert_close(got, want, 1e-5, name)
                for p, q in zip(params, single, strict=True):
                    assert (p.grad is None) == (q.grad is None)
                    if q.grad is not None:
                        assert_close(full(p.grad), q.grad, 1e-5, name)


def check_arguments(mesh, folder):
    for wrap in (lambda p: p, lambda p: [p], lambda p: (q for q in [p]), lambda p: {"w": p}.values()):
        plain = nn.Parameter(torch.zeros(4))
        plain.grad = torch.ones(4)
        part = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)], src_data_rank=None))
        part.grad = distribute_tensor(torch.ones(4), mesh, [Shard(0)], src_data_rank=None)
        for p in (plain, part):
            assert clip_grad_norm_(wrap(p), 1.0) == 2.0
            assert_close(full(p.grad), torch.full((4,), 0.5), 1e-6)
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


def check_non_finite_gradients(mesh, folder):
    """All ranks raise for a number that one rank has."""
    for bad in (math.inf, math.nan):
        params = distributed(mesh, parameters(torch.float32))
        if mesh.get_local_rank() == 0:
            params[0].grad.to_local()[0, 0] = bad
        with pytest.raises(RuntimeError, match=r"total norm of order 2.0 for gradients .* is non-finite"):
            clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
        assert not clip_grad_norm_(params, 1.0).isfinite()


def check_gradients_of_16_bits(mesh, folder):
    """Their norm is computed in float32, because a sum of squares overflows float16."""
    grad = torch.full((4, 300), 300.0, dtype=torch.float16)
    part = nn.Parameter(distribute_tensor(torch.zeros_like(grad), mesh, [Shard(0)], src_data_rank=None))
    part.grad = distribute_tensor(grad, mesh, [Shard(0)], src_data_rank=None)
    assert_close(clip_grad_norm_(part, 1.0), torch.tensor(300 * math.sqrt(1200)), 1e-5)
    assert_close(part.grad.full_tensor().float().norm(), torch.tensor(1.0), 2e-3)


def check_a_gradient_that_a_rank_lacks(mesh, folder):
    """Communication depends on the parameters, not on which gradients a rank has."""
    params = distributed(mesh, parameters(torch.float32))
    single = parameters(torch.float32)
    if mesh.get_local_rank() == 2:
        assert params[4].grad.to_local().numel() == 0
        params[4].grad = None
    assert_close(clip_grad_norm_(params, 1.0, math.inf), nn.utils.clip_grad_norm_(single, 1.0, math.inf), 1e-6)
