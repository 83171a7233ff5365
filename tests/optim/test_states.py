"""States of AdamW in bfloat16: their rounding, training, and the same bits however a step is made."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lc_triton import FusedAdamW, LocalConv2d
from lc_triton.errors import ArgumentTypeError, UnknownNameError
from lc_triton.optim.rounding import FIRST, OF_COUNT, SECOND, random_bits, round_stochastically
from tests.optim.networks import assert_same, batch, loss_of, network, one_step, weights

BF16, CPU = torch.bfloat16, torch.device("cpu")


def pair(**options):
    """A network with bfloat16 states, and a copy with float32 states."""
    net = network()
    same = copy.deepcopy(net)
    return (net, FusedAdamW(net, lr=0.01, states="bfloat16", **options)), (same, FusedAdamW(same, lr=0.01, **options))


def random_bits_by_definition(offset, count):
    """The random bits by their definition, computed with Python's integers."""
    x = (offset + count * OF_COUNT) % 2**32
    x = (x ^ x >> 16) * FIRST % 2**32
    x = (x ^ x >> 15) * SECOND % 2**32
    return x ^ x >> 15


@pytest.mark.parametrize(("start", "count"), [(0, 1), (5, 12345), (2**32 - 3, 2), (2**33 + 7, 10**7)])
def test_random_bits_equal_their_definition(start, count):
    assert random_bits(start, 6, count, CPU).tolist() == [random_bits_by_definition(start + i, count) for i in range(6)]


def test_random_bits_are_uniform_and_independent():
    """Means and correlations of halves, of neighbours and of two steps are within 5 standard deviations."""
    n = 1 << 16
    one, two = (random_bits(0, n, count, CPU) for count in (1, 2))
    halves = [h.double() / 2**16 - 0.5 for h in (one & 0xFFFF, one >> 16, two & 0xFFFF, two >> 16)]
    bound = 5 / n**0.5
    for i, a in enumerate(halves):
        assert abs(a.mean()) < bound * 12**-0.5
        assert abs((a[1:] * a[:-1]).mean() * 12) < bound
        for b in halves[:i]:
            assert abs((a * b).mean() * 12) < bound


def test_stochastic_rounding_has_the_right_mean():
    bits = torch.arange(1 << 16)
    for x in (1.0 + 2**-9, -3.14159, 1e-30, 3.0):
        found = round_stochastically(torch.full((1 << 16,), x), bits).double()
        nearest = torch.tensor(x).to(BF16).double()
        assert len(found.unique()) == (1 if x == 3.0 else 2)
        assert (found - x).abs().max() < abs(x) * 2**-7
        assert nearest in found
        assert abs(found.mean() / torch.tensor(x).double() - 1) < 2**-23


def test_rounding_keeps_nan_and_inf():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0])
    for bits in (0, 0xFFFF):
        found = round_stochastically(x, torch.full((5,), bits))
        assert found[0].isnan()
        assert torch.equal(found[1:3].float(), x[1:3])
    nan = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert round_stochastically(nan, torch.full((2,), 0xFFFF)).isnan().all()


def test_the_second_moment_decays():
    """Rounding to nearest would keep it: beta2 = 0.999 changes it by less than half a unit in the last place."""
    layer = LocalConv2d(1, 8, 3, input_size=(8, 8), bias=False)
    optimizer = FusedAdamW(layer, states="bfloat16")
    (layer.weight * 1.0).sum().backward()
    optimizer.step()
    first = optimizer.state[layer.weight]["exp_avg_sq"].double().mean()
    for _ in range(150):
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
    last = optimizer.state[layer.weight]["exp_avg_sq"].double().mean()
    assert last / first == pytest.approx(0.999**150, rel=0.02)


def test_only_weights_of_layers_have_bfloat16_states():
    (net, optimizer), _ = pair()
    net.append(nn.Unflatten(1, (3, 1, 1)))
    net.append(nn.Conv2d(3, 3, 1))
    net.append(nn.Flatten())
    optimizer.add_param_group({"params": list(net[7].parameters())})
    for step in range(2):
        one_step(net, optimizer, step)
    layers = weights(net)
    for p in net.parameters():
        small = any(p is w for w in layers)
        assert optimizer.state[p]["exp_avg"].dtype == optimizer.state[p]["exp_avg_sq"].dtype
        assert optimizer.state[p]["exp_avg"].dtype == (BF16 if small else torch.float32)


