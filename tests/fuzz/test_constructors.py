"""Wrong values mixed into right ones: an error that says so, or else what was said is what is computed."""

import dataclasses
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import lc_triton
from lc_triton.core.activations import AFTER_KERNEL, parse_activation
from lc_triton.core.geometry import Geometry
from lc_triton.errors import LocalConvError
from lc_triton.keras import activations, constraints, initializers, regularizers
from lc_triton.ops import reference
from lc_triton.tiles import workloads
from lc_triton.tiles.config import TileConfig
from tests.cases import assert_close
from tests.fuzz import odd
from tests.fuzz.checking import canonical, linear, placed
from tests.fuzz.profiles import cases
from tests.fuzz.strategies import Limits, calls

SMALL = Limits(
    positions=(3, 2, 2),
    kernel=(3, 2, 2),
    padding=2,
    channels=(1, 2),
    groups=2,
    batch=(2, 1, None),
    dtypes=((torch.float32, torch.float32), (torch.float64, torch.float64)),
)
any_call = st.integers(1, 3).flatmap(lambda ndim: calls(ndim, SMALL))


class Outcome:
    """What a call with some wrong values gave: a result, or an error of ours.

    Where a callable is among the wrong values, the ValueError or TypeError may be its own.
    """

    def __init__(self, function, arguments, wrong, *positional):
        self.result, self.refused = None, False
        theirs = any(callable(arguments.get(name)) for name in wrong)
        try:
            self.result = function(*positional, **arguments)
        except LocalConvError as error:
            self.refused = isinstance(error, ValueError | TypeError) and str(error) != ""
            if not self.refused:
                raise
        except (ValueError, TypeError):
            if not theirs:
                raise
            self.refused = True
        assert wrong or not self.refused


def after(value, z, dim):
    """An activation of any kind, applied to pre-activations."""
    act = parse_activation(value)
    return AFTER_KERNEL[act](z, dim=dim) if isinstance(act, str) else act(z)


# ---- functions of tensors


def odd_tensors(t):
    """What is given in a tensor's place."""
    found = [
        None,
        "x",
        1.0,
        t.tolist(),
        t.detach().resolve_neg().numpy(),
        t.to(torch.int32),
        t.to(torch.complex64),
        t.bool(),
        t[None, None],
    ]
    found += [
        t[..., :0],
        t.to("meta"),
        t.to_sparse(),
        t.to(torch.float8_e4m3fn),
        torch.tensor(1.0),
        t.half(),
        t.double(),
    ]
    return [*found, torch.nested.nested_tensor([t]), nn.ReLU()]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@cases("functions")
@given(any_call, st.data())
def test_functions(call, data):
    tensors = {name: p.view for name, p in placed(call).items() if name != "g"}
    arguments, wrong, _ = data.draw(odd.mixed(call.arguments))
    if data.draw(st.integers(0, 3)) == 3:
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = data.draw(st.sampled_from(odd_tensors(tensors[name])))
        wrong = wrong | {name}
    function = lc_triton.local_conv_transpose if call.transposed else lc_triton.local_conv
    first, *others = tensors.values()
    outcome = Outcome(lambda *t, **k: function(*t, **k), arguments, wrong, first, *others)
    if outcome.refused:
        return
    ndim = call.geometry.ndim
    rules = {
        "stride": lambda v: odd.integers(v, ndim),
        "dilation": lambda v: odd.integers(v, ndim),
        "padding": lambda v: odd.padding(v, ndim),
        "groups": odd.integer,
        "data_format": lambda v: odd.name(v, ["channels_first", "channels_last"]),
        "activation": odd.activation,
    }
    if call.transposed:
        if "output_padding" in arguments:
            rules["output_padding"] = lambda v: odd.integers(v, ndim, 0)
        else:
            rules["output_size"] = lambda v: v if v is None else odd.integers(v, ndim)
    else:
        rules["padding_mode"] = lambda v: odd.name(v, ["zeros", "reflect", "replicate", "circular"])
    arguments = odd.meant(rules, arguments)
    x, weight, bias = tensors["x"], tensors["weight"], tensors.get("bias")
    assert isinstance(x, torch.Tensor)
    assert isinstance(weight, torch.Tensor)
    call = dataclasses.replace(call, arguments=arguments)
    shape = canonical(call, x).shape
    spatial, channels, groups = tuple(shape[1:-1]), shape[-1], arguments["groups"]
    options = {name: arguments[name] for name in ("stride", "padding", "dilation", "groups")}
    kernel, filters = tuple(weight.shape[ndim : 2 * ndim]), weight.shape[-1]
    if call.transposed:
        more = {name: arguments[name] for name in ("output_padding", "output_size") if name in arguments}
        geometry = Geometry.make_transposed(spatial, channels, weight.shape[-2] * groups, kernel, **options, **more)
    else:
        geometry = Geometry.make(spatial, channels, filters, kernel, **options)
    assert geometry.weight_shape == weight.shape
    exact = [None if t is None else t.resolve_neg().double() for t in (canonical(call, x), weight, bias)]
    want = after(arguments["activation"], linear(dataclasses.replace(call, geometry=geometry), *exact), -1)
    assert_close(canonical(call, outcome.result), want, tolerance_of(outcome.result))


