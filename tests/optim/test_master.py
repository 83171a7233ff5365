"""bfloat16 weights with masters of 24 bits: rounding, training, and steps in backward and in step()."""

import copy
import io
import warnings

import pytest
import torch

from lc_triton import FusedAdamW, LocalConv2d
from lc_triton.core.fused import Small
from lc_triton.errors import ArgumentTypeError, UnknownNameError
from lc_triton.optim import rules
from lc_triton.optim.rounding import join_master, random_bits, split_master
from lc_triton.optim.states import AMAX
from tests.optim.networks import batch, loss_of, network, one_step, weights

BF16, CPU = torch.bfloat16, torch.device("cpu")


def bits_of(x):
    return x.view(torch.int16 if x.dtype == BF16 else torch.int32)


def make(**options):
    """A network in bfloat16, and its optimizer."""
    net = network(BF16)
    return net, FusedAdamW(net, lr=0.01, master="24 bits", **options)


def masters(net, optimizer):
    return [join_master(w.detach(), optimizer.state[w]["correction"]) for w in weights(net)]


def test_each_master_is_a_weight_and_a_correction():
    """Each 13th number of 24 bits is kept exactly. Its weight is torch's bfloat16 number, except for ties."""
    number = (torch.arange(0, 1 << 24, 13) << 8).to(torch.int32)
    master = number.view(torch.float32)
    weight, correction = split_master(master, torch.zeros(len(number), dtype=torch.int64))
    back, is_nan = join_master(weight, correction), master.isnan()
    assert torch.equal(bits_of(back)[~is_nan], number[~is_nan])
    assert back[is_nan].isnan().all()
    differs = (bits_of(weight) != bits_of(master.to(BF16))) & ~is_nan
    assert (number[differs] & 0xFFFF == 0x8000).all()


def test_stochastic_rounding_of_masters_has_the_right_mean():
    bits = random_bits(0, 1 << 16, 3, CPU)
    for x in (1.0 + 2**-18, -3.1415927, 1e-30):
        found = join_master(*split_master(torch.full((1 << 16,), x), bits)).double()
        spacing = 2.0 ** (torch.tensor(x).abs().log2().floor().item() - 15)
        exact = torch.tensor(x).double()
        assert len(found.unique()) == 2
        assert (found - exact).abs().max() < spacing
        assert (found.mean() - exact).abs() < spacing * 5 * 0.5 / 2**8


def test_a_correction_of_a_changed_weight_gives_no_nan():
    """A user may set a weight, for example to 0, and its old correction stays."""
    corrections = torch.arange(-128, 128).to(torch.int8)
    for value in (0.0, -0.0, 1.0, -3e38):
        weight = torch.full((256,), value, dtype=BF16)
        master = join_master(weight, corrections)
        assert ((master - weight.float()).abs() <= weight.float().abs() * 2**-7 + 1e-40).all()


def test_a_step_of_a_master_is_torchs():
    """The master equals the result of torch's operator in float32, except for its last place."""
    (weight, other), rule = torch.randn(2, 6, 64), rules.AdamW(0.01, 0.9, 0.99, 1e-8, 0.1, False, 1, torch.tensor(1.0))
    weight, correction = split_master(weight, random_bits(0, 384, 1, CPU).view(6, 64))
    exact, states = join_master(weight, correction), [torch.zeros(6, 64) for _ in range(4)]
    rule.apply(exact, other.clone(), (states[0], states[1]))
    rule.apply(weight, other.clone(), (states[2], states[3]), 0, Small(correction))
    error = join_master(weight, correction) - exact
    assert (error.abs() < exact.abs() * 2**-15).all()
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[3])


