"""Tools of a training pipeline on these layers: each result equals that without the tool, or that of nn.Conv2d."""

import contextlib
import copy
import pickle
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils import checkpoint

import lc_triton
from tests.cases import assert_close

X = torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def make(activation="tanh", **kwargs):
    torch.manual_seed(1)
    return lc_triton.LocalConv2d(2, 3, 3, input_size=6, activation=activation, dtype=torch.float64, **kwargs)


def transposed():
    torch.manual_seed(1)
    return lc_triton.LocalConvTranspose2d(2, 3, 3, input_size=6, activation="tanh", dtype=torch.float64)


LAYERS = pytest.mark.parametrize("kind", [make, transposed])


def gradients(module, x=X):
    x = x.clone().requires_grad_()
    y = module(x)
    return torch.autograd.grad(y.square().sum(), [x, *module.parameters()])


@pytest.mark.parametrize("reentrant", [True, False])
@LAYERS
def test_activation_checkpointing(kind, reentrant):
    layer, x = kind(), X.clone().requires_grad_()
    checkpoint.checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    for got, want in zip([x.grad, *(p.grad for p in layer.parameters())], gradients(layer), strict=True):
        assert torch.equal(got, want)


def recipes_of_docs():
    """The names that docs/initialisation.md defines for norms and pruning."""
    text = (Path(__file__).parents[1] / "docs" / "initialisation.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class FilterNorm" in b)
    names = {"torch": torch, "nn": nn, "lc_triton": lc_triton}
    exec(compile(block, "docs/initialisation.md", "exec"), names)
    return names


RECIPES = recipes_of_docs()


def convolution_of(layer, *position):
    """torch's convolution with the filters of one position."""
    weight = layer.weight.detach()[position].movedim((-1, -2), (0, 1))
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, bias=False, dtype=weight.dtype)
    conv.weight = nn.Parameter(weight.contiguous())
    return conv


@LAYERS
def test_weight_norms(kind):
    plain, layer = kind(), parametrizations.weight_norm(kind(), dim=kind().weight.ndim - 1)
    assert_close(layer(X), plain(X).detach())
    assert layer.parametrizations.weight.original0.numel() == plain.weight.shape[-1]
    layer(X).sum().backward()
    assert layer.parametrizations.weight.original0.grad.abs().sum() > 0

    layer = parametrize.register_parametrization(kind(), "weight", RECIPES["FilterNorm"]())
    assert_close(layer(X), plain(X).detach())
    assert_close(layer.weight, plain.weight.detach())
    layer(X).square().sum().backward()
    length, direction = (p.grad for p in list(layer.parametrizations.weight.parameters()))
    grad = torch.autograd.grad(plain(X).square().sum(), plain.weight)[0]
    for position in ((0, 0), (2, 1)):  # each equals torch's norm of a convolution with the filters of the position
        conv = parametrizations.weight_norm(convolution_of(plain, *position))
        conv.weight.backward(grad[position].movedim((-1, -2), (0, 1)))
        want_length, want = (p.grad for p in conv.parametrizations.weight.parameters())
        assert_close(length[position].flatten(), want_length.flatten())
        assert_close(direction[position].movedim((-1, -2), (0, 1)), want)


@LAYERS
def test_spectral_norms(kind):
    spectral = parametrizations.spectral_norm(kind(), dim=-1, n_power_iterations=30)
    spectral(X).sum().backward()
    matrix = spectral.weight.detach().movedim(-1, 0).flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1.0, rel=1e-2)

    plain, layer = kind(), parametrize.register_parametrization(kind(), "weight", RECIPES["PositionSpectralNorm"]())
    for position in ((0, 0), (3, 2)):
        conv = parametrizations.spectral_norm(convolution_of(plain, *position), n_power_iterations=200)
        assert_close(layer.weight[position].movedim((-1, -2), (0, 1)), conv.weight.detach(), 1e-6)
    layer(X).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


@LAYERS
def test_structured_pruning(kind):
    layer, plain = kind(), kind()
    prune.ln_structured(layer, "weight", amount=1, n=2, dim=-1)
    norms = plain.weight.detach().flatten(0, -2).norm(dim=0)
    assert torch.equal(layer.weight_mask.flatten(0, -2).amin(0), (norms != norms.min()).to(norms.dtype))
    layer = kind()
    prune.ln_structured(layer, "weight", amount=1, n=2, dim=-2)
    assert [bool(c.any()) for c in layer.weight_mask.unbind(-2)].count(False) == 1

    layer = kind()
    prune.custom_from_mask(layer, "weight", RECIPES["smallest_filters"](layer.weight, 0.5))
    for position in ((0, 0), (3, 1)):
        conv = convolution_of(plain, *position)
        prune.ln_structured(conv, "weight", amount=0.5, n=2, dim=0)
        assert torch.equal(layer.weight[position].movedim((-1, -2), (0, 1)), conv.weight)


