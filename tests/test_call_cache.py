"""The call cache: its key covers what decides a call, observers bypass it, and little runs before a launch."""

import gc
import logging
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lc_triton
from lc_triton.core import fused
from lc_triton.launch import passes, update
from lc_triton.launch.absent import absent_gpu
from lc_triton.ops import run as calls
from lc_triton.tiles.chooser import chooser

X, WEIGHT, BIAS = (2, 3, 5, 5), (3, 3, 3, 3, 3, 4), (3, 3, 4)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return lc_triton.LocalConv2d(3, 4, 3, input_size=5, activation="relu")


def keys(layer):
    return list(layer._plan.calls)


def call_and_count_keys(layer, x):
    """The output of a layer, and the number of keys that the call added to the cache."""
    before = len(keys(layer))
    y = layer(x)
    return y, len(keys(layer)) - before


class Subclass(torch.Tensor):
    """A subclass without any change."""


class PassThroughMode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_a_second_call_is_not_bound_again(layer, monkeypatch):
    x = torch.randn(X)
    first, added = call_and_count_keys(layer, x)
    assert added == 1

    def refuse(*args, **kwargs):
        raise AssertionError("bound again")

    monkeypatch.setattr(calls, "_bind", refuse)
    other = torch.randn(X)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(other), first)


