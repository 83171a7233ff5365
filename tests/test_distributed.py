"""Data-parallel training on two processes of this machine: the gradients and weights of one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

import lc_triton
from lc_triton.errors import FreedStorageError, OptimizerStepError
from tests.cases import assert_close

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")

STEPS = 3


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        lc_triton.LocalConv2d(2, 4, 3, input_size=6, activation="relu"),
        nn.BatchNorm2d(4).eval(),
        lc_triton.LocalConvTranspose2d(4, 2, 3, input_size=4, bias="channel"),
        nn.ReLU(inplace=True),
    ).double()


def data():
    return torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(net, x, to_full=lambda p: p):
    """The weights after some steps, and the last gradients."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    parameters = list(net.parameters())
    return [to_full(p).detach().clone() for p in parameters], [to_full(p.grad).detach().clone() for p in parameters]


def train_fsdp1(wrapper, net):
    """The weights after the steps of `train` under FSDP1, and after a state dict was saved and loaded."""
    layers = ModuleWrapPolicy({lc_triton.LocalConv2d, lc_triton.LocalConvTranspose2d})
    options = {"use_orig_params": wrapper == "FSDP1, original parameters", "device_id": torch.device("cpu")}
    sharded = FullyShardedDataParallel(net, auto_wrap_policy=layers, **options)
    x = data()[dist.get_rank() :: 2]
    train(sharded, x, lambda _: torch.empty(0))  # a rank may have no part of a gradient
    state = {name: value.clone() for name, value in sharded.state_dict().items()}
    sharded.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
    sharded.load_state_dict(state)
    clipping = lc_triton.FusedSGD(sharded.parameters(), lr=0.1, clip_norm=0.1)
    sharded(x).sum().backward()
    with pytest.raises(OptimizerStepError, match=r"model\.clip_grad_norm_"):
        clipping.step()
    if not options["use_orig_params"]:
        with pytest.raises(FreedStorageError, match=r"^weight of shape"):
            net[0].module(x)  # the weight is gathered only within the call of the wrapper
    return [state[name] for name, _ in model().named_parameters()], []


def work(rank, wrapper, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        net = model()
        if wrapper.startswith("FSDP1"):
            result = train_fsdp1(wrapper, net)
        elif wrapper == "DDP":
            result = train(DistributedDataParallel(net), data()[rank::2])
        else:
            mesh = init_device_mesh("cpu", (2,))
            for layer in (net[0], net[2]):
                fully_shard(layer, mesh=mesh)
            fully_shard(net, mesh=mesh)
            result = train(net, data()[rank::2], lambda p: p.full_tensor())
        if rank == 0:
            torch.save(result, out)
    finally:
        dist.destroy_process_group()


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["DDP", "FSDP2", "FSDP1, original parameters", "FSDP1, flat ones"])
def test_two_processes_train_as_one(wrapper, tmp_path):
    mp.spawn(work, (wrapper, str(tmp_path / "store"), str(tmp_path / "out.pt")), nprocs=2)
    weights, gradients = torch.load(tmp_path / "out.pt")
    want_weights, want_gradients = train(model(), data())
    if wrapper.startswith("FSDP1"):
        want_gradients = []  # FSDP1 keeps parts of the gradients
    for got, want in zip([*weights, *gradients], [*want_weights, *want_gradients], strict=True):
        assert_close(got, want, 1e-9)
