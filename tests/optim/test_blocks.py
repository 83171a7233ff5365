"""States of AdamW in 8 bits: their codes, training, and the same bits however a step is made."""

import copy
import io

import pytest
import torch

from lc_triton import FusedAdamW, LocalConv2d
from lc_triton.optim.blocks import MOST, dequantize, quantize
from lc_triton.optim.rounding import random_bits
from lc_triton.optim.states import AMAX, CODES, NUMBERS, to_codes, to_numbers
from tests.optim.networks import assert_same, batch, loss_of, network, one_step, weights

CPU = torch.device("cpu")


def random_halves(numel, count=1):
    bits = random_bits(0, numel, count, CPU)
    return bits & 0xFFFF, bits >> 16


def make(**options):
    net = network()
    return net, FusedAdamW(net, lr=0.01, states="8 bits", **options)


def decoded_states(optimizer, weight):
    """Both states of a weight in float32."""
    state = dict(optimizer.state[weight])
    to_numbers(state, torch.float32)
    return [state[key] for key in NUMBERS]


@pytest.mark.parametrize("filters", [1, 5, 32, 40])
@pytest.mark.parametrize("i", [0, 1])
def test_a_number_is_rounded_to_a_neighbouring_code(filters, i):
    """Each number is compared with the definition. The largest of a block is exact, and a code is rounded to itself."""
    gen, max_code = torch.Generator().manual_seed(filters), MOST[i]
    x = torch.randn((6, filters), generator=gen) * 10.0 ** torch.empty((6, filters)).uniform_(-4, 0, generator=gen)
    x = x.abs() if i else x
    codes, amax = quantize(x, random_halves(x.numel())[i], max_code)
    assert amax.shape == (6, -(-filters // 32))
    back = dequantize(codes, amax, max_code)
    for row in range(6):
        for f in range(filters):
            largest = x[row, f // 32 * 32 : f // 32 * 32 + 32].abs().max().item()
            assert amax[row, f // 32] == largest
            exact, code = x[row, f].item(), codes[row, f].item()
            exact_code = (abs(exact) / largest) ** 0.25 * max_code
            assert code == 0 or (code > 0) == (exact > 0)
            assert abs(abs(code) - exact_code) < 1.001 or (i and code == 1)
            assert back[row, f] == pytest.approx(
                (abs(code) / max_code) ** 4 * largest * (1 if code >= 0 else -1), rel=1e-5
            )
    rebuilt, same = quantize(back, random_halves(x.numel(), 2)[i], max_code)
    assert torch.equal(rebuilt, codes)
    assert torch.equal(same, amax)


@pytest.mark.parametrize("i", [0, 1])
def test_stochastic_rounding_has_the_right_mean(i):
    x = torch.tensor([1.0, 0.3, 0.0123, 1e-5]).repeat(1 << 14, 1)
    found = dequantize(*quantize(x, random_halves(x.numel())[i], MOST[i]), MOST[i]).double()
    spread = found.std(0).clamp(min=1e-9) / 2**7
    assert ((found.mean(0) - x[0].double()).abs() < 5 * spread + 1e-6 * x[0]).all()


def test_a_positive_second_moment_is_not_rounded_to_zero():
    """A step is divided by the root of the second moment. A first moment may become zero."""
    x = torch.tensor([1.0, 1e-12, 0.0])
    bits = torch.full((3,), 0xFFFF)
    assert quantize(x, bits, MOST[1])[0].tolist() == [255, 1, 0]
    assert quantize(x, bits, MOST[0])[0].tolist() == [127, 0, 0]


def test_a_block_with_nan_or_inf_is_not_finite():
    for value in (float("nan"), float("inf")):
        x = torch.ones(64)
        x[3] = value
        for i in (0, 1):
            back = dequantize(*quantize(x, random_halves(64)[i], MOST[i]), MOST[i])
            assert not back[:32].isfinite().any()
            assert (back[32:] == 1).all()
    assert dequantize(*quantize(torch.zeros(3), random_halves(3)[0], MOST[0]), MOST[0]).tolist() == [0, 0, 0]


def test_the_second_moment_decays_in_each_filter():
    """Filter 0 keeps the largest magnitude of the block, while the others decay."""
    layer = LocalConv2d(1, 8, 3, input_size=(8, 8), bias=False)
    optimizer = FusedAdamW(layer, lr=0.0, states="8 bits")
    gradient = torch.ones_like(layer.weight)
    layer.weight.grad = gradient.clone()
    layer(torch.ones(1, 1, 8, 8))  # the optimizer finds a layer's weight in its forward
    optimizer.step()
    first = decoded_states(optimizer, layer.weight)[1][..., 1:].double().mean()
    gradient[..., 1:] = 0
    for _ in range(60):
        layer.weight.grad = gradient.clone()
        optimizer.step()
    last = decoded_states(optimizer, layer.weight)[1].double()
    assert last[..., 1:].mean() / first == pytest.approx(0.999**60, rel=0.02)
    assert (last[..., 0] / (1 - 0.999**61) - 1).abs().max() < 1e-3


@pytest.mark.slow
def test_updates_in_backward_and_in_step_have_the_same_bits():
    results = {}
    for mode in ("backward", "paused", "scaler", "copied"):
        net, optimizer = make()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=mode == "scaler")
        for step in range(3):
            optimizer.zero_grad()
            if mode == "copied":
                net, optimizer = copy.deepcopy((net, optimizer))
            loss = scaler.scale(loss_of(net, batch(step)))
            if mode == "paused":
                with optimizer.paused():
                    loss.backward()
            else:
                loss.backward()
            assert all((w.grad is not None) == (mode in ("paused", "scaler")) for w in weights(net))
            scaler.step(optimizer)
            scaler.update()
        results[mode] = [*net.parameters(), *(optimizer.state[w][key] for w in weights(net) for key in (*CODES, AMAX))]
    for mode, found in results.items():
        assert all(torch.equal(a, b) for a, b in zip(found, results["backward"], strict=True)), mode


def test_a_step_with_an_infinite_gradient_is_skipped():
    net, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(2):
        before = copy.deepcopy(([*net.parameters()], [optimizer.state[w] for w in weights(net)]))
        optimizer.zero_grad()
        scaler.scale(loss_of(net, batch(step)) * (float("inf") if step else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, q) for p, q in zip(before[0], net.parameters(), strict=True)) == (step == 1)
    for old, w in zip(before[1], weights(net), strict=True):
        assert all(torch.equal(old[key], optimizer.state[w][key]) for key in old)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"clip_norm": 0.05}, {"accumulate": 2}, {"maximize": True}], ids=str)
