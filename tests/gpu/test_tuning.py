"""Measurements of tiles on a GPU."""

import pytest
import torch

import lc_triton
from lc_triton import cli
from lc_triton.core.geometry import Geometry
from lc_triton.ops import reference
from lc_triton.tiles import model, paths, store
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.task import Task

pytestmark = pytest.mark.gpu

LAYER = Geometry.make((20, 20), 16, 16, 3)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path)
    store.read_or_warn.cache_clear()
    yield tmp_path
    store.read_or_warn.cache_clear()


@pytest.mark.parametrize("types", [("bfloat16", "bfloat16", "ieee"), ("float32", "float32", "tf32")], ids="-".join)
@pytest.mark.parametrize("pass_name", PASSES)
def test_the_models_best_tiles_are_right_and_timed(pass_name, types):
    check_and_time(Task(pass_name, LAYER, 32, *types))


def check_and_time(task):
    """Check and time the three best tiles of the model."""
    from lc_triton.search.bench import GpuBench

    best = [config for _, config in model.ranked(task, of_gpu(0))[:3]]
    bench = GpuBench(task, 0)
    bench.compile(best)
    for config in best:
        bench.check(config)
    times = bench.time(best, 5)
    assert [len(t) for t in times] == [5] * 3
    assert min(min(t) for t in times) > 0


@pytest.mark.parametrize(
    ("update", "state_dtype", "types"),
    [
        ("adamw", None, ("bfloat16", "float32")),
        ("adamw", "bfloat16", ("bfloat16", "float32")),
        ("adamw", "int8", ("bfloat16", "bfloat16")),
        ("momentum", None, ("bfloat16", "float32")),
        ("sgd", None, ("float32", "float32", "tf32")),
        ("square_sum", None, ("bfloat16", "float32")),
    ],
)
def test_tiles_of_updates_are_right_and_timed(update, state_dtype, types):
    check_and_time(Task("weight_grad", LAYER, 32, *types, update=update, state_dtype=state_dtype))


def entries(folder, pass_name):
    (path,) = folder.glob(f"*/*/{pass_name}.json")
    return store.read(path)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_context_manager(folder, mode):
    layer = lc_triton.LocalConv2d(16, 16, 3, input_size=20, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(32, 16, 20, 20, device="cuda", dtype=torch.bfloat16)
    state = torch.cuda.get_rng_state()
    with lc_triton.tuning(seconds=3), mode(), torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
        if mode is torch.enable_grad:
            y.float().square().sum().backward()
    assert torch.equal(torch.cuda.get_rng_state(), state)
    passes = PASSES[:1] if mode is not torch.enable_grad else ("forward", "weight_grad")
    assert sorted(p.stem for p in folder.glob("*/*/*.json")) == sorted(passes)
    (entry,) = entries(folder, "forward").values()
    assert entry.median_us > 0
    sites = x.movedim(1, -1).double()
    with torch.no_grad():
        want = reference.forward(sites, layer.weight.double(), layer.bias.double(), LAYER).movedim(-1, 1)
    torch.testing.assert_close(y.double(), want, rtol=1e-2, atol=1e-2)


def test_the_command(folder, capsys):
    passes = ["forward", "weight_grad"]
    command = ["tune", "--shapes", "20x20x16,k3,f16", "--batches", "32", "--faces", *passes, "--budget", "20"]
    assert cli.main(command) == 0
    assert "2 measured" in capsys.readouterr().out
    for pass_name in passes:
        (entry,) = entries(folder, pass_name).values()
        assert 0 < entry.p20_us <= entry.median_us <= entry.p80_us
    assert cli.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("in use is your measured tile") == 2
