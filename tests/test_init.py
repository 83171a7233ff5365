"""lc_triton.init against torch.nn.init: each position is initialised as a convolution with its filters."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lc_triton
from lc_triton import init
from lc_triton.errors import GroupsError, LocalConvError, RankError

NAMES = ["xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "dirac_"]

# A layer, and torch's convolution with the weight of one position.
TWINS = {
    "1d": (lambda: lc_triton.LocalConv1d(6, 40, 5, 300), lambda: nn.Conv1d(6, 40, 5)),
    "2d_groups": (
        lambda: lc_triton.LocalConv2d(8, 32, (3, 2), (20, 21), groups=4),
        lambda: nn.Conv2d(8, 32, (3, 2), groups=4),
    ),
    "3d": (lambda: lc_triton.LocalConv3d(3, 16, 2, 6), lambda: nn.Conv3d(3, 16, 2)),
    "transposed": (
        lambda: lc_triton.LocalConvTranspose2d(24, 6, 3, (16, 16), stride=2, groups=2),
        lambda: nn.ConvTranspose2d(24, 6, 3, stride=2, groups=2),
    ),
    "keras": (lambda: lc_triton.LocallyConnected2D(32, 3, input_shape=(20, 20, 4)), lambda: nn.Conv2d(4, 32, 3)),
    "keras_channels_first": (
        lambda: lc_triton.LocallyConnected1D(32, 3, data_format="channels_first", input_shape=(4, 300)),
        lambda: nn.Conv1d(4, 32, 3),
    ),
}

CALLS = [
    ("xavier_uniform_", {}),
    ("xavier_uniform_", {"gain": 2.5}),
    ("xavier_normal_", {"gain": 0.5}),
    ("kaiming_uniform_", {}),
    ("kaiming_uniform_", {"a": 5**0.5}),
    ("kaiming_uniform_", {"mode": "fan_out", "nonlinearity": "relu"}),
    ("kaiming_normal_", {"a": 0.3, "mode": "FAN_IN"}),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "tanh"}),
    ("kaiming_normal_", {"nonlinearity": "linear"}),
]


def torch_std(name, kwargs, conv):
    """The standard deviation of torch's initialiser, over many convolutions."""
    drawn = torch.stack([getattr(nn.init, name)(conv.weight.detach(), **kwargs).clone() for _ in range(40)])
    return drawn.std().item()


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("name", "kwargs"), CALLS)
def test_the_scale_is_that_of_torch_for_each_position(name, kwargs, twin):
    torch.manual_seed(0)
    layer, conv = (make() for make in TWINS[twin])
    weight = layer.weight
    assert getattr(init, name)(weight, **kwargs) is weight
    want = torch_std(name, kwargs, conv)
    assert weight.std().item() == pytest.approx(want, rel=0.03)
    positions = weight.detach().flatten(0, weight.ndim // 2 - 2).flatten(1)
    assert positions.std(1).min() > 0.5 * want  # every position is initialised
    if "uniform" in name:
        assert weight.abs().max().item() == pytest.approx(3**0.5 * want, rel=0.03)
    assert weight.requires_grad
    assert weight.is_leaf


def test_the_numbers_are_those_of_torch_for_a_layer_of_one_position():
    layer, conv = lc_triton.LocalConv2d(3, 8, (3, 2), (3, 2)), nn.Conv2d(3, 8, (3, 2))
    for name in ("xavier_normal_", "kaiming_normal_", "kaiming_uniform_"):
        generators = [torch.Generator().manual_seed(5) for _ in range(2)]
        one = getattr(init, name)(layer.weight, generator=generators[0])
        other = getattr(nn.init, name)(conv.weight, generator=generators[1])
        assert torch.equal(one.flatten(), other.flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("channels", "filters", "groups"), [(2, 5, 1), (2, 40, 1), (4, 18, 2), (3, 27, 1)])
def test_an_orthogonal_matrix_for_each_position(channels, filters, groups, dtype):
    layer = lc_triton.LocalConv2d(channels, filters, 3, (6, 5), groups=groups, dtype=dtype)
    assert init.orthogonal_(layer.weight, gain=2.0) is layer.weight
    matrices = layer.weight.detach().double().flatten(0, 1).flatten(1, 3).mT  # (P, F, D), as torch has them
    product = matrices @ matrices.mT if filters <= matrices.shape[2] else matrices.mT @ matrices
    exact = 4 * torch.eye(product.shape[-1], dtype=torch.float64).expand_as(product)
    assert (product - exact).abs().max() < (0.1 if dtype == torch.bfloat16 else 1e-5)
    assert not torch.equal(matrices[0], matrices[1])
    conv = nn.Conv2d(channels, filters, 3, groups=groups, dtype=torch.float64)
    nn.init.orthogonal_(conv.weight, gain=2.0)
    assert conv.weight.square().sum().item() == pytest.approx(matrices[3].square().sum().item(), rel=0.01)


def test_orthogonal_matrices_have_mean_zero():
    weight = init.orthogonal_(torch.empty(4000, 2, 1, 2), generator=torch.Generator().manual_seed(0))
    # Without the correction of signs, one number of each matrix is always negative.
    assert weight.mean((0, 1)).abs().max() < 0.05


@pytest.mark.parametrize(("channels", "filters", "groups"), [(3, 3, 1), (4, 2, 1), (2, 5, 1), (4, 6, 2)])
def test_dirac_is_the_identity_at_each_position(channels, filters, groups):
    for kind, plain, size in (
        (lc_triton.LocalConv1d, nn.Conv1d, (7,)),
        (lc_triton.LocalConv2d, nn.Conv2d, (5, 4)),
        (lc_triton.LocalConv3d, nn.Conv3d, (3, 4, 3)),
    ):
        layer = kind(channels, filters, 3, size, padding=1, groups=groups, bias=False)
        conv = plain(channels, filters, 3, padding=1, groups=groups, bias=False)
        init.dirac_(layer.weight, groups)
        nn.init.dirac_(conv.weight, groups)
        x = torch.randn(2, channels, *size)
        assert torch.equal(layer(x), conv(x))
        assert torch.equal(layer.to_conv().weight, conv.weight)


def test_names_and_arguments_are_torchs():
    for name in NAMES:
        ours, torchs = (inspect.signature(getattr(m, name)).parameters for m in (init, nn.init))
        assert list(ours) == list(torchs)
        assert [p.default for p in ours.values()] == [p.default for p in torchs.values()]
    for name in set(init.__all__) - set(NAMES):
        assert getattr(init, name) is getattr(nn.init, name)
    # lc_triton.init lacks what torch refuses for convolutions; names without a final underscore are deprecated.
    assert {n for n in nn.init.__all__ if n.endswith("_")} - set(init.__all__) == {"eye_", "sparse_"}
    assert lc_triton.init is init


@pytest.mark.parametrize("name", NAMES)
def test_generators_and_seeds(name):
    draw = getattr(init, name)
    weight = lambda: torch.empty(5, 3, 2, 4)  # noqa: E731
    if name == "dirac_":
        assert torch.equal(draw(weight()), draw(weight()))
        return
    one, other = (draw(weight(), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)
    torch.manual_seed(1)
    assert torch.equal(draw(weight()), one)
    assert not torch.equal(draw(weight()), one)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_are_no_weights_are_refused(name):
    draw = getattr(init, name)
    layer = lc_triton.LocalConv2d(2, 3, 3, 6)
    for tensor in (layer.bias, torch.empty(5, 4), torch.empty(2, 2, 2, 2, 2), torch.empty(()), torch.empty(*[1] * 10)):
        with pytest.raises(RankError, match="4, 6 or 8 dimensions"):
            draw(tensor)
    with pytest.raises(LocalConvError, match=r"tensor must be a torch\.Tensor"):
        draw([1.0])
    computed = parametrizations.spectral_norm(copy.deepcopy(layer))
    with pytest.raises(LocalConvError, match="initialise the layer first"):
        draw(computed.weight)
    with pytest.raises(LocalConvError, match="call it once on an input"):
        draw(lc_triton.LazyLocalConv2d(3, 3).weight)
    draw(torch.empty(5, 0, 2, 0))
    before = layer.weight.detach().clone()
    if name.startswith("kaiming"):
        with pytest.raises(LocalConvError, match="mode 'fan_inn' is not known"):
            draw(layer.weight, mode="fan_inn")
        with pytest.raises(LocalConvError, match="nonlinearity must be a name"):
            draw(layer.weight, nonlinearity="rellu")
    if name == "dirac_":
        with pytest.raises(GroupsError, match="got F=3 with groups=2"):
            draw(layer.weight, groups=2)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", NAMES)
def test_layouts_and_devices(name):
    draw = getattr(init, name)
    strided = torch.empty(4, 5, 3, 2).permute(1, 2, 3, 0)
    assert draw(strided) is strided
    assert strided.isfinite().all()
    assert strided.abs().sum() > 0
    assert draw(torch.empty(5, 3, 2, 4, device="meta")).is_meta


def scales(net, x, draw):
    """The scale of the output of each layer, over several draws, because a CNN has few filters."""
    found = []
    for _ in range(16):
        y, one = x, []
        for module in net:
            if not isinstance(module, nn.ReLU):
                draw(module.weight, nonlinearity="relu")
            y = module(y)
            one.append(y.square().mean().item())
        found.append(one)
    return torch.tensor(found).mean(0).sqrt().tolist()


def test_a_network_of_four_layers_has_the_scale_of_its_cnn_twin():
    torch.manual_seed(0)
    cnn = nn.Sequential()
    for channels in (8, 48, 48, 48):
        cnn.extend([nn.Conv2d(channels, 48, 3, padding=1, bias=False), nn.ReLU()])
    x = torch.randn(4, 8, 8, 8)
    local = lc_triton.convert_convs(copy.deepcopy(cnn), x)
    with torch.no_grad():
        got, want = scales(local, x, init.kaiming_normal_), scales(cnn, x, nn.init.kaiming_normal_)
    assert got == pytest.approx(want, rel=0.1)
    assert got[-1] > 0.4
