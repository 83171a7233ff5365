"""Tuning with interpreted kernels: wrong results are caught, and launches use the tiles that were found."""

from dataclasses import replace

import pytest
import torch

import lc_triton
from lc_triton.core.geometry import Geometry
from lc_triton.launch import passes
from lc_triton.search import scratch, tuner
from lc_triton.search.accuracy import Judge
from lc_triton.search.strategy import Disagreement
from lc_triton.tiles import model, paths, store
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import of_gpu
from lc_triton.tiles.task import Task
from tests.cases import CASES
from tests.search.fakes import FakeBench

LAYER = Geometry.make((5, 4), 3, 5, 3, stride=(2, 1), padding=1)
TILE = TileConfig(1, 2, 8, 16, 32)
CPU = torch.device("cpu")
TYPES = [("float32", "float32"), ("float16", "float16"), ("float16", "float32"), ("float64", "float64")]


def judge(pass_name, types=("float32", "float32"), layer=LAYER, batch=19):
    task = Task(pass_name, layer, batch, *types)
    return Judge(task, scratch.make(task, CPU))


@pytest.mark.slow
@pytest.mark.parametrize("types", TYPES, ids="-".join)
@pytest.mark.parametrize("pass_name", PASSES)
def test_right_tiles_are_accepted(pass_name, types):
    judge(pass_name, types).check(TILE)


@pytest.mark.slow
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(
    "name",
    [
        "1d_stride_past_kernel",
        *(pytest.param(n, marks=pytest.mark.nightly) for n in ("3d_dilated_groups", "2d_depthwise")),
    ],
)
def test_right_tiles_of_other_layers_are_accepted(pass_name, name):
    layer = next(case for case in CASES if case.name == name).geometry
    judge(pass_name, layer=layer, batch=3).check(TileConfig(1, 1, 16, 16, 16, dot=layer.groups < 5))


UPDATES = [
    ("adamw", None, "float32", "float32"),
    ("adamw", "bfloat16", "float16", "float32"),
    ("adamw", "int8", "float16", "float32"),
    ("adamw", None, "float32", "bfloat16"),
    ("adamw", None, "float64", "float64"),
    ("momentum", None, "float16", "float32"),
    ("nesterov", None, "float32", "float32"),
    ("sgd", None, "float32", "float32"),
    ("add", None, "float32", "float32"),
    ("square_sum", None, "float16", "float32"),
]


def update_judge(update, state_dtype, *types, layer=LAYER):
    task = Task("weight_grad", layer, 19, *types, update=update, state_dtype=state_dtype)
    return Judge(task, scratch.make(task, CPU))


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES, ids=lambda update: "-".join(map(str, update)))
def test_right_updates_are_accepted(update):
    judge = update_judge(*update)
    judge.check(TILE)
    judge.check(replace(TILE, split=2))  # begins from the same weights and states


def gradient_of_another_size(tensors):
    tensors["g"].mul_(1.05)


def missing_sample(tensors):
    tensors["x"][0] = 0


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES, ids=lambda update: "-".join(map(str, update)))
@pytest.mark.parametrize("fault", [gradient_of_another_size, missing_sample])
def test_updates_by_a_wrong_gradient_are_caught(update, fault, monkeypatch):
    run = scratch.run

    def wrong(task, tensors, config):
        operands = {name: tensors[name].clone() for name in ("x", "g")}
        fault(operands)
        run(task, {**tensors, **operands}, config)

    monkeypatch.setattr(scratch, "run", wrong)
    with pytest.raises(Disagreement, match="times what rounding"):
        update_judge(*update).check(TILE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "first", "second", "correction", "total"])
def test_an_output_that_an_update_does_not_write_is_caught(name, monkeypatch):
    update = next(update for update in UPDATES if (update[0] == "square_sum") == (name == "total"))
    update = UPDATES[3] if name == "correction" else update
    run = scratch.run

    def without_update(task, tensors, config):
        before = tensors[name].clone()
        run(task, tensors, config)
        tensors[name].copy_(before)

    monkeypatch.setattr(scratch, "run", without_update)
    with pytest.raises(Disagreement, match="NaN or infinity" if name == "total" else "off by"):
        update_judge(*update).check(TILE)


def scaled(outputs):
    outputs *= 1.02


