"""local_conv with the kernels on a GPU: values of all cases, and tests that need a GPU, such as large tensors."""

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.core.activations import FUSED_NAMES, parse_activation
from lc_triton.core.problem import Problem
from lc_triton.tiles.config import TileConfig
from tests import cases
from tests.cases import CASES, IDS, assert_as_accurate, assert_close, expected, tensors, torch_results
from tests.shared_cases import SHARED

pytestmark = pytest.mark.gpu

BATCHES = [2, 33, 256]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
IMAGE = cases.Case("image", (16, 13), 3, 40, 5, stride=(2, 1), padding=2, batch=70)
PADDED_TILES = (
    TileConfig(1, 1, 64, 64, 64, pad_channels=True),
    TileConfig(1, 2, 32, 32, 32, swap=True, split=2, pad_channels=True),
)
EXACT = {torch.float32: 2e-5, torch.float64: 1e-12}


def run(case, t, **kwargs):
    """y, dx, dw and db of a case, computed by the kernels."""
    with lc_triton.backend("triton"):
        return cases.run(case, t, **kwargs)


def padded_forward(t, config, *, channels_first):
    """y of `IMAGE`, computed from a copy of x with padded channels."""
    x = t.x.movedim(-1, 1).contiguous().movedim(1, -1) if channels_first else t.x
    y = torch.full((IMAGE.batch, *IMAGE.geometry.bias_shape), float("nan"), dtype=x.dtype, device=x.device)
    launch.forward(x, t.weight, t.bias, y, None, Problem(IMAGE.geometry, backend="triton"), config)
    return y


def skip_without_memory(gigabytes):
    """Skip the test if the GPU, which other processes may use too, has less free memory."""
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes << 30:  # may go with a smaller case
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free >> 30} GB are free")


def with_batch(case, batch):
    """The case with another batch, for which other tiles are chosen."""
    return type(case)(**(vars(case) | {"batch": batch}))


@pytest.fixture(autouse=True)
def _ieee():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_values(case, dtype, batch):
    case = with_batch(case, batch)
    t = tensors(case, dtype, device="cuda")
    got, want = run(case, t), expected(case, t)
    if dtype in EXACT:
        for name, exact in want.items():
            assert_close(got[name], exact, EXACT[dtype], name)
        return
    theirs = torch_results(case, t)
    for name, factor in {"y": 2, "dx": 3, "dw": 3, "db": 3}.items():
        assert_as_accurate(got[name], want[name], theirs[name], factor, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SHARED, ids=lambda c: c.name)
def test_shared_filters(case, dtype):
    test_values(case, dtype, 33)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES[:12], ids=IDS[:12])
def test_16_bit_input_with_float32_weights(case, dtype):
    case = with_batch(case, 16)
    t = tensors(case, dtype, weight_dtype=torch.float32, device="cuda")
    got, want = run(case, t), expected(case, t)
    assert [got[k].dtype for k in ("y", "dx", "dw", "db")] == [dtype] * 2 + [torch.float32] * 2
    eps = torch.finfo(dtype).eps
    for name, tolerance in {"y": 4 * eps, "dx": 4 * eps, "dw": 1e-4, "db": 1e-4}.items():
        assert_close(got[name], want[name], tolerance, name)


def test_tf32_follows_torchs_setting():
    case = with_batch(next(c for c in CASES if c.name == "2d_wide_channels"), 128)
    t = tensors(case, torch.float32, device="cuda")
    want, errors = expected(case, t), {}
    for precision in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = precision
        errors[precision] = (run(case, t)["y"].double().cpu() - want["y"]).abs().max().item()
    assert errors["ieee"] < 1e-5
    assert 1e-5 < errors["tf32"] < 1e-2


