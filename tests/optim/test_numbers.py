"""The fused optimizers against torch's: the same parameters after the same steps."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import lc_triton
from lc_triton import FusedAdamW, FusedSGD, LocalConv2d
from lc_triton.core.fused import Update
from lc_triton.errors import OptimizerStepError
from tests.optim.networks import PAIRS, assert_same, batch, loss_of, network, pair, train, weights

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


# float64 shows errors, and float32 tests its kernels: every run has one kind of each optimizer in float32.
STEPS = [
    pytest.param(kind, dtype, marks=[pytest.mark.nightly] * (dtype == torch.float32 and kind not in ("adamw", "sgd")))
    for kind in PAIRS
    for dtype in TOLERANCE
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), STEPS, ids=str)
def test_fifty_steps_are_torchs(kind, dtype):
    (net, fused), (same, plain) = pair(kind, dtype)
    for step in range(50):
        x = batch(step, dtype)
        for model, optimizer in ((net, fused), (same, plain)):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            if optimizer is fused:
                assert all(w.grad is None for w in weights(net))
            optimizer.step()
    assert_same(net, same, TOLERANCE[dtype])


@pytest.mark.parametrize("share", ["rows", "all", (2, 2), ("tile", 2, 2)], ids=str)
def test_shared_filters_are_updated_as_in_torch(share):
    torch.manual_seed(0)
    layer = LocalConv2d(3, 4, 3, input_size=8, share=share, dtype=torch.float64)
    same = copy.deepcopy(layer)
    fused, plain = FusedAdamW(layer, lr=0.01), torch.optim.AdamW(same.parameters(), lr=0.01)
    for step in range(5):
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((layer, fused), (same, plain)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert_same(layer, same, TOLERANCE[torch.float64])


def test_backward_updates_weights_and_step_does_not():
    net = network()
    optimizer = FusedAdamW(net)
    before = [w.detach().clone() for w in weights(net)]
    loss_of(net, batch(0)).backward()
    after = [w.detach().clone() for w in weights(net)]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    optimizer.step()
    assert all(torch.equal(a, w) for a, w in zip(after, weights(net), strict=True))


def test_a_large_layer_in_blocks(monkeypatch):
    """Weights and windows have several blocks; one run has float32 weights and a bfloat16 input."""
    monkeypatch.setattr("lc_triton._cpu.blocks.BLOCK_BYTES", 4096)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        torch.manual_seed(0)
        layer = LocalConv2d(3, 5, 3, input_size=(9, 8), padding=1)
        same = copy.deepcopy(layer)
        optimizers = FusedAdamW(layer, lr=0.01, eps=1e-3), torch.optim.AdamW(same.parameters(), lr=0.01, eps=1e-3)
        for step in range(5):
            x = torch.randn(6, 3, 9, 8, generator=torch.Generator().manual_seed(step))
            for model, optimizer in zip((layer, same), optimizers, strict=True):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    y = model(x)
                y.float().square().mean().backward()
                assert model is same or layer.weight.grad is None
                optimizer.step()
        assert_same(layer, same, bound)


def test_groups_schedulers_and_frozen_layers():
    (net, _), (same, _) = pair()
    optimizers = []
    for model, cls in ((net, FusedAdamW), (same, torch.optim.AdamW)):
        model[1].requires_grad_(False)
        head, rest = list(model[5].parameters()), [p for layer in model[:5] for p in layer.parameters()]
        optimizer = cls([{"params": iter(rest), "lr": 0.02, "weight_decay": 0.2}], lr=0.01)
        optimizer.add_param_group({"params": head, "betas": (0.5, 0.9)})
        optimizers.append((optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)))
    frozen = net[1].weight.detach().clone()
    for step in range(9):
        if step == 6:
            net[1].requires_grad_(True)
            same[1].requires_grad_(True)
        for model, (optimizer, scheduler) in zip((net, same), optimizers, strict=True):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            loss_of(model, batch(step)).backward()
            optimizer.step()
            scheduler.step()
        assert torch.equal(frozen, net[1].weight) == (step < 6)
    assert_same(net, same, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "sgd, momentum"])
@pytest.mark.parametrize("steps", [3, 4])
def test_accumulated_gradients(kind, steps):
    """Each step has three backwards; a fourth step has one, as at the end of an epoch."""
    (net, fused), (same, plain) = pair(kind, torch.float64, accumulate=3)
    for step in range(steps):
        for part in range(3 if step < 3 else 1):
            for model in (net, same):
                loss_of(model, batch(3 * step + part, torch.float64)).backward()
            assert all((w.grad is None) == (part == 2) for w in weights(net))
        for optimizer in (fused, plain):
            optimizer.step()
            optimizer.zero_grad()
    assert_same(net, same, 1e-10)


def test_backward_adds_early_micro_batches_to_grad(monkeypatch):
    """The layer's backward adds to the stored tensor and returns no gradient to autograd. The sums are torch's."""
    net, same = network(torch.float64), network(torch.float64)
    optimizer = FusedAdamW(net, accumulate=4)
    rules, before = [], Update.apply_block
    monkeypatch.setattr(Update, "apply_block", lambda self, *a: (rules.append(self.rule.name), before(self, *a)))
    grads_of_parts = []
    for part in range(3):
        for model in (net, same):
            loss_of(model, batch(part, torch.float64)).backward()
        assert (set(rules) == {"add"}) == (part > 0)
        grads_of_parts.append([w.grad for w in weights(net)])
        for w, v in zip(weights(net), weights(same), strict=True):
            torch.testing.assert_close(w.grad, v.grad, rtol=1e-12, atol=1e-14)
    assert all(a is b for a, b in zip(grads_of_parts[0], grads_of_parts[2], strict=True))
    rules.clear()
    loss_of(net, batch(3, torch.float64)).backward()
    assert set(rules) == {"adamw"}
    optimizer.step()


def test_early_micro_batches_of_weights_that_are_used_twice():
    """Weights that are used twice, penalised or hooked have stored gradients, which are added as in torch."""
    (net, fused), (same, plain) = pair(dtype=torch.float64, accumulate=3)
    for part in range(2):
        for model in (net, same):
            x = batch(part, torch.float64)
            if part == 1:
                model[3].weight.register_hook(lambda g: 2 * g)
            (loss_of(model, x) + loss_of(model, 2 * x) + 0.1 * model[1].weight.square().sum()).backward()
        for w, v in zip(weights(net), weights(same), strict=True):
            torch.testing.assert_close(w.grad, v.grad, rtol=1e-12, atol=1e-14)
    with fused.paused():
        loss_of(net, batch(9, torch.float64)).backward()
    loss_of(same, batch(9, torch.float64)).backward()
    fused.step()
    plain.step()
    assert_same(net, same, 1e-10)


def test_gradients_stored_while_paused_are_part_of_the_update():
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    for step in range(3):
        with fused.paused():
            loss_of(net, batch(step, torch.float64)).backward()
        assert all(w.grad is not None for w in weights(net))
        loss_of(net, batch(step + 10, torch.float64)).backward()
        loss_of(same, batch(step, torch.float64)).backward()
        loss_of(same, batch(step + 10, torch.float64)).backward()
        for optimizer in (fused, plain):
            optimizer.step()
            optimizer.zero_grad()
    assert_same(net, same, 1e-10)


def test_an_empty_batch_decays_weights_as_in_torch():
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    for model, optimizer in ((net, fused), (same, plain)):
        net_in = batch(0, torch.float64, size=0)
        model[:4](net_in).sum().backward()
        optimizer.step()
    assert_same(net, same, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "sgd, nesterov"])
@pytest.mark.parametrize("scale", [0.1, 100.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_clip_norm_is_the_norm_of_all_gradients(kind, scale, accumulate):
    """No weight changes before step(), and no gradient of one is stored; zero_grad() drops pending updates."""
    (net, fused), (same, plain) = pair(kind, torch.float64, clip_norm=0.05, accumulate=accumulate)
    for step in range(5):
        before = [w.detach().clone() for w in weights(net)]
        if step == 2:
            loss_of(net, batch(50, torch.float64)).backward()
            fused.zero_grad()
        for part in range(accumulate if step != 2 else 0):
            for model in (net, same):
                loss_of(model, scale * batch(10 * step + part, torch.float64)).backward()
        assert all(torch.equal(a, w) for a, w in zip(before, weights(net), strict=True))
        assert all((w.grad is None) == (accumulate == 1 or step == 2) for w in weights(net))
        torch.nn.utils.clip_grad_norm_(same.parameters(), 0.05)
        for optimizer in (fused, plain):
            optimizer.step()
            optimizer.zero_grad()
    assert_same(net, same, 1e-10)


def test_clip_norm_of_a_second_backward_and_of_changed_inputs():
    (net, fused), (same, plain) = pair(dtype=torch.float64, clip_norm=0.05)
    for step in range(2):
        for model in (net, same):
            loss_of(model, batch(step, torch.float64)).backward()
    torch.nn.utils.clip_grad_norm_(same.parameters(), 0.05)
    plain.step()
    with pytest.warns(UserWarning, match="an earlier backward made a gradient of it"):
        fused.step()
    assert_same(net, same, 1e-10)
    fused.zero_grad()
    x = batch(7, torch.float64)
    loss_of(net, x).backward()
    x += 1
    with pytest.raises(OptimizerStepError, match=r"0\.weight is not updated: the layer's input .* changed in place"):
        fused.step()


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_a_grad_scaler(clip_norm):
    """Steps equal those of torch's optimizer, and a step with an infinite gradient changes no bit."""
    (net, fused), (same, plain) = pair(clip_norm=clip_norm)
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2) for _ in range(2)]
    for step in range(6):
        for model, optimizer, scaler in zip((net, same), (fused, plain), scalers, strict=True):
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            scaler.scale(loss_of(model, batch(step)) * (float("inf") if step == 3 else 1)).backward()
            if optimizer is plain and clip_norm is not None:
                scaler.unscale_(plain)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            scaler.step(optimizer)
            scaler.update()
            unchanged = [torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True)]
            assert all(unchanged) if step == 3 else not any(unchanged)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert_same(net, same, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [0, 2], ids=["first step", "first step of some"])