# ---- layers


def constructor(call, lazy):
    """The layer of a call, and its arguments."""
    kind = "LocalConvTranspose" if call.transposed else "LocalConv"
    geo = call.geometry
    sites, positions = (geo.in_channels, geo.in_spatial), (geo.out_channels, geo.out_spatial)
    (channels, spatial), (filters, _) = (positions, sites) if call.transposed else (sites, positions)
    arguments = {
        "out_channels": filters,
        "kernel_size": geo.kernel,
        "bias": {None: False, "position": True, "channel": "channel"}[call.bias],
        "dtype": call.dtype,
        "device": None,
    }
    if not lazy:
        arguments |= {"in_channels": channels, "input_size": spatial}
    arguments |= {k: v for k, v in call.arguments.items() if k not in ("data_format", "output_size")}
    if call.transposed and "output_padding" not in arguments:
        least = [
            (n - 1) * s + e - sum(p)
            for n, s, e, p in zip(geo.out_spatial, geo.stride, geo.extent, geo.padding, strict=True)
        ]
        arguments["output_padding"] = [size - n for size, n in zip(geo.in_spatial, least, strict=True)]
    return getattr(lc_triton, f"{'Lazy' * lazy}{kind}{geo.ndim}d"), arguments


@cases("layers")
@given(any_call, st.booleans(), st.data())
def test_layers(call, lazy, data):
    cls, arguments = constructor(call, lazy)
    arguments, wrong, large = data.draw(odd.mixed(arguments))
    if large:
        arguments["device"] = "meta"
    outcome = Outcome(cls, arguments, wrong)
    if outcome.refused:
        return
    layer, ndim = outcome.result, call.geometry.ndim
    rules = {
        "out_channels": odd.integer,
        "kernel_size": lambda v: odd.integers(v, ndim),
        "stride": lambda v: odd.integers(v, ndim),
        "dilation": lambda v: odd.integers(v, ndim),
        "padding": lambda v: odd.padding(v, ndim),
        "groups": odd.integer,
        "bias": odd.bias,
        "activation": odd.activation,
        "dtype": odd.floating,
        "device": odd.device,
    }
    if not lazy:
        rules |= {"in_channels": odd.integer, "input_size": lambda v: odd.integers(v, ndim)}
    if call.transposed:
        rules["output_padding"] = lambda v: odd.integers(v, ndim, 0)
    else:
        rules["padding_mode"] = lambda v: odd.name(v, ["zeros", "reflect", "replicate", "circular"])
    said = odd.meant(rules, arguments)
    for name, value in said.items():
        if name == "bias":
            assert layer.bias_kind == value
        elif name == "dtype":
            assert layer.weight.dtype == (value or torch.float32)
        elif name == "device":
            assert layer.weight.device == value
        elif name == "activation":
            # A list is kept as a tuple, which nobody can change.
            assert layer.activation is value or layer.activation == tuple(value)
        else:
            assert getattr(layer, name) == value
            assert type(getattr(layer, name)) is type(value)
    x = placed(call)["x"].view
    x = x.movedim(-1, -ndim - 1) if call.channels_last else x
    x = x.to(layer.weight.dtype)
    fits = lazy or (tuple(x.shape[-ndim:]), x.shape[-ndim - 1]) == (layer.input_size, layer.in_channels)
    if large or said["device"].type != "cpu" or not fits:
        return
    outcome = Outcome(layer, {}, wrong, x)
    if outcome.refused:
        assert lazy
        return
    said |= {"in_channels": layer.in_channels, "input_size": layer.input_size}
    options = {name: said[name] for name in ("stride", "padding", "dilation", "groups")}
    sizes = said["input_size"], said["in_channels"], said["out_channels"], said["kernel_size"]
    if call.transposed:
        geometry = Geometry.make_transposed(*sizes, **options, output_padding=said["output_padding"])
    else:
        geometry = Geometry.make(*sizes, **options)
    told = {"data_format": "channels_first", "padding_mode": said.get("padding_mode", "zeros")}
    call = dataclasses.replace(call, geometry=geometry, arguments=told)
    exact = [
        None if t is None else t.detach().resolve_neg().double() for t in (canonical(call, x), layer.weight, layer.bias)
    ]
    want = after(said["activation"], linear(call, *exact), -1)

    assert_close(canonical(call, outcome.result), want, tolerance_of(outcome.result))