def test_options_beside_float32_states(options):
    """The weights after one step are those of float32 states, because states are rounded after the update."""
    net, optimizer = make(**options)
    same = network()
    plain = FusedAdamW(same, lr=0.01, **options)
    for model, optimizer_ in ((net, optimizer), (same, plain)):
        for part in range(options.get("accumulate", 1)):
            loss_of(model, batch(part)).backward()
        optimizer_.step()
    assert_same(net, same, 1e-6)
    for w, v in zip(weights(net), weights(same), strict=True):
        for number, key in zip(decoded_states(optimizer, w), NUMBERS, strict=True):
            exact = plain.state[v][key]
            assert ((number - exact).abs() <= 0.04 * exact.abs().amax(-1, keepdim=True)).all()
            assert number.abs().amax() == exact.abs().amax()


@pytest.mark.slow
@pytest.mark.parametrize("master", [None, "24 bits"])
def test_a_run_resumes_from_its_state(master):
    """The run is saved by torch.save, and ends with the bits of one that was not interrupted."""
    dtype = torch.float32 if master is None else torch.bfloat16
    layers = [LocalConv2d(2, 5, 3, input_size=(7, 7), bias=False, dtype=dtype) for _ in range(2)]
    optimizers = [FusedAdamW(layer, lr=0.01, states="8 bits", master=master) for layer in layers]
    for step in range(4):
        if step == 2:
            file = io.BytesIO()
            torch.save((layers[0].state_dict(), optimizers[0].state_dict()), file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            layers[1].load_state_dict(saved[0])
            optimizers[1].load_state_dict(saved[1])
        for layer, optimizer in list(zip(layers, optimizers, strict=True))[: 1 if step < 2 else 2]:
            optimizer.zero_grad()
            layer(batch(step).to(dtype)).square().mean().backward()
            assert layer.weight.grad is None
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)
    for key, value in optimizers[0].state[layers[0].weight].items():
        assert value.dtype == optimizers[1].state[layers[1].weight][key].dtype
        assert torch.equal(value, optimizers[1].state[layers[1].weight][key]), key


def test_states_of_other_kinds_are_converted():
    """float32 states are rounded to 8 bits, and 8 bits become float32 exactly. torch's AdamW does not read codes."""
    net, optimizer = make()
    one_step(net, optimizer, 0)
    plain = FusedAdamW(net, lr=0.01)
    plain.load_state_dict(optimizer.state_dict())
    weight = net[0].weight
    for number, key in zip(decoded_states(optimizer, weight), NUMBERS, strict=True):
        assert torch.equal(plain.state[weight][key], number)
    assert plain.state[weight].keys() == {"step", *NUMBERS}
    torch_optimizer = torch.optim.AdamW(net.parameters())
    torch_optimizer.load_state_dict(plain.state_dict())
    same, rebuilt = make()
    rebuilt.load_state_dict(torch_optimizer.state_dict())
    one_step(same, rebuilt, 1)
    weight = same[0].weight
    assert rebuilt.state[weight].keys() == {"step", *CODES, AMAX}
    assert [rebuilt.state[weight][key].dtype for key in CODES] == [torch.int8, torch.uint8]
    torch_optimizer.load_state_dict(rebuilt.state_dict())
    net[0].weight.grad = torch.zeros_like(weight)
    with pytest.raises(KeyError, match="exp_avg"):
        torch_optimizer.step()


def test_weights_with_amsgrad_are_updated_by_torch():
    net, optimizer = make()
    one_step(net, optimizer, 0)
    want = decoded_states(optimizer, net[0].weight)
    optimizer.param_groups[0]["amsgrad"] = True
    for w in weights(net):
        optimizer.state[w]["max_exp_avg_sq"] = torch.zeros_like(w)
    optimizer.param_groups[0]["lr"] = 0.0
    for p in net.parameters():
        optimizer.state[p].setdefault("max_exp_avg_sq", torch.zeros_like(p))
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = optimizer.state[net[0].weight]
    assert state.keys() == {"step", *NUMBERS, "max_exp_avg_sq"}
    assert torch.allclose(state["exp_avg"], want[0] * 0.9)


def test_codes_without_states_are_zeros():
    state, weight = {}, torch.zeros(2, 3, 4, 40, dtype=torch.float64)
    to_codes(state, weight)
    assert state.keys() == {*CODES, AMAX}
    assert state[AMAX].shape == (2, 3, 4, 2, 2)
    assert state[AMAX].dtype == torch.float32
    assert not any(value.any() for value in state.values())