def test_a_skipped_step_begins_no_momentum(skipped):
    """Torch's fused update makes the buffers of a step that it skips, and leaves them without numbers."""
    (net, fused), (same, plain) = pair("sgd, momentum")
    scalers = [torch.amp.GradScaler("cpu", init_scale=64.0) for _ in range(2)]
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        for step in range(skipped + 3):
            for model, optimizer, scaler in zip((net, same), (fused, plain), scalers, strict=True):
                model[0].requires_grad_(step >= skipped)
                optimizer.zero_grad()
                scaler.scale(loss_of(model, batch(step)) * (float("inf") if step == skipped else 1)).backward()
                scaler.step(optimizer)
                scaler.update()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(net, same, 1e-5)


def test_a_closure():
    (net, fused), (same, plain) = pair(dtype=torch.float64)
    for step in range(3):
        found = []
        for model, optimizer in ((net, fused), (same, plain)):

            def closure(model=model, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                loss = loss_of(model, batch(step, torch.float64))
                loss.backward()
                return loss

            found.append(optimizer.step(closure))
        torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert_same(net, same, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "sgd, momentum"])
def test_states_are_exchanged_with_torchs_optimizer(kind):
    """After three steps each optimizer loads the state of the other. A copy and a pickle keep their own."""
    (net, fused), (same, plain) = pair(kind, torch.float64)
    runs = [(net, fused), (same, plain)]
    for step in range(6):
        if step == 3:
            fused_state, torch_state = copy.deepcopy(fused.state_dict()), copy.deepcopy(plain.state_dict())
            copied = pickle.loads(pickle.dumps(runs[0]))
            fused.load_state_dict(torch_state)
            plain.load_state_dict(fused_state)
            runs = [*runs, copied, copy.deepcopy(runs[0])]
        for model, optimizer in runs:
            optimizer.zero_grad()
            loss_of(model, batch(step, torch.float64)).backward()
            assert model is same or all(w.grad is None for w in weights(model))
            optimizer.step()
    for model, _ in runs:
        assert_same(model, same, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_constraints_and_penalties_of_keras_layers(clip_norm):
    """A constraint is applied after the step; a penalty in the loss makes the gradient a stored one."""
    layers = [
        lc_triton.LocallyConnected2D(3, 2, input_shape=(5, 5, 2), kernel_constraint=limit, kernel_regularizer=penalty)
        for limit, penalty in (("non_neg", None), ("max_norm", "l2"))
    ]
    for layer in layers:
        same = copy.deepcopy(layer)
        runs = [
            (layer, FusedAdamW(layer, lr=0.1, clip_norm=clip_norm)),
            (same, torch.optim.AdamW(same.parameters(), lr=0.1)),
        ]
        for model, optimizer in runs:
            lc_triton.attach_constraints(model, optimizer)
        for step in range(4):
            x = torch.randn(3, 5, 5, 2, generator=torch.Generator().manual_seed(step))
            for model, optimizer in runs:
                optimizer.zero_grad()
                (model(x).square().sum() + lc_triton.regularization_loss(model)).backward()
                if model is same and clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(same.parameters(), clip_norm)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    optimizer.step()
        assert_same(layer, same, 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:FusedAdamW")
def test_a_run_resumes_from_a_distributed_checkpoint(tmp_path):
    (net, fused), _ = pair(dtype=torch.float64)
    train([(net, fused)], range(2))
    model, optimizer = get_state_dict(net, fused)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path, no_dist=True)
    (other, resumed), _ = pair(dtype=torch.float64)
    with torch.no_grad():
        other[0].weight.zero_()
    model, optimizer = get_state_dict(other, resumed)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(other, resumed, model_state_dict=model, optim_state_dict=optimizer)
    for run in ((net, fused), (other, resumed)):
        train([run], range(2, 4))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    assert other[0].weight.grad is None


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_distributed_checkpoint_of_states_of_another_dtype(saved, loaded, tmp_path):
    """States are rounded when they are loaded or used; weights, steps and options are kept."""
    runs = []
    for states in (saved, loaded):
        net = network()
        runs.append((net, FusedAdamW(net, lr=0.01 if states == saved else 0.5, states=states, l2=0.01)))
    (net, optimizer), (other, resumed) = runs
    train(runs[:1], range(2), torch.float32)
    for run, move in ((runs[0], dcp.save), (runs[1], dcp.load)):
        model, optim = get_state_dict(*run)
        move({"model": model, "optim": optim}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(other, resumed, model_state_dict=model, optim_state_dict=optim)
    assert resumed.param_groups[0]["lr"] == 0.01
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p]["step"] == resumed.state[q]["step"] == 2
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(*(state[key].to(torch.bfloat16) for state in (optimizer.state[p], resumed.state[q])))
    train(runs, [2], torch.float32)
    assert {str(resumed.state[w]["exp_avg"].dtype) for w in weights(other)} == {f"torch.{loaded}"}
    assert_same(net, other, 1e-2)


@pytest.mark.parametrize("momenta", [(0.9, 0.9), (0.9, 0.0)], ids=str)
def test_momentum_that_begins_at_different_steps(momenta):
    """Torch's fused update takes no group in which only some of the momentum buffers exist."""
    both = []
    for make in (FusedSGD, torch.optim.SGD):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(3, 3, dtype=torch.float64) for _ in momenta]
        groups = [{"params": m.parameters(), "momentum": n} for m, n in zip(layers, momenta, strict=True)]
        optimizer = make(groups, lr=0.1, weight_decay=0.01)
        for used in (layers[:1], layers, layers[1:], layers):
            x = torch.ones(2, 3, dtype=torch.float64)
            optimizer.zero_grad()
            sum(layer(x).square().sum() for layer in used).backward()
            grads = [p.grad for layer in layers for p in layer.parameters()]
            optimizer.step()
            after = [p.grad for layer in layers for p in layer.parameters()]
            assert all(a is b for a, b in zip(grads, after, strict=True))
        both.append(torch.nn.ModuleList(layers))
    assert_same(*both, 1e-12)