# ---- Keras's layers and arguments


def right_keras(call):
    """What a Keras layer with the geometry of a call is told."""
    geo = call.geometry
    shape = (*geo.in_spatial, geo.in_channels)
    data_format = call.arguments["data_format"]
    named = call.arguments["padding"]
    return {
        "filters": geo.out_channels,
        "kernel_size": geo.kernel,
        "strides": geo.stride,
        "padding": named if isinstance(named, str) else "same",
        "data_format": data_format,
        "activation": "relu",
        "use_bias": call.bias is not None,
        "kernel_initializer": "he_normal",
        "bias_initializer": "ones",
        "kernel_regularizer": "l2",
        "bias_regularizer": None,
        "activity_regularizer": "l1",
        "kernel_constraint": "unit_norm",
        "bias_constraint": None,
        "implementation": 1,
        "dilation_rate": geo.dilation,
        "groups": geo.groups,
        "input_shape": shape if call.channels_last else (shape[-1], *shape[:-1]),
        "dtype": call.dtype,
        "device": None,
    }


def keras_activation(value):
    """As `odd.activation`, with Keras's names."""
    return odd.name(value, list(activations.ACTIVATIONS)) if isinstance(value, str) else odd.activation(value)


def keras_object(kind, value):
    """A name or a configuration that stands for something, or a callable."""
    table = {"initializer": initializers.INITIALIZERS, "regularizer": regularizers.REGULARIZERS}
    table["constraint"] = constraints.CONSTRAINTS
    if isinstance(value, dict):
        config = value.get("config")
        if not isinstance(value.get("class_name"), str) or value["class_name"] not in table[kind]:
            raise odd.Refused
        if config is not None and not isinstance(config, dict):
            raise odd.Refused
    elif isinstance(value, str):
        odd.name(value, list(table[kind]))
    elif value is not None and (isinstance(value, type) or not callable(value)):
        raise odd.Refused


def keras_dtype(value):
    """A dtype or its name."""
    return odd.floating(getattr(torch, value, value) if isinstance(value, str) else value)


