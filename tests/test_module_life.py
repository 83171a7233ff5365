"""What a training pipeline does to nn.Conv2d, done to these layers: equal to what it is without, or to nn.Conv2d."""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
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


@LAYERS
def test_parametrizations(kind):
    plain, layer = kind(), parametrizations.weight_norm(kind(), dim=-1)
    assert_close(layer(X), plain(X).detach())
    layer(X).sum().backward()
    assert layer.parametrizations.weight.original0.grad.abs().sum() > 0
    spectral = parametrizations.spectral_norm(kind(), dim=-1, n_power_iterations=30)
    spectral(X).sum().backward()
    matrix = spectral.weight.detach().movedim(-1, 0).flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2).item() == pytest.approx(1.0, rel=1e-2)


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
    layer, seen = kind(), []
    layer.register_forward_pre_hook(lambda m, args: seen.append("pre"))
    layer.register_forward_hook(lambda m, args, y: y * 2)
    layer.register_full_backward_hook(lambda m, gx, gy: seen.append(tuple(gx[0].shape)))
    layer.weight.register_hook(lambda g: g * 3)
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    x = X.clone().requires_grad_()
    y = layer(x)
    y.sum().backward()
    plain = kind()
    assert torch.equal(y, 2 * plain(X))
    want = torch.autograd.grad(2 * plain(X).sum(), plain.weight)[0]
    assert_close(layer.weight.grad, 3 * want)
    assert seen == ["pre", "accumulated", tuple(X.shape)] or seen == ["pre", tuple(X.shape), "accumulated"]


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


@LAYERS
def test_into_another_process_and_back(kind):
    layer = kind()
    want = layer(X).detach()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert torch.equal(pool.submit(_run, layer, X).result(), want)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(X), want)
        assert again.weight.data_ptr() != layer.weight.data_ptr()


def test_data_parallel_without_a_gpu_is_the_module_itself():
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


def one_of_each():
    """Layers of every convention, in several dtypes, one taken from a convolution, whose filters are one tensor's."""
    return nn.ModuleDict(
        {
            "conv": make(bias="channel"),
            "converted": lc_triton.LocalConv2d.from_conv(nn.Conv2d(2, 4, 3, padding=1), input_size=6),
            "transposed": lc_triton.LocalConvTranspose2d(4, 3, 3, input_size=6, dtype=torch.bfloat16),
            "keras": lc_triton.LocallyConnected2D(3, (3, 3), input_shape=(8, 8, 3), dtype="float16"),
            "keras_without_bias": lc_triton.LocallyConnected1D(3, 2, use_bias=False, input_shape=(5, 2)),
        }
    )


def forgotten(net):
    """A copy of a model that has lost what it knew."""
    again = copy.deepcopy(net)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    return again


def test_saved_as_safetensors_and_loaded(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    net, path = one_of_each(), tmp_path / "net.safetensors"
    files.save_file(net.state_dict(), path)
    loaded = files.load_file(path)
    assert loaded.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert loaded[name].dtype == value.dtype, name
        assert torch.equal(loaded[name], value), name
    others = forgotten(net)
    others.load_state_dict(loaded)
    assert torch.equal(others["conv"](X), net["conv"](X))
    lazy = lc_triton.LazyLocalConv2d(3, 3, activation="tanh", bias="channel", dtype=X.dtype)
    lazy.load_state_dict({name: loaded[f"conv.{name}"] for name in ("weight", "bias")})
    assert torch.equal(lazy(X), net["conv"](X))


def test_a_model_saved_as_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    net = one_of_each()
    for parameter in net.parameters():
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.nbytes  # its own, and no more than it needs
    files.save_model(net, tmp_path / "net.safetensors")
    others = forgotten(net)
    files.load_model(others, tmp_path / "net.safetensors")
    for name, value in net.state_dict().items():
        assert torch.equal(others.state_dict()[name], value), name
