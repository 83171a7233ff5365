"""Arguments of which some are wrong: a call raises an error, or computes what the arguments mean."""

import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import lc_triton
from lc_triton.core.geometry import Geometry
from lc_triton.errors import LocalConvError
from tests.cases import assert_close
from tests.fuzz import parse, wrong_values
from tests.fuzz.checking import canonical, definition, strided_tensors
from tests.fuzz.outcomes import Outcome, any_call, apply_activation, tolerance_of
from tests.fuzz.profiles import cases

# ---- functions of tensors


def wrong_tensors(t):
    """Wrong values in place of a tensor."""
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@cases("functions")
@given(any_call, st.data())
def test_functions(call, data):
    tensors = {name: p.view for name, p in strided_tensors(call).items() if name != "g"}
    arguments, wrong, _ = data.draw(wrong_values.replace_some(call.arguments))
    if data.draw(st.integers(0, 3)) == 3:
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name] = data.draw(st.sampled_from(wrong_tensors(tensors[name])))
        wrong = wrong | {name}
    function = lc_triton.local_conv_transpose if call.transposed else lc_triton.local_conv
    first, *others = tensors.values()
    outcome = Outcome(lambda *t, **k: function(*t, **k), arguments, wrong, first, *others)
    if outcome.refused:
        return
    ndim = call.geometry.ndim
    rules = {
        "stride": lambda v: parse.integers(v, ndim),
        "dilation": lambda v: parse.integers(v, ndim),
        "padding": lambda v: parse.padding(v, ndim),
        "groups": parse.integer,
        "data_format": lambda v: parse.name(v, ["channels_first", "channels_last"]),
        "activation": parse.activation,
    }
    if call.transposed:
        if "output_padding" in arguments:
            rules["output_padding"] = lambda v: parse.integers(v, ndim, 0)
        else:
            rules["output_size"] = lambda v: v if v is None else parse.integers(v, ndim)
    else:
        rules["padding_mode"] = lambda v: parse.padding_mode(v, ndim)
    arguments = parse.all_arguments(rules, arguments)
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
    want = apply_activation(
        arguments["activation"], definition(dataclasses.replace(call, geometry=geometry), *exact), -1
    )
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
        min_sizes = [
            (n - 1) * s + e - sum(p)
            for n, s, e, p in zip(geo.out_spatial, geo.stride, geo.extent, geo.padding, strict=True)
        ]
        arguments["output_padding"] = [size - n for size, n in zip(geo.in_spatial, min_sizes, strict=True)]
    return getattr(lc_triton, f"{'Lazy' * lazy}{kind}{geo.ndim}d"), arguments