@cases("keras_layers")
@given(any_call, st.data())
def test_keras_layers(call, data):
    call, ndim = dataclasses.replace(call, transposed=False), call.geometry.ndim
    right = right_keras(call)
    arguments, wrong, large = data.draw(odd.mixed(right))
    if large:
        arguments["device"] = "meta"
    cls = getattr(lc_triton, f"LocallyConnected{ndim}D")
    if call.arguments["padding"] == "valid" or data.draw(st.booleans()):
        assume(fits(ndim, right))
    outcome = Outcome(cls, arguments, wrong)
    if outcome.refused:
        return
    layer = outcome.result
    said = odd.meant(
        {
            "filters": odd.integer,
            "kernel_size": lambda v: odd.integers(v, ndim),
            "strides": lambda v: odd.integers(v, ndim),
            "padding": lambda v: odd.name(v.lower() if isinstance(v, str) else v, KERAS_PADDINGS[: 3 + (ndim == 1)]),
            "data_format": lambda v: odd.name("channels_last" if v is None else v, ["channels_first", "channels_last"]),
            "activation": keras_activation,
            "use_bias": odd.boolean,
            "implementation": odd.integer,
            "dilation_rate": lambda v: odd.integers(v, ndim),
            "groups": odd.integer,
            "input_shape": lambda v: v if v is None else odd.integers(v if odd.sequence(v) else (), ndim + 1),
            "dtype": keras_dtype,
            "device": odd.device,
            **{
                name: partial(keras_object, name.split("_")[-1])
                for name in right
                if name.endswith(("initializer", "regularizer", "constraint"))
            },
        },
        arguments,
    )
    for name in ("filters", "kernel_size", "strides", "padding", "data_format", "use_bias", "implementation"):
        assert getattr(layer, name) == said[name]
    for name in ("dilation_rate", "groups", "input_shape"):
        assert getattr(layer, name) == said[name]
    assert layer.weight.device == said["device"]
    assert layer.weight.dtype == (said["dtype"] or torch.float32)
    shape = tuple(placed(call)["x"].view.shape)
    shape = (1, *shape) if call.batch is None else shape
    if large or said["device"].type != "cpu" or (layer.built and shape[1:] != layer.input_shape):
        return
    x = torch.randn(shape).to(layer.weight.dtype)
    outcome = Outcome(layer, {}, wrong, x)
    theirs = any(callable(arguments[name]) for name in wrong)
    if outcome.refused or theirs:
        return
    channels_last = said["data_format"] == "channels_last"
    kernel = layer.get_weights()[0]
    spatial, channels = (shape[1:-1], shape[-1]) if channels_last else (shape[2:], shape[1])
    geometry = Geometry.make(
        spatial,
        channels,
        said["filters"],
        said["kernel_size"],
        stride=said["strides"],
        padding=said["padding"],
        dilation=said["dilation_rate"],
        groups=said["groups"],
    )
    assert kernel.shape == (geometry.positions, geometry.window, said["filters"])
    ours = [None if t is None else t.detach().double() for t in (layer.weight, layer.bias)]
    z = reference.forward(x.double() if channels_last else x.double().movedim(1, -1), *ours, geometry)
    z = z if channels_last else z.movedim(-1, 1)
    value = activations.get(arguments["activation"])
    want = parse_activation(value)(z)
    assert_close(outcome.result, want.detach(), tolerance_of(outcome.result))
    assert torch.isfinite(lc_triton.regularization_loss(layer))
    lc_triton.apply_constraints(layer)
    again = cls.from_config(json.loads(json.dumps(layer.get_config())))
    assert again.get_config() == layer.get_config()


KERAS_PADDINGS = ["valid", "same", "keras_same", "causal"]


def fits(ndim, arguments):
    """Whether right arguments describe a layer: a window may be larger than its input."""
    try:
        getattr(lc_triton, f"LocallyConnected{ndim}D")(**arguments)
    except LocalConvError:
        return False
    return True


NUMBER = st.sampled_from([0.0, 0.5, 2.0, 1, 1e-3])
RIGHT = {
    **dict.fromkeys(("value", "mean", "gain", "factor", "l1", "l2", "min_value", "rate", "minval"), NUMBER),
    **dict.fromkeys(("scale", "max_value"), st.sampled_from([2.0, 3, 5.5])),
    "maxval": st.sampled_from([2.0, 3]),
    "stddev": NUMBER,
    "seed": st.sampled_from([None, 0, 5, 2**40]),
    "axis": st.sampled_from([None, 0, 1, -1, [0, 1], (1, 2)]),
    "fan_mode": st.sampled_from(initializers.FAN_MODES),
    "distribution": st.sampled_from(initializers.DISTRIBUTIONS),
}
MODES = {"initializer": initializers.MODES, "regularizer": ("rows", "columns"), "constraint": ()}