def test_hooks_of_a_step_run_once():
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # makes torch wrap its own step
    layer = LocalConv2d(1, 2, 2, input_size=3)
    optimizer, calls = FusedAdamW(layer), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    layer(torch.ones(1, 1, 3, 3)).sum().backward()
    optimizer.step()
    assert calls == ["before", "after"]


def test_lazy_layers():
    layer = lc_triton.LazyLocalConv2d(2, 2)
    optimizer = FusedAdamW(layer)
    layer(torch.ones(1, 1, 3, 3)).sum().backward()
    assert layer.weight.grad is None
    optimizer.step()
    assert optimizer.state[layer.weight]["step"] == 1


@pytest.mark.parametrize("cls", [FusedAdamW, FusedSGD])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_or_params": 3}, "model_or_params must be a module"),
        ({"model_or_params": torch.nn.Parameter(torch.ones(2))}, "model_or_params must be a module"),
        ({"model_or_params": []}, "empty parameter list"),
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"lr": "a"}, "lr must be a number, got 'a' of type str"),
        ({"maximize": "no"}, "maximize must be True or False, got 'no'"),
        ({"model_or_params": "net"}, "model_or_params must be a module, or an iterable of parameters"),
        ({"model_or_params": [{"lr": 0.1}]}, "dictionaries with an entry \"params\", got {'lr': 0.1}"),
        ({"weight_decay": -1.0}, "Invalid weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm must be a positive number or None, got 0.0"),
        ({"clip_norm": float("nan")}, "clip_norm must be a positive number"),
        ({"clip_norm": True}, "clip_norm must be a positive number"),
        ({"accumulate": 0}, "accumulate must be an integer >= 1, got 0"),
        ({"accumulate": 1.5}, "accumulate must be an integer >= 1, got 1.5"),
    ],
)
def test_wrong_arguments(cls, arguments, message):
    with pytest.raises(lc_triton.LocalConvError, match=message):
        cls(**{"model_or_params": LocalConv2d(1, 1, 2, input_size=3), **arguments})