def one_sample(outputs):
    outputs[-1] += 0.5


def one_number(outputs):
    outputs.view(-1)[7] += 0.1


def unwritten(outputs):
    outputs[1] = torch.nan


# Two of the types alternate: the tolerance follows from the types, and the tests above accept right tiles of all types.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("pass_name", "fault", "types"),
    [
        (pass_name, fault, TYPES[(f + n) % 2])
        for f, pass_name in enumerate(PASSES)
        for n, fault in enumerate((scaled, one_sample, one_number, unwritten))
    ],
    ids=lambda value: getattr(value, "__name__", None) or (value if isinstance(value, str) else "-".join(value)),
)
def test_wrong_results_are_caught(pass_name, types, fault, monkeypatch):
    run = scratch.run

    def wrong(task, tensors, config):
        run(task, tensors, config)
        fault(tensors[scratch.OUTPUTS[pass_name][-1]])

    monkeypatch.setattr(scratch, "run", wrong)
    with pytest.raises(Disagreement, match="NaN, or numbers" if fault is unwritten else "times what rounding"):
        judge(pass_name, types).check(TILE)


def test_a_missing_tap_is_caught(monkeypatch):
    """One product of each sum is missing, the smallest fault of a kernel."""
    run = scratch.run

    def wrong(task, tensors, config):
        weight = tensors["weight"].clone()
        weight[..., 0, 0, 0, :] = 0
        run(task, {**tensors, "weight": weight}, config)

    monkeypatch.setattr(scratch, "run", wrong)
    with pytest.raises(Disagreement):
        judge("forward", ("float16", "float16")).check(TILE)


def test_scratch_of_an_update_has_its_layout():
    for update, state_dtype, *types in UPDATES:
        task = Task("weight_grad", LAYER, 4, *types, update=update, state_dtype=state_dtype)
        made = scratch.make(task, CPU)
        assert {name: (t.shape, t.dtype) for name, t in made.items()} == scratch.layout(task)


def test_scratch_does_not_change_the_random_generator():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    task = Task("forward", LAYER, 4, "float16", "float32")
    made = scratch.make(task, CPU)
    assert torch.equal(torch.rand(2), expected)
    assert sum(t.numel() * t.itemsize for t in made.values()) == scratch.nbytes(task)
    assert made["x"].dtype == made["y"].dtype == torch.float16
    assert made["weight"].dtype == made["bias"].dtype == torch.float32


@pytest.mark.slow
def test_layers_launch_the_tiles_that_tuning_found(tmp_path, monkeypatch):
    """Inside the block each pass is searched once, and launched with the tile that won."""
    searched, launched = [], []

    def second_best(task):
        return model.ranked(task, of_gpu(0))[1][1]

    def bench(task, gpu):
        searched.append(task)
        return FakeBench(lambda config: 5.0 if config == second_best(task) else 9.0)

    prepare = passes.prepare

    def record(launches, kernel, grid, config, *args):
        launch = prepare(launches, kernel, grid, config, *args)

        def recorded_launch(*tensors):
            launched.append(config)
            launch(*tensors)

        return recorded_launch

    monkeypatch.setattr(passes, "prepare", record)
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path)
    monkeypatch.setattr(tuner, "gpu_bench", bench)
    monkeypatch.setattr(tuner, "check_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    store.read_or_warn.cache_clear()
    layer = lc_triton.LocalConv1d(2, 3, 3, input_size=6, activation="relu")
    x = torch.randn(3, 2, 6, requires_grad=True)

    def step():
        launched.clear()
        y = layer(x)
        return [y, *torch.autograd.grad(y.sum(), (x, layer.weight, layer.bias))], list(launched)

    with lc_triton.backend("reference"):
        expected, _ = step()
    with lc_triton.backend("triton"):
        _, before = step()
        with lc_triton.tuning(seconds=1e6):
            in_block, used = step()
            step()
        after, used_after = step()
    # The weight gradient runs before, because it computes dz.
    assert [t.pass_name for t in searched] == ["forward", "weight_grad", "input_grad"]
    assert used == used_after == [second_best(t) for t in searched]
    assert all(a != b for a, b in zip(before, used, strict=True))
    for a, b, c in zip(in_block, after, expected, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, c)
    store.read_or_warn.cache_clear()