@cases("keras_arguments")
@given(st.sampled_from(["initializer", "regularizer", "constraint"]), st.data())
def test_keras_arguments(kind, data):
    module = {"initializer": initializers, "regularizer": regularizers, "constraint": constraints}[kind]
    table = getattr(module, kind.upper() + "S")
    name = data.draw(st.sampled_from(sorted(table)))
    fields = [f.name for f in dataclasses.fields(table[name])]
    config = {f: data.draw(st.sampled_from(MODES[kind]) if f == "mode" else RIGHT[f]) for f in fields}
    config, wrong, _ = data.draw(odd.mixed(config)) if config else (config, set(), False)
    if data.draw(st.booleans()):
        outcome = Outcome(module.get, {"identifier": {"class_name": name, "config": config}}, wrong)
    else:
        outcome = Outcome(table[name], config, wrong)
    if outcome.refused:
        return
    made, w = outcome.result, torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    for field in fields:
        value, kept = config[field], getattr(made, field)
        if field in ("mode", "distribution", "fan_mode"):
            assert isinstance(value, str)
        elif field == "seed":
            assert value is None or odd.integer(value, 0, 2**64 - 1) == kept
        elif field == "axis":
            axes = value if isinstance(value, list | tuple) else [value]
            assert all(v is None or odd.integer(v, -8) == int(v) for v in axes)
        else:
            assert type(value) in (int, float, np.float64)
            assert kept == value
            assert abs(value) < float("inf")
    outcome = Outcome(made, {}, wrong, (3, 4, 4) if kind == "initializer" else w)
    if outcome.refused:
        return
    assert outcome.result.shape == (() if kind == "regularizer" else (3, 4, 4))
    past = any(isinstance(value, float) and value > torch.finfo(torch.float32).max for value in config.values())
    assert past or outcome.result.isfinite().all()


@cases("keras_names")
@given(st.sampled_from([activations, initializers, regularizers, constraints]), odd.values)
def test_what_stands_for_a_keras_argument(module, value):
    kind = module.__name__.split(".")[-1].removesuffix("s")
    outcome = Outcome(module.get, {"identifier": value}, {"identifier"})
    if not outcome.refused:
        keras_activation(value) if kind == "activation" else keras_object(kind, value)


# ---- conversion, backends, tuning


@cases("conversions")
@given(any_call, st.data())
def test_conversions(call, data):
    geo, ndim = call.geometry, call.geometry.ndim
    conv = getattr(nn, f"Conv{ndim}d")(
        geo.in_channels, geo.out_channels, geo.kernel, geo.stride, "valid", geo.dilation, geo.groups
    )
    size = tuple(n + sum(p) for n, p in zip(geo.in_spatial, geo.padding, strict=True))
    x = torch.randn(2, geo.in_channels, *size)
    want = conv(x).detach().double()
    cls = getattr(lc_triton, f"LocalConv{ndim}d")
    arguments, wrong, large = data.draw(odd.mixed({"conv": conv, "input_size": size, "bias": "position"}))
    assume(not large)
    outcome = Outcome(cls.from_conv, arguments, wrong)
    if not outcome.refused:
        assert outcome.result.input_size == odd.integers(arguments["input_size"], ndim)
        assert outcome.result.bias_kind == odd.bias(arguments["bias"])
        if outcome.result.input_size == size:
            assert_close(outcome.result(x), want, 1e-4)
            tolerance = data.draw(st.sampled_from([0.0, 0]) | odd.values)
            again = Outcome(outcome.result.to_conv, {"tolerance": tolerance}, {"tolerance"})
            if not again.refused:
                assert_close(again.result(x), want, 1e-4)
    arguments = {"model": nn.Sequential(conv), "example_input": x, "filter": None, "bias": "channel"}
    arguments, wrong, large = data.draw(odd.mixed(arguments))
    assume(not large)
    outcome = Outcome(lc_triton.convert_convs, arguments, wrong)
    if not outcome.refused:
        odd.bias(arguments["bias"])
        assert_close(outcome.result(x), want, 1e-4)


