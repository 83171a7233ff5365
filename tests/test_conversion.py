"""Conversion of torch's convolutions to locally connected layers, and back."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import lc_triton
from lc_triton.errors import ArgumentTypeError, ConversionError, NotBuiltError
from tests.cases import assert_close

CONVS = {
    "1d": (lc_triton.LocalConv1d, nn.Conv1d(3, 4, 3, padding=1), (7,)),
    "1d_same": (lc_triton.LocalConv1d, nn.Conv1d(3, 4, 4, padding="same"), (7,)),
    "2d": (lc_triton.LocalConv2d, nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2), (8, 7)),
    "2d_reflect": (lc_triton.LocalConv2d, nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False), (5, 4)),
    "2d_circular": (lc_triton.LocalConv2d, nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (5, 4)),
    "3d": (lc_triton.LocalConv3d, nn.Conv3d(2, 4, 2, stride=2), (4, 5, 4)),
    "1d_transposed": (lc_triton.LocalConvTranspose1d, nn.ConvTranspose1d(3, 4, 3, 2, output_padding=1), (5,)),
    "2d_transposed": (
        lc_triton.LocalConvTranspose2d,
        nn.ConvTranspose2d(4, 6, 3, (2, 3), 1, (1, 2), groups=2, dilation=(2, 1)),
        (3, 4),
    ),
    "3d_transposed": (lc_triton.LocalConvTranspose3d, nn.ConvTranspose3d(2, 3, 2, bias=False), (2, 3, 2)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch warns of a copy for an even kernel
@pytest.mark.parametrize("bias", ["position", "channel"])
@pytest.mark.parametrize("name", CONVS)
def test_a_converted_layer_computes_the_convolution(name, bias):
    kind, conv, size = CONVS[name]
    conv = conv.double()
    layer = kind.from_conv(conv, size, bias=bias)
    x = torch.randn(2, conv.in_channels, *size, dtype=torch.float64)
    assert type(layer) is kind
    assert layer.bias_kind == (None if conv.bias is None else bias)
    assert_close(layer(x), conv(x).detach(), 1e-13)
    assert layer.weight.is_contiguous()
    rebuilt = layer.to_conv()
    assert type(rebuilt) is type(conv)
    assert torch.equal(rebuilt.weight, conv.weight)
    assert conv.bias is None or torch.equal(rebuilt.bias, conv.bias)
    assert_close(rebuilt(x), conv(x).detach(), 1e-13)


def test_requires_grad_and_training_mode_are_kept():
    conv = nn.Conv2d(2, 3, 3).eval()
    conv.weight.requires_grad_(False)
    layer = lc_triton.LocalConv2d.from_conv(conv, 5)
    assert (layer.weight.requires_grad, layer.bias.requires_grad, layer.training) == (False, True, False)
    rebuilt = layer.to_conv()
    assert (rebuilt.weight.requires_grad, rebuilt.bias.requires_grad, rebuilt.training) == (False, True, False)


def test_from_conv_of_a_lazy_class_returns_the_plain_layer():
    layer = lc_triton.LazyLocalConv2d.from_conv(nn.Conv2d(2, 3, 3), 5)
    assert type(layer) is lc_triton.LocalConv2d


def test_to_conv_takes_the_middle_of_filters_within_the_tolerance():
    layer = lc_triton.LocalConv1d.from_conv(nn.Conv1d(2, 3, 3), 6)
    with torch.no_grad():
        layer.weight[1, 0, 0, 0] += 0.25
    with pytest.raises(ConversionError, match=r"whose weight differs between positions by up to 0\.25"):
        layer.to_conv(tolerance=0.2)
    middle = layer.weight[0, 0, 0, 0].item() + 0.125
    assert layer.to_conv(tolerance=0.3).weight[0, 0, 0].item() == pytest.approx(middle)
    with torch.no_grad():
        layer.weight[1, 0, 0, 0] = layer.weight[0, 0, 0, 0]
        layer.bias[2, 1] = float("nan")
    with pytest.raises(ConversionError, match="whose bias differs between positions by up to inf"):
        layer.to_conv(tolerance=1.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: lc_triton.LocalConv2d.from_conv(nn.Conv1d(2, 3, 3), 5),
            ArgumentTypeError,
            "conv must be a torch.nn.Conv2d that has its weight, got Conv1d",
        ),
        (lambda: lc_triton.LocalConv2d.from_conv(nn.LazyConv2d(3, 3), 5), ArgumentTypeError, "that has its weight"),
        (lambda: lc_triton.LazyLocalConv1d(2, 3).to_conv(), NotBuiltError, "LazyLocalConv1d is not built"),
        (
            lambda: lc_triton.LocalConv1d(2, 3, 3, 6, activation="relu").to_conv(tolerance=9.0),
            ConversionError,
            "a layer with activation='relu' cannot be converted",
        ),
        (
            lambda: lc_triton.LocalConv1d(2, 3, 3, 6, padding="causal").to_conv(tolerance=9.0),
            ConversionError,
            r"a layer with padding=\(\(2, 0\),\) cannot be converted: a convolution pads both sides alike",
        ),
    ],
)
def test_layers_without_a_counterpart_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Branched(nn.Module):
    """A convolution under two names, one that is called with two sizes, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.rebuilt = self.first
        self.norm = nn.BatchNorm2d(2)
        self.inner = nn.Sequential(nn.Conv2d(2, 2, 2), nn.Dropout(0.9), nn.ConvTranspose2d(2, 1, 2))
        self.everywhere = nn.Conv2d(1, 1, 1)
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x, scale=1.0):
        y = self.inner(self.norm(self.first(x) + self.rebuilt(x)))
        return scale * (self.everywhere(y) + self.everywhere(y[..., :1]))


