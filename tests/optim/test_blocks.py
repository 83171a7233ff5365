"""States of AdamW in 8 bits: their codes, training with them, and every way a step is made."""

import copy
import io

import pytest
import torch

from lc_triton import FusedAdamW, LocalConv2d
from lc_triton.optim.blocks import MOST, dequantize, quantize
from lc_triton.optim.rounding import random_bits
from lc_triton.optim.states import AMAX, CODES, NUMBERS, to_codes, to_numbers
from tests.optim.networks import assert_same, batch, loss_of, network, weights

CPU = torch.device("cpu")


def halves(numel, count=1):
    bits = random_bits(0, numel, count, CPU)
    return bits & 0xFFFF, bits >> 16


def make(**options):
    net = network()
    return net, FusedAdamW(net, lr=0.01, states="8 bits", **options)


def one_step(net, optimizer, step):
    optimizer.zero_grad()
    loss_of(net, batch(step)).backward()
    optimizer.step()


def numbers(optimizer, weight):
    """Both states of a weight in float32."""
    state = dict(optimizer.state[weight])
    to_numbers(state, torch.float32)
    return [state[key] for key in NUMBERS]


@pytest.mark.parametrize("filters", [1, 5, 32, 40])
@pytest.mark.parametrize("i", [0, 1])
def test_a_number_becomes_one_of_the_two_codes_beside_it(filters, i):
    """Of the definition, a number at a time: the block's largest is exact, and codes keep their numbers."""
    gen, most = torch.Generator().manual_seed(filters), MOST[i]
    x = torch.randn((6, filters), generator=gen) * 10.0 ** torch.empty((6, filters)).uniform_(-4, 0, generator=gen)
    x = x.abs() if i else x
    codes, amax = quantize(x, halves(x.numel())[i], most)
    assert amax.shape == (6, -(-filters // 32))
    back = dequantize(codes, amax, most)
    for row in range(6):
        for f in range(filters):
            largest = x[row, f // 32 * 32 : f // 32 * 32 + 32].abs().max().item()
            assert amax[row, f // 32] == largest
            exact, code = x[row, f].item(), codes[row, f].item()
            place = (abs(exact) / largest) ** 0.25 * most
            assert code == 0 or (code > 0) == (exact > 0)
            assert abs(abs(code) - place) < 1.001 or (i and code == 1)
            assert back[row, f] == pytest.approx((abs(code) / most) ** 4 * largest * (1 if code >= 0 else -1), rel=1e-5)
    again, same = quantize(back, halves(x.numel(), 2)[i], most)
    assert torch.equal(again, codes)
    assert torch.equal(same, amax)


@pytest.mark.parametrize("i", [0, 1])
def test_rounding_has_the_right_mean(i):
    x = torch.tensor([1.0, 0.3, 0.0123, 1e-5]).repeat(1 << 14, 1)
    found = dequantize(*quantize(x, halves(x.numel())[i], MOST[i]), MOST[i]).double()
    spread = found.std(0).clamp(min=1e-9) / 2**7
    assert ((found.mean(0) - x[0].double()).abs() < 5 * spread + 1e-6 * x[0]).all()


def test_no_positive_mean_of_squares_becomes_zero():
    """A step is divided by its root; a mean of gradients may."""
    x = torch.tensor([1.0, 1e-12, 0.0])
    bits = torch.full((3,), 0xFFFF)
    assert quantize(x, bits, MOST[1])[0].tolist() == [255, 1, 0]
    assert quantize(x, bits, MOST[0])[0].tolist() == [127, 0, 0]


def test_a_block_with_what_is_no_number_is_none_from_then_on():
    for value in (float("nan"), float("inf")):
        x = torch.ones(64)
        x[3] = value
        for i in (0, 1):
            back = dequantize(*quantize(x, halves(64)[i], MOST[i]), MOST[i])
            assert not back[:32].isfinite().any()
            assert (back[32:] == 1).all()
    assert dequantize(*quantize(torch.zeros(3), halves(3)[0], MOST[0]), MOST[0]).tolist() == [0, 0, 0]


def test_the_mean_of_squares_decays_in_each_filter():
    """Also in a filter whose neighbours keep the largest magnitude of the block where it is."""
    layer = LocalConv2d(1, 8, 3, input_size=(8, 8), bias=False)
    optimizer = FusedAdamW(layer, lr=0.0, states="8 bits")
    gradient = torch.ones_like(layer.weight)
    layer.weight.grad = gradient.clone()
    layer(torch.ones(1, 1, 8, 8))  # a layer's weight is known by its graph
    optimizer.step()
    first = numbers(optimizer, layer.weight)[1][..., 1:].double().mean()
    gradient[..., 1:] = 0
    for _ in range(60):
        layer.weight.grad = gradient.clone()
        optimizer.step()
    last = numbers(optimizer, layer.weight)[1].double()
    assert last[..., 1:].mean() / first == pytest.approx(0.999**60, rel=0.02)
    assert (last[..., 0] / (1 - 0.999**61) - 1).abs().max() < 1e-3


@pytest.mark.slow
def test_updates_in_backward_and_in_step_are_the_same_bits():
    ways = {}
    for way in ("backward", "paused", "scaler", "copied"):
        net, optimizer = make()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=way == "scaler")
        for step in range(3):
            optimizer.zero_grad()
            if way == "copied":
                net, optimizer = copy.deepcopy((net, optimizer))
            loss = scaler.scale(loss_of(net, batch(step)))
            if way == "paused":
                with optimizer.paused():
                    loss.backward()
            else:
                loss.backward()
            assert all((w.grad is not None) == (way in ("paused", "scaler")) for w in weights(net))
            scaler.step(optimizer)
            scaler.update()
        ways[way] = [*net.parameters(), *(optimizer.state[w][key] for w in weights(net) for key in (*CODES, AMAX))]
    for way, found in ways.items():
        assert all(torch.equal(a, b) for a, b in zip(found, ways["backward"], strict=True)), way


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
    """One step: weights are updated before states are rounded, so that they are those of float32 states."""
    net, optimizer = make(**options)
    same = network()
    plain = FusedAdamW(same, lr=0.01, **options)
    for model, of in ((net, optimizer), (same, plain)):
        for part in range(options.get("accumulate", 1)):
            loss_of(model, batch(part)).backward()
        of.step()
    assert_same(net, same, 1e-6)
    for w, v in zip(weights(net), weights(same), strict=True):
        for number, key in zip(numbers(optimizer, w), NUMBERS, strict=True):
            exact = plain.state[v][key]
            assert ((number - exact).abs() <= 0.04 * exact.abs().amax(-1, keepdim=True)).all()
            assert number.abs().amax() == exact.abs().amax()


@pytest.mark.slow
@pytest.mark.parametrize("master", [None, "24 bits"])
def test_a_run_goes_on_from_its_state(master):
    """Through torch.save, to the bits of one that was not interrupted."""
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


def test_states_of_other_kinds_are_loaded_as_numbers():
    """Of float32 and torch's own into 8 bits, rounded; and back, exactly. torch's AdamW takes no codes for numbers."""
    net, optimizer = make()
    one_step(net, optimizer, 0)
    plain = FusedAdamW(net, lr=0.01)
    plain.load_state_dict(optimizer.state_dict())
    weight = net[0].weight
    for number, key in zip(numbers(optimizer, weight), NUMBERS, strict=True):
        assert torch.equal(plain.state[weight][key], number)
    assert plain.state[weight].keys() == {"step", *NUMBERS}
    theirs = torch.optim.AdamW(net.parameters())
    theirs.load_state_dict(plain.state_dict())
    same, again = make()
    again.load_state_dict(theirs.state_dict())
    one_step(same, again, 1)
    weight = same[0].weight
    assert again.state[weight].keys() == {"step", *CODES, AMAX}
    assert [again.state[weight][key].dtype for key in CODES] == [torch.int8, torch.uint8]
    theirs.load_state_dict(again.state_dict())
    net[0].weight.grad = torch.zeros_like(weight)
    with pytest.raises(KeyError, match="exp_avg"):
        theirs.step()


def test_weights_that_no_longer_qualify_go_on_with_torch():
    net, optimizer = make()
    one_step(net, optimizer, 0)
    want = numbers(optimizer, net[0].weight)
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


def test_codes_are_made_of_zeros_without_states():
    state, weight = {}, torch.zeros(2, 3, 4, 40, dtype=torch.float64)
    to_codes(state, weight)
    assert state.keys() == {*CODES, AMAX}
    assert state[AMAX].shape == (2, 3, 4, 2, 2)
    assert state[AMAX].dtype == torch.float32
    assert not any(value.any() for value in state.values())