@pytest.mark.slow
def test_updates_in_backward_and_in_step_have_the_same_bits():
    """The gradients are used in backward, stored, hooked, or scaled by a power of two; copies continue a run."""
    results = {}
    for mode in ("backward", "paused", "hooks", "scaler", "copied", "pickled"):
        net = network()
        optimizer = FusedAdamW(net, lr=0.01, states="bfloat16")
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=mode == "scaler")
        if mode == "hooks":
            for w in weights(net):
                w.register_hook(lambda g: g)
        for step in range(4):
            optimizer.zero_grad()
            if mode == "copied":
                net, optimizer = copy.deepcopy((net, optimizer))
            if mode == "pickled":
                net, optimizer = pickle.loads(pickle.dumps((net, optimizer)))
            if mode == "paused":
                with optimizer.paused():
                    loss_of(net, batch(step)).backward()
            else:
                scaler.scale(loss_of(net, batch(step))).backward()
            stored = mode in ("paused", "hooks", "scaler")
            assert all((w.grad is not None) == stored for w in weights(net))
            scaler.step(optimizer)
            scaler.update()
            assert all((w.grad is not None) == stored for w in weights(net))
        results[mode] = [*net.parameters()], [optimizer.state[w]["exp_avg_sq"] for w in weights(net)]
    for mode, found in results.items():
        for p, q in zip(found, results["backward"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(p, q, strict=True)), mode


def test_a_step_with_an_infinite_gradient_is_skipped():
    (net, optimizer), _ = pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(3):
        before = copy.deepcopy([*net.parameters()])
        states = copy.deepcopy([optimizer.state[w] for w in weights(net)])
        optimizer.zero_grad()
        scaler.scale(loss_of(net, batch(step)) * (float("inf") if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True)) == (step == 1)
        if step == 1:
            for old, w in zip(states, weights(net), strict=True):
                assert all(torch.equal(old[key], optimizer.state[w][key]) for key in old)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"clip_norm": 0.05}, {"accumulate": 2}, {"maximize": True}], ids=str)
def test_options_beside_float32_states(options):
    """The weights after one step are those of float32 states, because states are rounded after the update."""
    (net, optimizer), (same, plain) = pair(**options)
    for model, optimizer_ in ((net, optimizer), (same, plain)):
        for part in range(options.get("accumulate", 1)):
            loss_of(model, batch(part)).backward()
        optimizer_.step()
        optimizer_.zero_grad()
    assert_same(net, same, 1e-6)
    for w, v in zip(weights(net), weights(same), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            small, exact = optimizer.state[w][key].float(), plain.state[v][key]
            assert ((small - exact).abs() <= exact.abs() * 2**-7).all()


def test_a_run_resumes_from_its_state():
    """It ends with the bits of one that was not interrupted. torch's AdamW loads the same states in float32."""
    (net, optimizer), _ = pair()
    for step in range(5):
        if step == 3:
            saved = pickle.loads(pickle.dumps((net.state_dict(), optimizer.state_dict())))
        one_step(net, optimizer, step)
    rebuilt = network()
    rebuilt.load_state_dict(saved[0])
    resumed = FusedAdamW(rebuilt, lr=0.5, states="bfloat16")
    resumed.load_state_dict(saved[1])
    for step in (3, 4):
        one_step(rebuilt, resumed, step)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), rebuilt.parameters(), strict=True))
    assert all(resumed.state[w]["exp_avg"].dtype == BF16 for w in weights(rebuilt))
    plain = torch.optim.AdamW(rebuilt.parameters())
    plain.load_state_dict(saved[1])
    found, index = plain.state[rebuilt[0].weight]["exp_avg"], 0
    assert found.dtype == torch.float32
    assert torch.equal(found, saved[1]["state"][index]["exp_avg"].float())
    resumed.load_state_dict(plain.state_dict())
    one_step(rebuilt, resumed, 5)
    assert resumed.state[rebuilt[0].weight]["exp_avg"].dtype == BF16


def test_weights_in_another_layout_are_updated_by_torch():
    """The states of a weight that torch updates are converted back to its dtype."""
    (net, optimizer), _ = pair()
    one_step(net, optimizer, 0)
    weight = net[0].weight
    weight.data = weight.detach().mT.contiguous().mT  # no longer in the kernels' layout
    optimizer.state[weight]["exp_avg"] = optimizer.state[weight]["exp_avg"].mT.contiguous().mT
    with pytest.warns(UserWarning, match="stores the gradient of 0.weight"):
        one_step(net, optimizer, 1)
    assert optimizer.state[weight]["exp_avg"].dtype == torch.float32
    assert optimizer.state[net[1].weight]["exp_avg"].dtype == BF16


@pytest.mark.slow
def test_a_regression_of_200_steps_ends_as_with_float32_states():
    """A layer learns the outputs of another: the losses agree within 5%, and are 100 times below the first."""
    losses = {}
    for states in ("float32", "bfloat16"):
        torch.manual_seed(0)
        teacher, layer = (LocalConv2d(2, 4, 3, input_size=(6, 6)) for _ in range(2))
        optimizer = FusedAdamW(layer, lr=0.02, weight_decay=0.0, states=states)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 200)
        for step in range(200):
            x = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(step))
            loss = (layer(x) - teacher(x).detach()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.setdefault(states, []).append(loss.item())
    ends = {states: sum(found[-10:]) / 10 for states, found in losses.items()}
    assert ends["bfloat16"] < losses["bfloat16"][0] / 100
    assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=0.05)


@pytest.mark.parametrize(("states", "error"), [("float16", UnknownNameError), (torch.bfloat16, ArgumentTypeError)])
def test_other_states_are_refused(states, error):
    with pytest.raises(error, match="states"):
        FusedAdamW(network(), states=states)
