"""As test_constructors, for layers in Keras's convention and their initializers, regularizers and constraints."""

import dataclasses
import json
from functools import partial

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import lc_triton
from lc_triton.core.activations import parse_activation
from lc_triton.core.geometry import Geometry
from lc_triton.errors import LocalConvError
from lc_triton.keras import activations, constraints, initializers, regularizers
from lc_triton.ops import reference
from tests.cases import assert_close
from tests.fuzz import parse, wrong_values
from tests.fuzz.checking import strided_tensors
from tests.fuzz.outcomes import Outcome, any_call, tolerance_of
from tests.fuzz.profiles import cases


def valid_arguments(call):
    """Valid arguments of a Keras layer with the geometry of a call."""
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
    """As `parse.activation`, with Keras's names."""
    return parse.name(value, list(activations.ACTIVATIONS)) if isinstance(value, str) else parse.activation(value)


def keras_object(kind, value):
    """Check that a value is None, a known name, a valid configuration or a callable."""
    table = {"initializer": initializers.INITIALIZERS, "regularizer": regularizers.REGULARIZERS}
    table["constraint"] = constraints.CONSTRAINTS
    if isinstance(value, dict):
        config = value.get("config")
        if not isinstance(value.get("class_name"), str) or value["class_name"] not in table[kind]:
            raise parse.Invalid
        if config is not None and not isinstance(config, dict):
            raise parse.Invalid
    elif isinstance(value, str):
        parse.name(value, list(table[kind]))
    elif value is not None and (isinstance(value, type) or not callable(value)):
        raise parse.Invalid


def keras_dtype(value):
    """A dtype or its name."""
    return parse.dtype(getattr(torch, value, value) if isinstance(value, str) else value)


@cases("keras_layers")
@given(any_call, st.data())
def test_keras_layers(call, data):
    call, ndim = dataclasses.replace(call, transposed=False), call.geometry.ndim
    valid = valid_arguments(call)
    arguments, wrong, large = data.draw(wrong_values.replace_some(valid))
    if large:
        arguments["device"] = "meta"
    cls = getattr(lc_triton, f"LocallyConnected{ndim}D")
    if call.arguments["padding"] == "valid" or data.draw(st.booleans()):
        assume(fits(ndim, valid))
    outcome = Outcome(cls, arguments, wrong)
    if outcome.refused:
        return
    layer = outcome.result
    parsed = parse.all_arguments(
        {
            "filters": parse.integer,
            "kernel_size": lambda v: parse.integers(v, ndim),
            "strides": lambda v: parse.integers(v, ndim),
            "padding": lambda v: parse.name(v.lower() if isinstance(v, str) else v, KERAS_PADDINGS[: 3 + (ndim == 1)]),
            "data_format": lambda v: parse.name(
                "channels_last" if v is None else v, ["channels_first", "channels_last"]
            ),
            "activation": keras_activation,
            "use_bias": parse.boolean,
            "implementation": parse.integer,
            "dilation_rate": lambda v: parse.integers(v, ndim),
            "groups": parse.integer,
            "input_shape": lambda v: v if v is None else parse.integers(v if parse.is_sequence(v) else (), ndim + 1),
            "dtype": keras_dtype,
            "device": parse.device,
            **{
                name: partial(keras_object, name.split("_")[-1])
                for name in valid
                if name.endswith(("initializer", "regularizer", "constraint"))
            },
        },
        arguments,
    )
    for name in ("filters", "kernel_size", "strides", "padding", "data_format", "use_bias", "implementation"):
        assert getattr(layer, name) == parsed[name]
    for name in ("dilation_rate", "groups", "input_shape"):
        assert getattr(layer, name) == parsed[name]
    assert layer.weight.device == parsed["device"]
    assert layer.weight.dtype == (parsed["dtype"] or torch.float32)
    shape = tuple(strided_tensors(call)["x"].view.shape)
    shape = (1, *shape) if call.batch is None else shape
    if large or parsed["device"].type != "cpu" or (layer.built and shape[1:] != layer.input_shape):
        return
    x = torch.randn(shape).to(layer.weight.dtype)
    outcome = Outcome(layer, {}, wrong, x)
    has_callable = any(callable(arguments[name]) for name in wrong)
    if outcome.refused or has_callable:
        return
    channels_last = parsed["data_format"] == "channels_last"
    kernel = layer.get_weights()[0]
    spatial, channels = (shape[1:-1], shape[-1]) if channels_last else (shape[2:], shape[1])
    geometry = Geometry.make(
        spatial,
        channels,
        parsed["filters"],
        parsed["kernel_size"],
        stride=parsed["strides"],
        padding=parsed["padding"],
        dilation=parsed["dilation_rate"],
        groups=parsed["groups"],
    )
    assert kernel.shape == (geometry.positions, geometry.window, parsed["filters"])
    ours = [None if t is None else t.detach().double() for t in (layer.weight, layer.bias)]
    z = reference.forward(x.double() if channels_last else x.double().movedim(1, -1), *ours, geometry)
    z = z if channels_last else z.movedim(-1, 1)
    value = activations.get(arguments["activation"])
    want = parse_activation(value)(z)
    assert_close(outcome.result, want.detach(), tolerance_of(outcome.result))
    assert torch.isfinite(lc_triton.regularization_loss(layer))
    lc_triton.apply_constraints(layer)
    rebuilt = cls.from_config(json.loads(json.dumps(layer.get_config())))
    assert rebuilt.get_config() == layer.get_config()


KERAS_PADDINGS = ["valid", "same", "keras_same", "causal"]


def fits(ndim, arguments):
    """Whether valid arguments make a layer: a window may be larger than its input."""
    try:
        getattr(lc_triton, f"LocallyConnected{ndim}D")(**arguments)
    except LocalConvError:
        return False
    return True


NUMBER = st.sampled_from([0.0, 0.5, 2.0, 1, 1e-3])
VALID = {
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
    config = {f: data.draw(st.sampled_from(MODES[kind]) if f == "mode" else VALID[f]) for f in fields}
    config, wrong, _ = data.draw(wrong_values.replace_some(config)) if config else (config, set(), False)
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
            assert value is None or parse.integer(value, 0, 2**64 - 1) == kept
        elif field == "axis":
            axes = value if isinstance(value, list | tuple) else [value]
            assert all(v is None or parse.integer(v, -8) == int(v) for v in axes)
        else:
            assert type(value) in (int, float, np.float64)
            assert kept == value
            assert abs(value) < float("inf")
    outcome = Outcome(made, {}, wrong, (3, 4, 4) if kind == "initializer" else w)
    if outcome.refused:
        return
    assert outcome.result.shape == (() if kind == "regularizer" else (3, 4, 4))
    overflows = any(isinstance(value, float) and value > torch.finfo(torch.float32).max for value in config.values())
    assert overflows or outcome.result.isfinite().all()


@cases("keras_names")
@given(st.sampled_from([activations, initializers, regularizers, constraints]), wrong_values.values)
def test_keras_identifiers(module, value):
    kind = module.__name__.split(".")[-1].removesuffix("s")
    outcome = Outcome(module.get, {"identifier": value}, {"identifier"})
    if not outcome.refused:
        keras_activation(value) if kind == "activation" else keras_object(kind, value)