@pytest.mark.slow
def test_training_with_masters_follows_float32_weights():
    """With a small learning rate, weights that are rounded in each of 30 steps hardly move."""
    changes = {}
    for mode in ("float32", "master", "torch"):
        torch.manual_seed(0)
        teacher, layer = (LocalConv2d(2, 4, 3, input_size=(6, 6), bias=False) for _ in range(2))
        teacher.weight.data.copy_(layer.weight + 0.1 * torch.randn(layer.weight.shape))
        layer.to(torch.float32 if mode == "float32" else BF16)
        options = {"master": "24 bits"} if mode == "master" else {}
        kind = torch.optim.AdamW if mode == "torch" else FusedAdamW
        optimizer, start = kind(layer.parameters(), lr=1e-4, weight_decay=0.0, **options), layer.weight.detach().clone()
        for step in range(30):
            x = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (layer(x.to(layer.weight.dtype)) - teacher(x).detach()).float().square().mean().backward()
            assert (layer.weight.grad is None) == (mode != "torch")
            optimizer.step()
        end = layer.weight.detach()
        if mode == "master":
            end = join_master(end, optimizer.state[layer.weight]["correction"])
        changes[mode] = end.float() - start.float()
    for mode, low, high in (("master", 0.0, 0.05), ("torch", 0.2, 2.0)):
        error = (changes[mode] - changes["float32"]).norm() / changes["float32"].norm()
        assert low <= error < high, (mode, error)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"clip_norm": 0.05}, {"accumulate": 2}, {"states": "bfloat16"}], ids=str)
def test_steps_in_backward_and_in_step_update_masters(options):
    """`paused` stores the gradients in bfloat16; the results differ by their rounding."""
    (net, optimizer), (same, stored) = make(**options), make(**options)
    for model, optimizer_ in ((net, optimizer), (same, stored)):
        for part in range(options.get("accumulate", 1)):
            loss = loss_of(model, batch(part).to(BF16))
            if optimizer_ is stored:
                with optimizer_.paused():
                    loss.backward()
            else:
                loss.backward()
                last = part + 1 == options.get("accumulate", 1)
                assert all((w.grad is None) == last for w in weights(net))
        optimizer_.step()
    dtype, moved = BF16 if "states" in options else torch.float32, 0
    for w, v, a, b in zip(weights(net), weights(same), masters(net, optimizer), masters(same, stored), strict=True):
        optimizer_, other = optimizer.state[w], stored.state[v]
        assert optimizer_["exp_avg"].dtype == optimizer_["exp_avg_sq"].dtype == dtype
        assert optimizer_["correction"].dtype == torch.int8
        large = optimizer_["exp_avg"].abs() > 0.1 * optimizer_["exp_avg"].abs().max()
        for key in ("exp_avg", "exp_avg_sq"):
            assert (optimizer_[key] - other[key]).abs().max() < 2**-5 * optimizer_[key].abs().max()
        assert (a - b)[large].abs().max() < 1e-4  # the first step is 0.01 for a gradient of any size
        moved += int((a - w.detach()).count_nonzero())
    assert moved


def test_a_step_with_an_infinite_gradient_is_skipped():
    net, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(3):
        before = copy.deepcopy([*net.parameters()]), copy.deepcopy([optimizer.state[w] for w in weights(net)])
        optimizer.zero_grad()
        scaler.scale(loss_of(net, batch(step).to(BF16)) * (float("inf") if step == 1 else 1)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, q) for p, q in zip(before[0], net.parameters(), strict=True)) == (step == 1)
        if step == 1:
            for old, w in zip(before[1], weights(net), strict=True):
                assert all(torch.equal(old[key], optimizer.state[w][key]) for key in old)


