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
def test_a_layer_is_local_conv_with_its_own_weights(case):
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


def test_what_a_layer_prints():
    layer = lc_triton.LocalConv2d(4, 6, 3, (9, 8), 2, 1, 1, 2, "channel", "reflect", ("leaky_relu", 0.2))
    assert repr(layer) == (
        "LocalConv2d(4, 6, kernel_size=(3, 3), input_size=(9, 8), stride=(2, 2), padding=((1, 1), (1, 1)), groups=2, "
        "bias='channel', padding_mode='reflect', activation=('leaky_relu', 0.2))"
    )
    assert (
        repr(lc_triton.LocalConv1d(4, 6, 3, 9)) == "LocalConv1d(4, 6, kernel_size=(3,), input_size=(9,), stride=(1,))"
    )