@pytest.mark.parametrize(
    "change",
    {
        "batch": lambda layer, x: layer(torch.cat([x, x])),
        "unbatched": lambda layer, x: layer(x[0]),
        "strides": lambda layer, x: layer(x.contiguous(memory_format=torch.channels_last)),
        "no graph": lambda layer, x: torch.no_grad()(layer)(x),
        "backend": lambda layer, x: lc_triton.backend("reference")(layer)(x),
        "autocast": lambda layer, x: torch.autocast("cpu")(layer)(x),
        "dtype of x and the layer": lambda layer, x: layer.double()(x.double()),
        "precision": lambda layer, x: with_tf32(layer, x),
        "a tuner": lambda layer, x: with_tuner(layer, x),
        "a frozen layer": lambda layer, x: layer.requires_grad_(False)(x),
        "no bias": lambda layer, x: without_bias(layer)(x),
        "a channel's bias": lambda layer, x: with_channel_bias(layer)(x),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_change_that_decides_a_call_adds_a_key(layer, change):
    x = torch.randn(X)
    layer(x)
    before = set(keys(layer))
    change[1](layer, x)
    assert set(keys(layer)) - before


def with_tf32(layer, x):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        return layer(x)
    finally:
        matmul.fp32_precision = before


def with_tuner(layer, x):
    with chooser.asking(lambda task, gpu: None):
        return layer(x)


def without_bias(layer):
    layer.bias = None
    return layer


def with_channel_bias(layer):
    layer.bias = nn.Parameter(torch.zeros(4))
    return layer


@pytest.mark.parametrize(
    "change",
    {
        "a subclass": lambda layer, x: layer(x.as_subclass(Subclass)),
        "a dispatch mode": lambda layer, x: in_mode(layer, x),
        "vmap": lambda layer, x: torch.func.vmap(layer)(x),
        "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
        "a tracer": lambda layer, x: torch.jit.trace(layer, (x,), check_trace=False),
        "saved-tensor hooks": lambda layer, x: with_hooks(layer, x),
        "an address between": lambda layer, x: layer(torch.zeros(x.numel() + 1)[1:].view(x.shape)),
        "a negated view": lambda layer, x: layer(torch.imag(torch.complex(x, x).conj())),
    }.items(),
    ids=lambda item: item[0],
)
def test_observed_calls_bypass_the_cache(layer, change):
    x = torch.randn(X)
    layer(x)
    before = keys(layer)
    change[1](layer, x)
    assert keys(layer) == before


def in_mode(layer, x):
    with PassThroughMode():
        return layer(x)


def with_hooks(layer, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return layer(x)


def test_a_plan_keeps_a_limited_number_of_calls(layer, monkeypatch):
    monkeypatch.setattr(calls, "MOST_CALLS", 3)
    for batch in range(1, 8):
        x = torch.randn(batch, *X[1:])
        assert torch.equal(layer(x), layer(x))
        assert len(keys(layer)) <= 3


def test_each_new_key_is_checked(layer):
    """A call with a known key skips the checks; these have new keys."""
    layer(torch.randn(X))
    with pytest.raises(lc_triton.errors.ChannelError):
        layer(torch.randn(2, 4, 5, 5))
    with pytest.raises(lc_triton.errors.SpatialSizeError):
        layer(torch.randn(2, 3, 5, 6))
    with pytest.raises(lc_triton.errors.LocalConvError, match="float64"):
        layer(torch.randn(X, dtype=torch.float64))


def test_the_backend_is_logged_once_a_shape(layer, caplog):
    with caplog.at_level(logging.DEBUG, "lc_triton.dispatch"):
        for batch in (2, 2, 3):
            layer(torch.randn(batch, *X[1:]))
    assert [record.getMessage() for record in caplog.records] == [
        f"x ({batch}, 3, 5, 5) torch.float32, weight {WEIGHT}: backend cpu" for batch in (2, 3)
    ]


@pytest.mark.parametrize("stride", [1.0, True, "1", [1.0, 1], (True, 1)])
def test_equal_arguments_of_wrong_types_find_no_plan(stride):
    x, weight = torch.randn(X), torch.randn(WEIGHT)
    lc_triton.local_conv(x, weight, stride=1)
    lc_triton.local_conv(x, weight, stride=(1, 1))
    with pytest.raises(lc_triton.errors.LocalConvError, match="stride"):
        lc_triton.local_conv(x, weight, stride=stride)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("activation", ["relu", "silu", "linear"])
def test_a_cached_call_keeps_no_tensor(backend, activation, monkeypatch):
    """Neither the forward nor the backwards that are bound with it keep one."""
    monkeypatch.setattr(calls, "resolve", lambda device_type: backend)
    layer = lc_triton.LocalConv2d(3, 4, 3, input_size=5, activation=activation)
    with absent_gpu(keep=False):
        x = torch.randn(X, requires_grad=True)
        y = layer(x)
        y.sum().backward()
    assert keys(layer)
    tensors = [weakref.ref(t) for t in (x, y, x.grad, layer.weight, layer.weight.grad, layer.bias)]
    plan = layer._plan
    del x, y, layer
    gc.collect()
    assert plan.calls
    assert [t() for t in tensors] == [None] * len(tensors)


def python_calls(function):
    """(file, name) of each Python function of ours or Triton's that runs until the driver is given a launch."""
    found, done = [], []

    def profile(frame, event, arg):
        if event != "call" or done:
            return
        code = frame.f_code
        if code.co_name == "launch" and code.co_filename.endswith("absent.py"):
            done.append(True)
            return
        found.append((code.co_filename, code.co_name))

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    assert done
    return found[1:]  # without the function itself


@pytest.mark.compile
@pytest.mark.parametrize("kind", ["function", "layer", "graph"])
def test_few_python_functions_run_before_a_launch(kind, monkeypatch):
    monkeypatch.setattr(calls, "resolve", lambda device_type: "triton")
    monkeypatch.setattr(fused, "slots", {})  # an optimizer of another test may not have been collected yet
    layer = lc_triton.LocalConv2d(16, 16, 3, input_size=8, activation="relu", dtype=torch.float16)
    x = torch.empty(32, 16, 8, 8, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    weight, bias = layer.weight, layer.bias
    call = (lambda: layer(x)) if kind == "layer" else lambda: lc_triton.local_conv(x, weight, bias, activation="relu")
    with absent_gpu(keep=False), torch.set_grad_enabled(kind == "graph"):
        call()
        found = python_calls(call)
    # The absent GPU stands for Triton's driver.
    ours = [item for item in found if f"{Path('lc_triton')}/" in item[0] and not item[0].endswith("absent.py")]
    assert len(found) <= 25, found
    assert len({file for file, _ in ours}) <= 6, ours


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "arguments", "options"),
    [
        (lc_triton.LocalConv2d, {"activation": "relu"}, {}),
        (lc_triton.LocalConv2d, {"activation": "silu", "bias": False}, {"states": "8 bits", "l1": 0.1}),
        (lc_triton.LocalConv2d, {"groups": 2}, {"states": "bfloat16"}),
        (lc_triton.LocalConvTranspose2d, {"activation": "tanh"}, {"accumulate": 2}),
    ],
    ids=["relu", "8 bits", "groups", "transposed"],
)
def test_an_updating_backward_prepares_each_launch_once(kind, arguments, options, monkeypatch):
    """Later backwards reuse the launches, as those do that store gradients."""
    monkeypatch.setattr(calls, "resolve", lambda device_type: "triton")
    layer = kind(16, 32, 3, input_size=8, **arguments)
    optimizer = lc_triton.FusedAdamW(layer, **options)
    prepared = []
    for module in (passes, update):
        monkeypatch.setattr(module, "prepare", lambda *args, of=module.prepare: prepared.append(args) or of(*args))

    def step(x):
        optimizer.zero_grad()
        for _ in range(options.get("accumulate", 1)):
            layer(x).sum().backward()
        optimizer.step()

    xs = [torch.randn(4, 16, 8, 8).requires_grad_() for _ in range(4)]
    with absent_gpu() as gpu:
        for x in xs[:2]:
            step(x)
        prepared.clear()
        counts = []
        for x in xs[2:]:
            before = len(gpu.launches)
            step(x)
            counts.append(len(gpu.launches) - before)
    assert counts[0] == counts[1] >= 3
    assert not prepared


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("stride", 1, True),
        ("stride", (1, 1), (1, True)),
        ("padding", ((0, 0), (0, 0)), ((0, False), (0, 0))),
        ("groups", 1, 1.0),
    ],
)
def test_equal_arguments_of_wrong_types_find_no_cached_call(name, right, wrong):
    x, weight = torch.randn(X), torch.randn(WEIGHT)
    lc_triton.local_conv(x, weight, **{name: right})
    assert wrong == right
    with pytest.raises(lc_triton.LocalConvError, match=name):
        lc_triton.local_conv(x, weight, **{name: wrong})