def is_convertible(name, conv):
    return name not in ("everywhere", "unused")


@pytest.mark.parametrize("pack", [lambda x, scale: (x, scale), lambda x, scale: {"x": x, "scale": scale}])
def test_convert_convs_converts_the_filtered_convolutions(pack):
    torch.manual_seed(0)
    example = pack(torch.randn(2, 1, 6, 5), 2.0)
    model = Branched().train()
    x = torch.randn(3, 1, 6, 5)
    state = {k: v.clone() for k, v in model.norm.state_dict().items()}
    want = model.eval()(x).detach()
    model.train()
    model.norm.eval()
    assert lc_triton.convert_convs(model, example, is_convertible) is model
    assert type(model.first) is lc_triton.LocalConv2d
    assert model.first is model.rebuilt
    assert type(model.inner[0]) is lc_triton.LocalConv2d
    assert type(model.inner[2]) is lc_triton.LocalConvTranspose2d
    assert type(model.everywhere) is type(model.unused) is nn.Conv2d
    assert model.training
    assert model.inner[1].training
    assert not model.norm.training
    assert all(torch.equal(v, state[k]) for k, v in model.norm.state_dict().items())
    assert_close(model.eval()(x), want.double(), 1e-5)


def test_a_model_that_is_a_convolution():
    conv, x = nn.Conv1d(2, 3, 3), torch.randn(1, 2, 8)
    layer = lc_triton.convert_convs(conv, x, bias="channel")
    assert type(layer) is lc_triton.LocalConv1d
    assert layer.bias.shape == (3,)
    assert_close(layer(x), conv(x).double(), 1e-6)


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        (lambda name, conv: name == "unused", "unused cannot be converted: it is not called with this example_input"),
        (
            lambda name, conv: name in ("first", "everywhere"),
            r"everywhere cannot be converted: it meets inputs of \(6, 1\), \(6, 5\)",
        ),
        (None, "cannot be converted"),
    ],
)
def test_no_convolution_is_converted_if_one_cannot_be(filter, message):
    model = Branched()
    before = dict(model.named_modules())
    with pytest.raises(ConversionError, match=message):
        lc_triton.convert_convs(model, torch.randn(2, 1, 6, 5), filter)
    assert dict(model.named_modules()) == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.training


def test_a_convolution_without_a_counterpart_is_named():
    model = nn.Sequential(nn.ReLU(), nn.ConvTranspose1d(1, 1, 3, stride=1, dilation=2, output_padding=1))
    with pytest.raises(ConversionError, match=r"1 cannot be converted: output_padding=.* is not possible"):
        lc_triton.convert_convs(model, torch.randn(1, 1, 5))


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose1d(1, 1, 2, stride=2)

    def forward(self, x):
        return self.up(x, output_size=[11])


def test_a_convolution_called_with_more_than_its_input_is_named():
    with pytest.raises(ConversionError, match="up cannot be converted: it is called with more than its input"):
        lc_triton.convert_convs(ByKeyword(), torch.randn(1, 1, 5))


class Own(nn.Conv1d):
    """A subclass of a convolution."""