@pytest.mark.parametrize("name", FUSED_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations(name, dtype):
    case = with_batch(next(c for c in CASES if c.name == "2d"), 32)
    t = tensors(case, dtype, device="cuda")
    argument = ("gelu", "tanh") if name == "gelu_tanh" else name
    act = parse_activation(argument)
    want, got = expected(case, t, act), run(case, t, activation=argument)
    for key, exact in want.items():
        assert_close(got[key], exact, 4e-5 if dtype == torch.float32 else 0.03, key)


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_inputs_with_padded_channels(dtype, channels_first):
    t = tensors(IMAGE, dtype, device="cuda")
    want, theirs = expected(IMAGE, t)["y"], torch_results(IMAGE, t)["y"]
    for config in PADDED_TILES:
        assert_as_accurate(padded_forward(t, config, channels_first=channels_first), want, theirs, 2, "y")


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_layouts(data_format):
    case = with_batch(next(c for c in CASES if c.name == "2d_same"), 16)
    t = tensors(case, torch.float32, device="cuda")
    x = t.x if data_format == "channels_last" else t.x.movedim(-1, 1).contiguous()
    y = lc_triton.local_conv(x, t.weight, t.bias, **case.arguments, data_format=data_format)
    want = expected(case, t)["y"]
    assert_close(y if data_format == "channels_last" else y.movedim(1, -1), want, 2e-5)
    for view in (x[::2], x[1:], x.flip(0)[:3], x[:1].expand(4, *x.shape[1:])):
        got = lc_triton.local_conv(view, t.weight, t.bias, **case.arguments, data_format=data_format)
        rebuilt = lc_triton.local_conv(view.contiguous(), t.weight, t.bias, **case.arguments, data_format=data_format)
        assert torch.equal(got, rebuilt)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_two_runs_agree_to_the_bit(dtype):
    case = with_batch(next(c for c in CASES if c.name == "2d_wide_channels"), 200)
    t = tensors(case, dtype, device="cuda")
    first, second = run(case, t), run(case, t)
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_second_order(check):
    shapes = (2, 2, 4, 3), (3, 2, 2, 2, 2, 3), (3, 2, 3)
    x, w, b = (torch.randn(s, dtype=torch.float64, device="cuda", requires_grad=True) for s in shapes)

    def f(x, w, b):
        return lc_triton.local_conv(x, w, b, activation="silu")

    assert check(f, (x, w, b))


def test_past_2_to_the_31_elements():
    """x, y and the weight each hold more than 2^31 numbers; the last positions and samples are compared."""
    skip_without_memory(24)  # 6 GB of weights twice while they are drawn, and 4 GB each for x and y
    length, channels, batch = 2**20 + 8, 32, 65
    x = torch.randn(batch, length, channels, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(length - 2, 3, channels, 32, device="cuda", dtype=torch.bfloat16) / 10
    assert x.numel() > 2**31
    assert weight.numel() > 2**31
    y = lc_triton.local_conv(x, weight, data_format="channels_last")
    windows = x[-3:, -7:].float().unfold(1, 3, 1).permute(0, 1, 3, 2)  # (3, 5, T, C)
    want = torch.einsum("bptc,ptcf->bpf", windows, weight[-5:].float())
    torch.testing.assert_close(y[-3:, -5:].float(), want, rtol=2e-2, atol=2e-2)


def test_one_sample_past_2_to_the_31_elements():
    skip_without_memory(12)  # 4 GB each for x and the weights
    length, channels = 2**16 + 4, 2**15 + 64
    x = torch.randn(1, length, channels, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(length, 1, 1, channels, device="cuda", dtype=torch.bfloat16).view(length, 1, channels, 1)
    assert x.numel() > 2**31
    y = lc_triton.local_conv(x, weight, data_format="channels_last")
    want = (x[0, -4:].float() * weight[-4:, 0, :, 0].float()).sum(1)
    torch.testing.assert_close(y[0, -4:, 0].float(), want, rtol=2e-2, atol=2.0)


def test_the_demo_uses_the_kernels(tmp_path, capsys):
    from lc_triton.demo import Settings
    from lc_triton.demo import run as demo

    results = demo(Settings(epochs=1, out=tmp_path))
    assert results["networks"]["locally connected"]["path"] == "Triton kernels"
    assert torch.cuda.get_device_name() in capsys.readouterr().out
