"""Wrong values mixed into right ones: an error that says so, or else what was said is what is computed."""

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
from tests.fuzz import odd
from tests.fuzz.checking import canonical, linear, placed
from tests.fuzz.outcomes import Outcome, after, any_call, tolerance_of
from tests.fuzz.profiles import cases

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


@pytest.mark.slow
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
        rules["padding_mode"] = lambda v: odd.padding_mode(v, ndim)
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


@pytest.mark.slow
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
        rules["padding_mode"] = lambda v: odd.padding_mode(v, ndim)
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
        (lc_triton.regularization_loss, {"model": model, "optimizer": optimizer if other is None else other}),
        (lc_triton.penalty_groups, {"model": value}),
        (lc_triton.accumulate_gradients, {"model_or_params": value}),
        (lc_triton.apply_constraints, {"model": value}),
        (lc_triton.attach_constraints, {"model": value, "optimizer": optimizer}),
        (lc_triton.attach_constraints, {"model": model, "optimizer": other}),
    ):
        outcome = Outcome(function, arguments, set(arguments))
        assert outcome.refused or isinstance(value, nn.Module)


def test_tuning_asks_for_a_number_of_seconds():
    for value in odd.NUMBERS + odd.OTHERS:
        with pytest.raises(LocalConvError), lc_triton.tuning(value):
            pass