def test_a_subclass_stays_and_is_named():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 1, 3)), Own(1, 1, 1), nn.LazyConv1d(1, 1))
    message = r"left as they are, .*: 0 \(ParametrizedConv1d\), 1 \(Own\), 2 \(LazyConv1d\)$"
    with pytest.warns(UserWarning, match=message):
        lc_triton.convert_convs(model, torch.randn(1, 1, 5))
    assert all(isinstance(conv, nn.Conv1d) for conv in model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lc_triton.convert_convs(model, torch.randn(1, 1, 5), lambda name, conv: False)
        lc_triton.convert_convs(nn.Sequential(nn.Conv1d(1, 1, 1)), torch.randn(1, 1, 5))


def hooked():
    conv = nn.Conv1d(2, 3, 3)
    conv.register_forward_hook(lambda module, args, y: None)
    conv.register_buffer("scale", torch.ones(1))
    conv.weight.register_hook(lambda grad: grad)
    conv.extra = nn.Linear(1, 1)
    conv.label = "first"
    return conv


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends the newer parametrization
        return nn.utils.weight_norm(nn.Conv1d(2, 3, 3))


DROPPED = [
    (
        hooked,
        r"dropped of 0: forward_hooks \(hooked.<locals>.<lambda>\), buffer scale, module extra, attribute label, "
        r"backward_hooks of weight \(hooked.<locals>.<lambda>\)$",
    ),
    (
        lambda: prune.l1_unstructured(nn.Conv1d(2, 3, 3), "weight", 0.5),
        r"dropped of 0: forward_pre_hooks \(L1Unstructured\), buffer weight_mask, parameter weight_orig$",
    ),
    (old_weight_norm, r"dropped of 0: forward_pre_hooks \(WeightNorm\), parameter weight_g, parameter weight_v$"),
]


@pytest.mark.parametrize(("make", "message"), DROPPED)
def test_dropped_attributes_are_named(make, message):
    net, x = nn.Sequential(make()), torch.randn(2, 2, 6)
    want = net(x)
    with pytest.warns(UserWarning, match=message):
        lc_triton.convert_convs(net, x)
    assert_close(net(x), want.detach().double(), 1e-6)
    assert net[0].weight.requires_grad  # as the parameters of the convolution do


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv1d(2, 2, 3, padding=1) for _ in range(3))
        self.b.weight = self.a.weight
        self.linear = nn.Linear(2, 2)
        self.linear.bias = self.c.bias
        self.rebuilt = self.c
        self.by_hand = [self.c]

    def forward(self, x):
        return self.linear(self.rebuilt(self.by_hand[0](self.b(self.a(x)))).mT)


def test_parameters_that_are_no_longer_shared_are_named():
    net, x = Tied(), torch.randn(1, 2, 5)
    want = net(x)
    message = (
        "no longer one parameter: a.weight and b.weight; no longer one parameter: c.bias and linear.bias; "
        "by_hand still holds the convolution c$"
    )
    with pytest.warns(UserWarning, match=message):
        lc_triton.convert_convs(net, x)
    assert net.rebuilt is net.c
    assert isinstance(net.c, lc_triton.LocalConv1d)
    assert_close(net(x), want.detach().double(), 1e-5)


def test_nothing_is_converted_if_the_warning_is_an_error():
    net = Tied()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no longer one parameter"):
            lc_triton.convert_convs(net, torch.randn(1, 2, 5))
    assert type(net.a) is type(net.c) is nn.Conv1d


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 2))
        self.head = nn.Linear(6 * 2 * 2, 10)

    def forward(self, x):
        x = self.body(x)
        return self.head(x.view(x.size(0), -1))


@pytest.mark.slow
def test_a_view_of_the_output_of_a_converted_layer():
    net, x = LeNet(), torch.randn(2, 1, 8, 8)
    want = net(x)
    net = lc_triton.convert_convs(net, x)
    for model in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_close(model(x), want.detach().double(), 1e-5)
        model(x).sum().backward()
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), net(x))
    assert not lc_triton.LocalConv2d(1, 4, 3, 8)(
        x
    ).is_contiguous()  # a layer that was not converted returns channels-last strides


INPUTS = {
    "contiguous": torch.randn(2, 4, 6, 5),
    "channels_last": torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last),
    "crop": torch.randn(2, 7, 6, 4).movedim(-1, 1)[:, :, 1:],
    "cut": torch.randn(2, 4, 6, 9)[..., 2:-2],
    "expanded": torch.randn(1, 6, 5, 4).movedim(-1, 1).expand(3, -1, -1, -1),
    "permuted": torch.randn(6, 2, 4, 5).permute(1, 2, 0, 3),
    "unbatched": torch.randn(6, 5, 4).movedim(-1, 0),
    "one_sample": torch.randn(1, 4, 6, 5),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("activation", [None, nn.LeakyReLU(), "softmax"])
def test_a_converted_layer_follows_the_memory_format_of_its_input(name, activation):
    x = INPUTS[name]
    for conv in (nn.Conv2d(4, 3, 2), nn.ConvTranspose2d(4, 3, 2, stride=2)):
        layer = lc_triton.convert_convs(conv, x)
        layer.activation = activation
        y = layer(x)
        assert y.stride() == conv(x).stride()
        if x.ndim == 4:
            assert layer(x[:0]).shape == (0, *y.shape[1:])


@pytest.mark.parametrize(("kind", "size"), [(nn.Conv1d, (7,)), (nn.Conv3d, (3, 4, 5)), (nn.ConvTranspose3d, (2, 3, 2))])
def test_memory_formats_of_one_and_three_dimensions(kind, size):
    conv = kind(4, 3, 2)
    x = torch.randn(2, 4, *size)
    layer = lc_triton.convert_convs(conv, x)
    for one in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        assert layer(one).stride() == conv(one).stride()
        assert_close(layer(one), conv(one).detach().double(), 1e-5)


def test_the_model_must_be_a_module():
    with pytest.raises(ArgumentTypeError, match=r"model must be a torch\.nn\.Module"):
        lc_triton.convert_convs([nn.Conv1d(1, 1, 1)], torch.randn(1, 1, 5))