@pytest.mark.slow
@cases("layers")
@given(any_call, st.booleans(), st.data())
def test_layers(call, lazy, data):
    cls, arguments = constructor(call, lazy)
    arguments, wrong, large = data.draw(wrong_values.replace_some(arguments))
    if large:
        arguments["device"] = "meta"
    outcome = Outcome(cls, arguments, wrong)
    if outcome.refused:
        return
    layer, ndim = outcome.result, call.geometry.ndim
    rules = {
        "out_channels": parse.integer,
        "kernel_size": lambda v: parse.integers(v, ndim),
        "stride": lambda v: parse.integers(v, ndim),
        "dilation": lambda v: parse.integers(v, ndim),
        "padding": lambda v: parse.padding(v, ndim),
        "groups": parse.integer,
        "bias": parse.bias,
        "activation": parse.activation,
        "dtype": parse.dtype,
        "device": parse.device,
    }
    if not lazy:
        rules |= {"in_channels": parse.integer, "input_size": lambda v: parse.integers(v, ndim)}
    if call.transposed:
        rules["output_padding"] = lambda v: parse.integers(v, ndim, 0)
    else:
        rules["padding_mode"] = lambda v: parse.padding_mode(v, ndim)
    parsed = parse.all_arguments(rules, arguments)
    for name, value in parsed.items():
        if name == "bias":
            assert layer.bias_kind == value
        elif name == "dtype":
            assert layer.weight.dtype == (value or torch.float32)
        elif name == "device":
            assert layer.weight.device == value
        elif name == "activation":
            # The layer keeps a list as an immutable tuple.
            assert layer.activation is value or layer.activation == tuple(value)
        else:
            assert getattr(layer, name) == value
            assert type(getattr(layer, name)) is type(value)
    x = strided_tensors(call)["x"].view
    x = x.movedim(-1, -ndim - 1) if call.channels_last else x
    x = x.to(layer.weight.dtype)
    fits = lazy or (tuple(x.shape[-ndim:]), x.shape[-ndim - 1]) == (layer.input_size, layer.in_channels)
    if large or parsed["device"].type != "cpu" or not fits:
        return
    outcome = Outcome(layer, {}, wrong, x)
    if outcome.refused:
        assert lazy
        return
    parsed |= {"in_channels": layer.in_channels, "input_size": layer.input_size}
    options = {name: parsed[name] for name in ("stride", "padding", "dilation", "groups")}
    sizes = parsed["input_size"], parsed["in_channels"], parsed["out_channels"], parsed["kernel_size"]
    if call.transposed:
        geometry = Geometry.make_transposed(*sizes, **options, output_padding=parsed["output_padding"])
    else:
        geometry = Geometry.make(*sizes, **options)
    call_arguments = {"data_format": "channels_first", "padding_mode": parsed.get("padding_mode", "zeros")}
    call = dataclasses.replace(call, geometry=geometry, arguments=call_arguments)
    exact = [
        None if t is None else t.detach().resolve_neg().double() for t in (canonical(call, x), layer.weight, layer.bias)
    ]
    want = apply_activation(parsed["activation"], definition(call, *exact), -1)

    assert_close(canonical(call, outcome.result), want, tolerance_of(outcome.result))


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
    arguments, wrong, large = data.draw(
        wrong_values.replace_some({"conv": conv, "input_size": size, "bias": "position"})
    )
    assume(not large)
    outcome = Outcome(cls.from_conv, arguments, wrong)
    if not outcome.refused:
        assert outcome.result.input_size == parse.integers(arguments["input_size"], ndim)
        assert outcome.result.bias_kind == parse.bias(arguments["bias"])
        if outcome.result.input_size == size:
            assert_close(outcome.result(x), want, 1e-4)
            tolerance = data.draw(st.sampled_from([0.0, 0]) | wrong_values.values)
            rebuilt = Outcome(outcome.result.to_conv, {"tolerance": tolerance}, {"tolerance"})
            if not rebuilt.refused:
                assert_close(rebuilt.result(x), want, 1e-4)
    arguments = {"model": nn.Sequential(conv), "example_input": x, "filter": None, "bias": "channel"}
    arguments, wrong, large = data.draw(wrong_values.replace_some(arguments))
    assume(not large)
    outcome = Outcome(lc_triton.convert_convs, arguments, wrong)
    if not outcome.refused:
        parse.bias(arguments["bias"])
        assert_close(outcome.result(x), want, 1e-4)


@cases("functions_of_models")
@given(wrong_values.values, wrong_values.values)
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
        (lc_triton.regularization_loss, {"model": model, "optimizer": optimizer if other is None else other}),
        (lc_triton.penalty_groups, {"model": value}),
        (lc_triton.accumulate_gradients, {"model_or_params": value}),
        (lc_triton.apply_constraints, {"model": value}),
        (lc_triton.attach_constraints, {"model": value, "optimizer": optimizer}),
        (lc_triton.attach_constraints, {"model": model, "optimizer": other}),
    ):
        outcome = Outcome(function, arguments, set(arguments))
        assert outcome.refused or isinstance(value, nn.Module)


def test_tuning_refuses_anything_but_seconds():
    for value in wrong_values.NUMBERS + wrong_values.OTHERS:
        with pytest.raises(LocalConvError), lc_triton.tuning(value):
            pass