@pytest.mark.parametrize("betas", [(0.9,), 0.9, (0.9, "a"), None])
def test_wrong_betas(betas):
    with pytest.raises(lc_triton.LocalConvError, match="betas must be two numbers, got"):
        lc_triton.FusedAdamW(LocalConv2d(1, 1, 2, input_size=3), betas=betas)


def test_wrong_states():
    layer = LocalConv2d(1, 1, 2, input_size=3)
    optimizer = lc_triton.FusedAdamW(layer)
    sgd_state = torch.optim.SGD(layer.parameters(), lr=0.1).state_dict()
    for state, message in [
        (None, 'a dictionary with "state" and "param_groups", got None of type NoneType'),
        (layer.state_dict(), r'a dictionary with "state" and "param_groups", got \[\'bias\', \'weight\'\]'),
        (sgd_state, "an optimizer whose groups have betas, eps, lr, weight_decay, got .*'momentum'"),
    ]:
        with pytest.raises(lc_triton.LocalConvError, match=message):
            optimizer.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lc_triton.FusedAdamW, FusedSGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("options", [{}, {"states": "8 bits", "master": "24 bits"}], ids=str)
def test_a_state_of_other_shapes(make, options):
    """Torch's fused operators and the kernels would read past its memory."""
    if make is FusedSGD:
        options = {"momentum": 0.9}
    layers = [LocalConv2d(2, filters, 3, input_size=(7, 7), dtype=torch.float32) for filters in (4, 36)]
    small, large = (make(layer, 0.01, **options) for layer in layers)
    for layer, optimizer in zip(layers, (small, large), strict=True):
        layer(batch(0)).square().mean().backward()
        optimizer.step()
    message = r"in state_dict must be of shape \(5, 5, 3, 3, 2, .*for weight, whose shape is \(5, 5, 3, 3, 2, 36\)"
    with pytest.raises(lc_triton.LocalConvError, match=message):
        large.load_state_dict(small.state_dict())
    state = large.state_dict()
    state["state"][1] = small.state_dict()["state"][1]  # the state of the bias
    with pytest.raises(lc_triton.LocalConvError, match=r"for bias|for weight"):
        large.load_state_dict(state)
    large.load_state_dict(large.state_dict())
