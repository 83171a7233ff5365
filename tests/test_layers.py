"""The layers of torch's convention."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lc_triton
from tests.cases import CASES, IDS, assert_close, tensors

LAYERS = {1: lc_triton.LocalConv1d, 2: lc_triton.LocalConv2d, 3: lc_triton.LocalConv3d}
LAZY = {1: lc_triton.LazyLocalConv1d, 2: lc_triton.LazyLocalConv2d, 3: lc_triton.LazyLocalConv3d}


def layer_of(case, **kwargs):
    kind = LAYERS[len(case.in_spatial)]
    return kind(
        case.channels, case.filters, case.kernel, case.in_spatial, **case.arguments, dtype=torch.float64, **kwargs
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_layer_equals_local_conv_with_its_weights(case):
    t, layer = tensors(case), layer_of(case, activation="tanh")
    assert layer.weight.shape == case.geometry.weight_shape
    assert layer.bias.shape == case.geometry.bias_shape
    assert layer.output_size == case.geometry.out_spatial
    x = t.x.movedim(-1, 1)
    want = lc_triton.local_conv(x, layer.weight, layer.bias, **case.arguments, activation="tanh")
    assert torch.equal(layer(x), want)
    assert_close(layer(x[0]), want[0].detach(), 1e-14)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_lazy_layer_becomes_the_plain_one(case):
    x, plain = tensors(case).x.movedim(-1, 1), layer_of(case, bias="channel")
    lazy = LAZY[len(case.in_spatial)](case.filters, case.kernel, **case.arguments, bias="channel", dtype=torch.float64)
    assert lazy.output_size is None
    lazy(x)
    assert type(lazy) is type(plain)
    assert repr(lazy) == repr(plain)
    lazy.load_state_dict(plain.state_dict())
    assert torch.equal(lazy(x), plain(x))


def test_a_state_dict_loads_into_a_lazy_layer_before_its_first_call():
    plain = lc_triton.LocalConv2d(3, 4, 3, input_size=(5, 6), stride=2)
    lazy = lc_triton.LazyLocalConv2d(4, 3, stride=2)
    lazy.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(lazy(x), plain(x))
    other = lc_triton.LazyLocalConv2d(4, 3, stride=2)
    other.load_state_dict(plain.state_dict())
    with pytest.raises(lc_triton.LocalConvError, match=r"weight.shape=\(2, 2, 3, 3, 3, 4\) does not fit"):
        other(torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize("bias", [True, "position", "channel", False])
def test_parameters_are_drawn_as_torchs_convolutions_with_the_fan_of_one_position(bias):
    layer = lc_triton.LocalConv2d(4, 8, 3, input_size=12, bias=bias)
    bound = 36**-0.5
    assert layer.weight.abs().max() <= bound
    assert abs(layer.weight.std().item() / (bound / 3**0.5) - 1) < 0.02
    shapes = {True: (10, 10, 8), "position": (10, 10, 8), "channel": (8,), False: None}
    assert (None if layer.bias is None else tuple(layer.bias.shape)) == shapes[bias]
    if layer.bias is not None:
        assert layer.bias.abs().max() <= bound
        assert layer.bias.std() > 0
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode):
    layer = lc_triton.LocalConv2d(2, 3, 3, (5, 4), stride=2, padding=[(1, 2), (0, 1)], padding_mode=mode)
    x = torch.randn(2, 2, 5, 4)
    padded = nn.functional.pad(x, (0, 1, 1, 2), mode=mode)
    assert torch.equal(layer(x), lc_triton.local_conv(padded, layer.weight, layer.bias, stride=2))


def test_activations_after_the_kernel():
    x = torch.randn(2, 4, 6, 5)
    layer = lc_triton.LocalConv2d(4, 3, 3, (6, 5), activation="softmax")
    z = lc_triton.local_conv(x, layer.weight, layer.bias)
    assert_close(layer(x), z.softmax(1).detach().double(), 1e-6)
    layer = lc_triton.LocalConv2d(4, 3, 3, (6, 5), activation=torch.sin)
    assert torch.equal(layer(x), lc_triton.local_conv(x, layer.weight, layer.bias).sin())


def test_an_activation_module_is_a_child_that_trains_moves_and_can_be_replaced():
    x = torch.randn(2, 4, 6, 5)
    layer = lc_triton.LocalConv2d(4, 3, 3, (6, 5), activation=nn.PReLU(3))
    z = lc_triton.local_conv(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), nn.functional.prelu(z, layer.activation.weight))
    layer(x).sum().backward()
    assert_close(layer.activation.weight.grad, z.detach().double().clamp(max=0).sum((0, 2, 3)), 1e-5)
    assert list(layer.state_dict()) == ["weight", "bias", "activation.weight"]
    assert {p.dtype for p in layer.double().parameters()} == {torch.float64}
    layer.float().activation = nn.Tanh()
    assert_close(layer(x), z.tanh().detach().double(), 1e-6)
    layer = lc_triton.LocalConv2d(4, 3, 3, (6, 5), activation="relu")
    layer.activation = "tanh"
    z = lc_triton.local_conv(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), z.tanh())
    layer.activation = nn.Sigmoid()
    assert torch.equal(layer(x), z.sigmoid())


def test_state_dicts():
    one, other = (lc_triton.LocalConv1d(2, 3, 2, 5, bias="channel") for _ in range(2))
    x = torch.randn(2, 2, 5)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))
    with pytest.raises(RuntimeError, match=r"size mismatch for weight: .*\[5, 2, 2, 3\]"):
        lc_triton.LocalConv1d(2, 3, 2, 6).load_state_dict(one.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_an_unbuilt_layer_are_built_independently(copied):
    lazy, x = lc_triton.LazyLocalConv1d(3, 2, stride=2), torch.randn(2, 4, 6)
    built = copied(lazy)
    assert_close(built(x), lc_triton.local_conv(x, built.weight, built.bias, stride=2).detach().double())
    assert lazy.output_size is None
    lazy.double()(x.double())
    assert {p.dtype for p in lazy.parameters()} == {torch.float64}


def test_a_lazy_layer_takes_no_bias_of_another_kind():
    lazy = lc_triton.LazyLocalConv1d(3, 2)
    lazy.load_state_dict(lc_triton.LocalConv1d(2, 3, 2, 5, bias="channel").state_dict())
    message = r"shape of the loaded bias must be \(4, 3\) for this layer, got \(3,\)"
    with pytest.raises(lc_triton.LocalConvError, match=message):
        lazy(torch.randn(1, 2, 5))


def test_a_partial_state_dict_builds_the_rest():
    source = lc_triton.LocalConv1d(2, 3, 2, 5)
    lazy = lc_triton.LazyLocalConv1d(3, 2)
    lazy.load_state_dict({"weight": source.weight.detach()}, strict=False)
    x = torch.randn(2, 2, 5)
    y = lazy(x)
    assert torch.equal(y, lc_triton.local_conv(x, source.weight, lazy.bias))
    assert lazy.bias.std() > 0


def test_autocast():
    layer = lc_triton.LocalConv2d(2, 3, 3, 5, activation="gelu")
    x = torch.randn(4, 2, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, layer(x).detach().double(), 2e-2)
    y.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    want = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    assert_close(layer.weight.grad, want.double(), 3e-2)


def test_copies_and_pickles_compute_the_same():
    layer = lc_triton.LocalConv2d(2, 3, 3, input_size=5, padding="same", activation=nn.LeakyReLU(0.3), bias="channel")
    x = torch.randn(2, 2, 5, 5)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        with torch.no_grad():
            other.weight.zero_()
        assert layer.weight.any()
    assert layer.to(torch.float64)(x.double()).dtype == torch.float64
    assert [name for name, _ in layer.named_modules()] == ["", "activation"]


def test_meta_device():
    layer = lc_triton.LocalConv2d(2, 3, 3, input_size=5, device="meta")
    assert layer.weight.is_meta
    assert layer(torch.empty(7, 2, 5, 5, device="meta")).shape == (7, 3, 3, 3)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(1, 2, 5, 5)).isfinite().all()


def test_training_in_a_sequential_lowers_the_loss():
    model = nn.Sequential(
        lc_triton.LazyLocalConv2d(4, 3, activation="relu"),
        nn.MaxPool2d(2),
        lc_triton.LazyLocalConv2d(6, 2, activation="gelu"),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    x, target = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
    model(x)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_repr():
    layer = lc_triton.LocalConv2d(4, 6, 3, (9, 8), 2, 1, 1, 2, "channel", "reflect", ("leaky_relu", 0.2))
    assert repr(layer) == (
        "LocalConv2d(4, 6, kernel_size=(3, 3), input_size=(9, 8), stride=(2, 2), padding=((1, 1), (1, 1)), groups=2, "
        "bias='channel', padding_mode='reflect', activation=('leaky_relu', 0.2))"
    )
    assert (
        repr(lc_triton.LocalConv1d(4, 6, 3, 9)) == "LocalConv1d(4, 6, kernel_size=(3,), input_size=(9,), stride=(1,))"
    )


def test_a_copy_of_a_layer_starts_with_an_empty_call_cache():
    layer, x = lc_triton.LocalConv2d(2, 3, 3, input_size=5, activation="tanh"), torch.randn(1, 2, 5, 5)
    y = layer(x)
    assert layer._plan.calls
    for rebuilt in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert rebuilt._plan == layer._plan
        assert not rebuilt._plan.calls
        assert torch.equal(rebuilt(x), y)