@cases("functions_of_models")
@given(odd.values, odd.values)
def test_backends_and_other_functions(value, other):
    def entered(name):
        with lc_triton.backend(name):
            return lc_triton.local_conv(torch.ones(1, 1, 3), torch.ones(3, 1, 1, 1))

    outcome = Outcome(entered, {"name": value}, {"name"})
    assert outcome.refused
    model = value if isinstance(value, nn.Module) else nn.Linear(1, 1)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    for function, arguments in (
        (lc_triton.regularization_loss, {"model": value}),
        (lc_triton.apply_constraints, {"model": value}),
        (lc_triton.attach_constraints, {"model": value, "optimizer": optimizer}),
        (lc_triton.attach_constraints, {"model": model, "optimizer": other}),
    ):
        outcome = Outcome(function, arguments, set(arguments))
        assert outcome.refused or isinstance(value, nn.Module)


# ---- tiles and workloads


@cases("tiles")
@given(st.booleans(), st.data())
def test_tiles(as_json, data):
    right = {f.name: f.default for f in dataclasses.fields(TileConfig)}
    arguments, wrong, _ = data.draw(odd.mixed(right))
    if as_json:
        outcome = Outcome(TileConfig.from_json, {"value": arguments}, wrong)
    else:
        outcome = Outcome(TileConfig, arguments, wrong)
    if outcome.refused:
        return
    for name, value in arguments.items():
        told = getattr(outcome.result, name)
        if isinstance(right[name], bool):
            assert told is odd.boolean(value)
        else:
            assert (told, type(told)) == (odd.integer(value), int)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.sampled_from([2**31, 2**70, 1e300, 1.0, "same", "", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "input", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@cases("workload_files")
@given(st.data())
def test_workload_files(data):
    entry = {"name": "layer", "input": [5, 4, 2], "kernel": [3, 3], "filters": 4, "batches": [1, 2], "stride": 1}
    entry |= {"padding": 1, "dilation": 1, "groups": 2, "source": "here"}
    for name in data.draw(st.lists(st.sampled_from([*entry, "other"]), max_size=2, unique=True)):
        entry[name] = data.draw(JSON)
    content = {"workloads": [entry]}
    if data.draw(st.integers(0, 4)) == 4:
        content = data.draw(JSON)
    text = json.dumps(content)
    if data.draw(st.integers(0, 4)) == 4:
        cut = data.draw(st.integers(0, len(text)))
        text = (
            text[:cut]
            + data.draw(st.sampled_from(["", "]", '"', "\udcff", "[" * 100_000, "9" * 5000]))
            + text[cut + 1 :]
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workloads.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        outcome = Outcome(workloads.read, {}, {"text"}, path)
    for workload in [] if outcome.refused else outcome.result.values():
        assert workload.geometry.weight_shape
        assert all(type(batch) is int and batch >= 1 for batch in workload.batches)


WORDS = st.sampled_from(
    ["k3", "f4", "k3x2", "s2", "p1", "d2", "g2", "k", "f0", "k-1", "z3", "", "f2x2", "k9999999999999", "s1_0", "k٣"]
)


@cases("shapes")
@given(
    st.sampled_from(["9x8x2", "9x2", "5x5x5x2", "", "9", "x", "-9x2", "1e3x2", "9x8x2x2x2"]),
    st.lists(WORDS, max_size=4),
)
def test_shapes_as_one_word(first, words):
    text = ",".join([first, *words])
    outcome = Outcome(lambda: workloads.parse_shape(text, [3]), {}, {"text"})
    if not outcome.refused:
        assert outcome.result.batches == (3,)
        assert outcome.result.geometry.in_channels == 2


def tolerance_of(result):
    """By the precision of a result."""
    return 1e-5 if result.dtype in (torch.float32, torch.float64) else 5e-2


def test_tuning_asks_for_a_number_of_seconds():
    for value in odd.NUMBERS + odd.OTHERS:
        with pytest.raises(LocalConvError), lc_triton.tuning(value):
            pass