@LAYERS
def test_pruning(kind):
    layer = kind()
    prune.l1_unstructured(layer, "weight", amount=0.5)
    assert (layer.weight == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    layer(X).sum().backward()
    assert layer.weight_orig.grad[layer.weight_mask == 0].abs().sum() == 0
    y = layer(X).detach()
    prune.remove(layer, "weight")
    assert torch.equal(layer(X), y)
    assert isinstance(layer.weight, nn.Parameter)


@LAYERS
def test_hooks(kind):
    layer, events = kind(), []
    layer.register_forward_pre_hook(lambda m, args: events.append("pre"))
    layer.register_forward_hook(lambda m, args, y: y * 2)
    layer.register_full_backward_hook(lambda m, gx, gy: events.append(tuple(gx[0].shape)))
    layer.weight.register_hook(lambda g: g * 3)
    layer.weight.register_post_accumulate_grad_hook(lambda p: events.append("accumulated"))
    x = X.clone().requires_grad_()
    y = layer(x)
    y.sum().backward()
    plain = kind()
    assert torch.equal(y, 2 * plain(X))
    want = torch.autograd.grad(2 * plain(X).sum(), plain.weight)[0]
    assert_close(layer.weight.grad, 3 * want)
    assert events == ["pre", "accumulated", tuple(X.shape)] or events == ["pre", tuple(X.shape), "accumulated"]


def test_clipping():
    layer = make()
    layer(X).sum().backward()
    before = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
    assert nn.utils.clip_grad_norm_(layer.parameters(), 0.1).item() == pytest.approx(before.item())
    assert torch.cat([p.grad.flatten() for p in layer.parameters()]).norm().item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("how", ["foreach", "fused"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_optimizers(name, how):
    layers = [make(), make()]
    for layer, options in zip(layers, ({how: True}, {how: False}), strict=True):
        optimizer = getattr(torch.optim, name)(layer.parameters(), lr=0.1, **options)
        for _ in range(3):
            optimizer.zero_grad()
            layer(X).square().sum().backward()
            optimizer.step()
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        assert_close(a, b.detach(), 1e-9)


def test_averaged_weights():
    layer = make()
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(layer)
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    average.update_parameters(layer)
    assert_close(average.module.weight, first + 0.1)
    assert average(X).shape == layer(X).shape


@LAYERS
def test_from_the_meta_device(kind):
    want = kind()
    with torch.device("meta"):
        layer = kind()
    assert layer.weight.is_meta
    assert layer(X.to("meta")).shape == want(X).shape
    layer = layer.to_empty(device="cpu")
    torch.manual_seed(1)
    layer.reset_parameters()
    assert torch.equal(layer.weight, want.weight)
    layer.load_state_dict(want.state_dict())
    assert torch.equal(layer(X), want(X))
    with torch.device("meta"):
        assigned = kind()
    assigned.load_state_dict(want.state_dict(), assign=True)
    assert torch.equal(assigned(X), want(X))


def test_skip_init():
    layer = nn.utils.skip_init(lc_triton.LocalConv2d, 2, 3, 3, 6, dtype=torch.float64)
    layer.load_state_dict(make().state_dict())
    assert_close(layer(X).tanh(), make()(X).detach())


def _run(layer, x):
    return layer(x).detach()


@pytest.mark.subprocess
@pytest.mark.slow
@LAYERS
def test_layers_travel_to_another_process(kind):
    layer = kind()
    want = layer(X).detach()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert torch.equal(pool.submit(_run, layer, X).result(), want)
    for rebuilt in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(rebuilt(X), want)
        assert rebuilt.weight.data_ptr() != layer.weight.data_ptr()


@contextlib.contextmanager
def empty_weights():
    """As `accelerate.init_empty_weights()`, move each new parameter to the meta device."""
    register = nn.Module.register_parameter

    def register_empty(module, name, param):
        register(module, name, param)
        if param is not None:
            kind, kwargs = type(param), dict(param.__dict__, requires_grad=param.requires_grad)
            module._parameters[name] = kind(module._parameters[name].to("meta"), **kwargs)

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


@pytest.mark.parametrize(
    "kind",
    [
        make,
        transposed,
        lambda: make(bias="channel"),
        lambda: make(bias=False),
        lambda: make(nn.PReLU(3, dtype=torch.float64)),
        lambda: lc_triton.LocallyConnected2D(
            3, 3, data_format="channels_first", input_shape=(2, 6, 6), dtype="float64"
        ),
    ],
)
def test_init_empty_weights_of_accelerate(kind):
    with empty_weights():
        layer = kind()
    assert all(p.is_meta and type(p) is nn.Parameter for p in layer.parameters())
    want = kind()
    layer.load_state_dict(want.state_dict(), assign=True)
    assert torch.equal(layer(X), want(X))


def test_a_layer_of_known_sizes_has_plain_parameters():
    for kind in (make, transposed, lambda: lc_triton.LocallyConnected2D(3, 3, input_shape=(6, 6, 2))):
        torch.manual_seed(4)
        layer = kind()
        assert all(type(p) is nn.Parameter for p in layer.parameters())
        assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert "bias" in make(bias=False)._parameters  # as in torch's own layers


def layers_of_each_dimension():
    return [
        lc_triton.LocalConv1d(3, 4, 3, input_size=8),
        lc_triton.LocalConvTranspose1d(3, 4, 3, input_size=8),
        lc_triton.LocallyConnected1D(4, 3, input_shape=(8, 3)),
        lc_triton.LocalConv2d(3, 4, 3, input_size=8),
        lc_triton.LocalConv3d(2, 4, 2, input_size=4),
        parametrizations.weight_norm(lc_triton.LocalConv1d(3, 4, 3, input_size=8)),
        prune.l1_unstructured(lc_triton.LocalConv1d(3, 4, 3, input_size=8), "weight", 0.5),
    ]


def test_memory_formats_do_not_change_weights():
    for layer in layers_of_each_dimension():
        want = {name: value.clone() for name, value in layer.state_dict().items()}
        net = nn.Sequential(layer, nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
        assert not net[1].weight.is_contiguous()
        for name, value in layer.state_dict().items():
            assert value.is_contiguous(), name
            assert torch.equal(value, want[name])
        layer.to(torch.float64, memory_format=torch.channels_last)
        assert all(value.is_contiguous() for value in layer.state_dict().values())
        assert all(p.dtype == torch.float64 for p in layer.parameters())
    layer = nn.Sequential(lc_triton.LocalConv3d(2, 4, 2, input_size=4), nn.Conv3d(2, 4, 2))
    layer.to(memory_format=torch.channels_last_3d)
    assert layer[0].weight.is_contiguous()
    assert layer[0].bias.is_contiguous()
    assert not layer[1].weight.is_contiguous()
    lazy = lc_triton.LazyLocalConv1d(3, 2).half().to("cpu", torch.float32)
    assert lazy(torch.randn(1, 2, 6)).shape == (1, 3, 5)


def test_a_weight_that_is_not_contiguous_warns_once_a_module():
    layer, x = make(), X
    layer.weight = nn.Parameter(layer.weight.detach().movedim(-1, 0).contiguous().movedim(0, -1))
    want = make()(x)
    with pytest.warns(
        UserWarning, match=r"the weight of this LocalConv2d, .* is not contiguous .* each call copies it"
    ):
        assert_close(layer(x), want.detach())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(x)
        make()(x)
        rebuilt = copy.deepcopy(layer)
        rebuilt.weight = nn.Parameter(rebuilt.weight.detach().contiguous())
        rebuilt(x)
        parametrizations.weight_norm(make(), dim=5)(x)
        other = make()
        other.weight = layer.weight
        torch.compile(other, backend="eager", fullgraph=True)(x)
    with pytest.warns(UserWarning, match="is not contiguous"):
        other(x)


@pytest.mark.parametrize(
    "kind",
    [
        make,
        transposed,
        lambda: make("gelu", padding=1, padding_mode="circular"),
        lambda: make("softmax", bias="channel"),
        lambda: make(None, bias=False, groups=1),
    ],
)
def test_an_empty_batch(kind):
    layer, inputs = kind(), X.clone().requires_grad_()
    x = X[:0].clone().requires_grad_()
    y = layer(x)
    assert y.shape == (0, *layer(inputs).shape[1:])
    y.square().sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad.shape == p.shape and not p.grad.any() for p in layer.parameters())

    # Opacus takes per-sample gradients of batches that may be empty.
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))
    for name, grad in each(parameters, X[:0]).items():
        assert grad.shape == (0, *parameters[name].shape)
    for name, grad in each(parameters, X).items():
        assert grad.shape == (4, *parameters[name].shape)
    assert torch.func.vmap(layer)(X[:0, None]).shape == (0, 1, *y.shape[1:])


def test_ensembles_without_members():
    w = torch.randn(0, 2, 2, 2, 2, 2, 2, 1, 2)
    f = torch.func.vmap(lambda w, b, x: lc_triton.local_conv(x, w, b, activation="tanh"), (0, 0, None))
    x = torch.randn(2, 1, 3, 3, 3)
    assert f(w, torch.randn(0, 2), x).shape == (0, 2, 2, 2, 2, 2)
    assert torch.func.vmap(f, (None, None, 0))(w, torch.randn(0, 2, 2, 2, 2), x[None]).shape == (1, 0, 2, 2, 2, 2, 2)
    # A further level shares the dimension of the one inside it.
    ff = torch.func.vmap(f, (0, 0, None))
    assert ff(torch.randn(3, *w.shape), torch.randn(3, 0, 2), x).shape == (3, 0, 2, 2, 2, 2, 2)
    assert ff(torch.randn(0, 3, *w.shape[1:]), torch.randn(0, 3, 2), x).shape == (0, 3, 2, 2, 2, 2, 2)


def test_data_parallel_without_a_gpu():
    layer = make()
    assert torch.equal(nn.DataParallel(layer)(X), layer(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_training_with_a_scaler(dtype):
    layer = lc_triton.LocalConv2d(2, 3, 3, input_size=6, activation="relu")
    x, scaler = X.float(), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        loss = y.float().square().mean()
    assert y.dtype == dtype
    scaler.scale(loss).backward()
    assert layer.weight.grad.dtype == torch.float32
    reference = copy.deepcopy(layer).double()
    want = torch.autograd.grad(reference(X).square().mean(), reference.weight)[0]
    scaler.unscale_(optimizer)
    assert_close(layer.weight.grad, want, 8 * torch.finfo(dtype).eps * want.abs().max().item())
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(before, layer.weight)


def test_the_default_dtype():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert lc_triton.LocalConv1d(2, 3, 3, 5).weight.dtype == torch.float64
        assert lc_triton.LocallyConnected1D(3, 3, input_shape=(5, 2)).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_inference_mode_and_no_grad_give_the_same_numbers():
    layer = make()
    want = layer(X).detach()
    with torch.inference_mode():
        assert torch.equal(layer(X), want)
    with torch.no_grad():
        assert torch.equal(layer(X), want)
    assert torch.equal(gradients(layer)[1], gradients(make())[1])


def layers_of_every_convention():
    """Layers of every convention in several dtypes, and one converted from a convolution."""
    return nn.ModuleDict(
        {
            "conv": make(bias="channel"),
            "converted": lc_triton.LocalConv2d.from_conv(nn.Conv2d(2, 4, 3, padding=1), input_size=6),
            "transposed": lc_triton.LocalConvTranspose2d(4, 3, 3, input_size=6, dtype=torch.bfloat16),
            "keras": lc_triton.LocallyConnected2D(3, (3, 3), input_shape=(8, 8, 3), dtype="float16"),
            "keras_without_bias": lc_triton.LocallyConnected1D(3, 2, use_bias=False, input_shape=(5, 2)),
        }
    )


def zeroed_copy(net):
    """A copy of a model, with parameters of zeros."""
    rebuilt = copy.deepcopy(net)
    for parameter in rebuilt.parameters():
        nn.init.zeros_(parameter)
    return rebuilt


def test_saved_as_safetensors_and_loaded(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    net, path = layers_of_every_convention(), tmp_path / "net.safetensors"
    files.save_file(net.state_dict(), path)
    loaded = files.load_file(path)
    assert loaded.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert loaded[name].dtype == value.dtype, name
        assert torch.equal(loaded[name], value), name
    loaded_net = zeroed_copy(net)
    loaded_net.load_state_dict(loaded)
    assert torch.equal(loaded_net["conv"](X), net["conv"](X))
    lazy = lc_triton.LazyLocalConv2d(3, 3, activation="tanh", bias="channel", dtype=X.dtype)
    lazy.load_state_dict({name: loaded[f"conv.{name}"] for name in ("weight", "bias")})
    assert torch.equal(lazy(X), net["conv"](X))


def test_a_model_saved_as_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    net = layers_of_every_convention()
    for parameter in net.parameters():
        assert parameter.is_contiguous()
        # No storage is shared, or larger than its tensor.
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
    files.save_model(net, tmp_path / "net.safetensors")
    loaded_net = zeroed_copy(net)
    files.load_model(loaded_net, tmp_path / "net.safetensors")
    for name, value in net.state_dict().items():
        assert torch.equal(loaded_net.state_dict()[name], value), name