@pytest.mark.slow
@pytest.mark.parametrize("states", ["float32", "bfloat16"])
def test_a_run_resumes_from_its_state(states):
    """The run is saved by torch.save, and ends with the bits of one that was not interrupted."""
    net, optimizer = make(states=states)
    for step in range(4):
        if step == 2:
            file = io.BytesIO()
            torch.save((net.state_dict(), optimizer.state_dict()), file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        one_step(net, optimizer, step, BF16)
    rebuilt, resumed = make(states=states)
    rebuilt.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for step in (2, 3):
        one_step(rebuilt, resumed, step, BF16)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), rebuilt.parameters(), strict=True))
    for w, v in zip(weights(net), weights(rebuilt), strict=True):
        for key, value in optimizer.state[w].items():
            assert value.dtype == resumed.state[v][key].dtype
            assert torch.equal(value, resumed.state[v][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("states", ["float32", "8 bits"])
def test_a_loaded_state_without_a_correction(states):
    """An optimizer without a master drops the correction, and one with a master makes a new one."""
    net, optimizer = make()
    one_step(net, optimizer, 0, BF16)
    plain = FusedAdamW(net, lr=0.01, states=states)
    plain.load_state_dict(optimizer.state_dict())
    with plain.paused():
        one_step(net, plain, 1, BF16)
    state = plain.state[net[0].weight]
    assert not any("correction" in plain.state[p] for p in net.parameters())
    assert state["exp_avg"].dtype == BF16
    optimizer.load_state_dict(plain.state_dict())
    one_step(net, optimizer, 2, BF16)
    assert optimizer.state[net[0].weight]["correction"].dtype == torch.int8
    assert optimizer.state[net[0].weight]["exp_avg"].dtype == torch.float32


def test_all_bfloat16_parameters_have_masters():
    """Biases, a Linear layer and a convolution have masters too, and states in float32."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3),
        LocalConv2d(3, 2, 3, input_size=(5, 5)),
        torch.nn.Flatten(),
        torch.nn.Linear(18, 3),
    )
    exact = copy.deepcopy(net)
    net.to(BF16)
    for p, q in zip(net.parameters(), exact.parameters(), strict=True):
        q.data.copy_(p.data)
    optimizer = FusedAdamW(net, lr=1e-4, states="8 bits", master="24 bits")
    plain = torch.optim.AdamW(exact.parameters(), lr=1e-4)
    for _ in range(20):
        for p, q in zip(net.parameters(), exact.parameters(), strict=True):
            p.grad = torch.ones_like(p)
            q.grad = torch.ones_like(q)
        net[1](torch.zeros(1, 3, 5, 5, dtype=BF16))  # the optimizer finds a layer's weight in its forward
        optimizer.step()
        plain.step()
    for p, q in zip(net.parameters(), exact.parameters(), strict=True):
        state = optimizer.state[p]
        assert (AMAX in state) == (p is net[1].weight)
        assert p is net[1].weight or state["exp_avg"].dtype == torch.float32
        assert torch.equal(p, join_master(p.detach(), state["correction"]).to(BF16))
        error = join_master(p.detach(), state["correction"]) - q
        assert (error.abs() < q.abs() * 2**-12 + 1e-6).all()


def test_parameters_without_a_master_are_named():
    """One warning names a convolution in channels_last."""
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)).to(BF16)
    optimizer = FusedAdamW(net, master="24 bits")
    for step in range(2):
        net(batch(step).to(BF16)).square().mean().backward()
        if step == 0:
            with pytest.warns(UserWarning, match="updates 0.weight without a master: it or its gradient is not"):
                optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert "correction" not in optimizer.state[net[0].weight]


def test_a_weight_is_updated_in_its_current_dtype():
    layer = LocalConv2d(2, 4, 3, input_size=(7, 7), bias=False, dtype=BF16)
    optimizer = FusedAdamW(layer, master="24 bits")
    for dtype in (BF16, torch.float32, BF16):
        layer.to(dtype)
        layer(batch(0).to(dtype)).square().mean().backward()
        optimizer.step()
        assert ("correction" in optimizer.state[layer.weight]) == (dtype == BF16)
        assert optimizer.state[layer.weight]["exp_avg"].dtype == torch.float32


def test_weights_of_other_dtypes_have_no_master():
    """float32 weights have the same bits without a master; float16 weights store their gradient, with a warning."""
    nets = [network(), network()]
    for net, options in zip(nets, ({}, {"master": "24 bits"}), strict=True):
        optimizer = FusedAdamW(net, lr=0.01, **options)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(net, batch(step)).backward()
            optimizer.step()
        assert all("correction" not in optimizer.state[w] for w in weights(net))
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    layer = LocalConv2d(1, 2, 2, input_size=(3, 3), dtype=torch.float16)
    optimizer = FusedAdamW(layer, master="24 bits")
    layer(torch.ones(1, 1, 3, 3, dtype=torch.float16)).sum().backward()
    with pytest.warns(UserWarning, match="its dtype is float16, not float32, float64 or bfloat16"):
        optimizer.step()


@pytest.mark.parametrize(("master", "error"), [("16 bits", UnknownNameError), (24, ArgumentTypeError)])
def test_other_masters_are_refused(master, error):
    with pytest.raises(error, match="master"):
        FusedAdamW(network(), master=master)
