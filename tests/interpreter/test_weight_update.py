"""The weight gradient that updates the weight, interpreted: against the definition and torch's optimizers."""

import copy

import pytest
import torch

import lc_triton
from lc_triton import launch
from lc_triton.core.fused import Penalty, Small, Update
from lc_triton.core.problem import Problem
from lc_triton.errors import MiscompiledError
from lc_triton.launch import update as ours
from lc_triton.optim import rules
from lc_triton.optim.rounding import join_master, random_bits, split_master
from lc_triton.optim.states import AMAX, CODES, NUMBERS, to_codes
from lc_triton.tiles.config import TileConfig
from tests.cases import BY_NAME, Case, assert_close, expected, tensors

TILES = {
    "1x1": TileConfig(1, 1, 16, 16, 16),
    "2x2": TileConfig(2, 2, 16, 16, 32),
    "2x4_swapped": TileConfig(2, 4, 16, 16, 16, swap=True),
    "streamed": TileConfig(1, 2, 16, 16, 16, stream=2),
    "split": TileConfig(1, 2, 16, 16, 16, split=2),
    "reduced": TileConfig(1, 1, 16, 2, 16, dot=False),
    "own_windows": TileConfig(1, 2, 16, 4, 4, dot=False),
}
STEP = torch.tensor(3.0)
RULES = {
    "adamw": (rules.AdamW(0.01, 0.9, 0.99, 1e-8, 0.1, False, 3, STEP), 2),
    "maximize": (rules.AdamW(0.01, 0.8, 0.9, 1e-3, 0.0, True, 3, STEP), 2),
    "sgd": (rules.SGD(0.1, 0.0, 0.0, 0.01, False, False, False), 0),
    "momentum": (rules.SGD(0.1, 0.9, 0.5, 0.01, False, True, False), 1),
    "momentum, first": (rules.SGD(0.1, 0.9, 0.5, 0.0, False, False, True), 1),
    "add": (rules.Add(), 0),
    "nesterov": (rules.SGD(0.1, 0.9, 0.0, 0.01, True, False, False), 1),
    "nesterov, momentum set to 0": (rules.SGD(0.1, 0.0, 0.0, 0.01, True, False, False), 0),
}


def assert_update_is_torchs(case, tile, rule, *, added=False, scale=None, penalty=None):
    """The kernel updates weights and states as torch's operator does with the gradient by the definition."""
    (rule, count), t = RULES[rule], tensors(case)
    gen = torch.Generator().manual_seed(1)
    states = [torch.rand(t.weight.shape, generator=gen, dtype=t.weight.dtype) for _ in range(count)]
    if rule.name in ("momentum", "nesterov") and rule.is_first:
        states[0].zero_()
    added_gradient = torch.rand(t.weight.shape, generator=gen, dtype=t.weight.dtype) if added else None
    want = t.weight.clone(), *(s.clone() for s in states)
    gradient = expected(case, t)["dw"].to(t.weight.dtype)
    if penalty is not None:
        gradient = gradient + penalty.l1 * t.weight.sign() + 2 * penalty.l2 * t.weight
    rule.apply(want[0], (gradient + added_gradient if added else gradient) * (scale or 1.0), want[1:])
    if penalty is not None and penalty.non_neg:
        want[0].clamp_(min=0)
    weight, factor = t.weight.clone(), None if scale is None else torch.tensor(scale, dtype=t.weight.dtype)
    update = Update(rule, weight, tuple(states), added_gradient, factor, penalty)
    launch.weight_update(t.x, t.g, update, Problem(case.geometry, backend="triton"), tile)
    for name, got, want_ in zip(("weight", "first", "second"), (weight, *states), want, strict=False):
        assert_close(got, want_, 1e-10, name)


@pytest.mark.parametrize(
    ("case", "tile"),
    [
        pytest.param("2d_asymmetric", "1x1", marks=pytest.mark.nightly),
        ("2d_asymmetric", "2x2"),
        pytest.param("2d_asymmetric", "streamed", marks=pytest.mark.slow),
        ("2d_dilated_stride_gcd", "2x4_swapped"),
        pytest.param("2d_asymmetric", "split", marks=pytest.mark.slow),
        ("1d", "reduced"),
        ("2d_groups", "2x2"),
        pytest.param("2d_groups", "own_windows", marks=pytest.mark.nightly),
        ("3d", "2x2"),
    ],
)
def test_adamw_with_tiles_of_every_kind(case, tile):
    assert_update_is_torchs(BY_NAME[case], TILES[tile], "adamw")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tile", ["2x2", "split"])
def test_every_rule(rule, tile):
    assert_update_is_torchs(BY_NAME["1d"], TILES[tile], rule, added=tile == "2x2", scale=0.3)


class Chooser:
    generation = 0

    def __init__(self, tile):
        self.tile = tile

    def __call__(self, *_):
        return self.tile


@pytest.mark.slow
def test_a_tile_that_is_compiled_wrongly_gives_way_to_the_next(monkeypatch, caplog):
    """A tile that was refused once is tried by no later launch, and the next one computes the same."""
    case, tried = Case("short", (3,), 2, 3, 2, batch=2), []
    t, problem = tensors(case), Problem(case.geometry, backend="triton")
    bind = ours._bind

    def refuse_first(plan, *args):
        tried.append(plan.config)
        if plan.config == tried[0]:
            raise MiscompiledError(version="0", kernel="weight_grad_kernel", tile=plan.config, mark="a mark")
        return bind(plan, *args)

    tiles = [TILES["1x1"], TILES["2x2"]]
    monkeypatch.setattr(ours, "_bind", refuse_first)
    monkeypatch.setattr(ours, "chooser", Chooser(tiles[0]))
    monkeypatch.setattr(ours.model, "ranked", lambda *_: [(0.0, tile) for tile in tiles])
    want = t.weight.clone()
    RULES["sgd"][0].apply(want, expected(case, t)["dw"].to(want.dtype), ())
    for launches in (2, 3):
        weight = t.weight.clone()
        launch.weight_update(t.x, t.g, Update(RULES["sgd"][0], weight, ()), problem)
        assert_close(weight, want, 1e-10)
        assert tried == [tiles[0], tiles[1], tiles[1]][:launches]
    assert "is launched instead, which may be slower" in caplog.text
    monkeypatch.setattr(ours, "MOST_TRIED", 0)
    problem.launches.clear()
    tried.clear()
    with pytest.raises(MiscompiledError, match="a mark"):
        launch.weight_update(t.x, t.g, Update(RULES["sgd"][0], weight, ()), problem)


@pytest.mark.slow
def test_a_streamed_tile_of_half_a_batch():
    """It was chosen for a block of samples: a batch of two blocks is not streamed."""
    case = Case("long", (3,), 2, 3, 2, batch=20)
    t, problem = tensors(case), Problem(case.geometry, backend="triton")
    weight, want = t.weight.clone(), t.weight.clone()
    RULES["sgd"][0].apply(want, expected(case, t)["dw"].to(want.dtype), ())
    launch.weight_update(t.x, t.g, Update(RULES["sgd"][0], weight, ()), problem, TILES["streamed"])
    assert_close(weight, want, 1e-10)


def test_few_hyperparameters_are_kept(monkeypatch):
    monkeypatch.setattr(ours, "MOST_KEPT", 2)
    weight = torch.zeros(1)
    kept = [ours._on_device((float(n),), weight) for n in range(4)]
    assert [float(t) for t in kept] == [0.0, 1.0, 2.0, 3.0]
    assert len(ours._kept) == 2
    assert ours._on_device((3.0,), weight) is kept[3]


@pytest.mark.parametrize(
    ("rule", "tile", "penalty"),
    [
        ("adamw", "2x2", Penalty(0.3, 0.2, non_neg=True)),
        ("maximize", "split", Penalty(-0.3, 0.0)),
        ("nesterov", "split", Penalty(0.0, 0.2, non_neg=True)),
        ("sgd", "2x2", Penalty(non_neg=True)),
    ],
)
def test_penalties(rule, tile, penalty):
    assert_update_is_torchs(BY_NAME["1d"], TILES[tile], rule, scale=0.3, penalty=penalty)


@pytest.mark.parametrize(
    ("case", "tile", "penalty"),
    [
        ("2d_asymmetric", "2x2", None),
        pytest.param("2d_asymmetric", "streamed", Penalty(0.3, 0.2), marks=pytest.mark.slow),
        ("2d_dilated_stride_gcd", "2x4_swapped", None),
        ("1d", "split", Penalty(0.3, 0.2)),
        ("1d", "split", None),
        ("1d", "reduced", Penalty(0.3, 0.0)),
        pytest.param("2d_groups", "own_windows", None, marks=pytest.mark.nightly),
    ],
)
def test_the_sum_of_squares(case, tile, penalty):
    """Each number of the gradient counts once, and numbers outside of the band do not count."""
    case = BY_NAME[case]
    t = tensors(case)
    gradient, problem = expected(case, t)["dw"], Problem(case.geometry, backend="triton")
    if penalty is not None:
        gradient = gradient + penalty.l1 * t.weight.sign() + 2 * penalty.l2 * t.weight
    before = t.weight.clone()
    total = launch.weight_grad_square_sum(t.x, t.g, t.weight, penalty, problem, TILES[tile])
    torch.testing.assert_close(total, gradient.square().sum(), rtol=1e-12, atol=0)
    assert torch.equal(t.weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("tile", ["2x2", "split"])
def test_bfloat16_states_are_rounded_to_the_bits_of_the_cpu(tile):
    """float64 results differ in their last places, which changes no rounding to bfloat16 here."""
    case = BY_NAME["2d_asymmetric"]
    t, rule = tensors(case), RULES["adamw"][0]
    gen = torch.Generator().manual_seed(1)
    states = [torch.rand(t.weight.shape, generator=gen).to(torch.bfloat16) for _ in range(2)]
    want = t.weight.clone(), *(s.clone() for s in states)
    rule.apply(want[0], expected(case, t)["dw"], want[1:])
    weight = t.weight.clone()
    problem = Problem(case.geometry, backend="triton")
    launch.weight_update(t.x, t.g, Update(rule, weight, tuple(states)), problem, TILES[tile])
    assert_close(weight, want[0], 1e-10, "weight")
    for got, want_ in zip(states, want[1:], strict=True):
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, want_)


@pytest.mark.parametrize("tile", ["2x2", "split"])
def test_masters_of_bfloat16_weights_are_those_of_the_cpu(tile):
    """float32 results may differ in their last places: masters differ by at most one of 24 bits, and most are equal."""
    case = BY_NAME["2d_asymmetric"]
    t, rule = tensors(case, torch.float32), RULES["adamw"][0]
    weight, correction = split_master(t.weight, random_bits(0, t.weight.numel(), 1, t.weight.device))
    found = [(weight.clone(), correction.clone()), (weight.clone(), correction.clone())]
    states = [[torch.full(t.weight.shape, 0.25) for _ in range(2)] for _ in found]
    rule.apply(found[0][0], expected(case, t)["dw"], tuple(states[0]), 0, Small(found[0][1]))
    update = Update(rule, found[1][0], tuple(states[1]), small=Small(found[1][1]))
    launch.weight_update(t.x, t.g, update, Problem(case.geometry, backend="triton"), TILES[tile])
    want, got = (join_master(*parts) for parts in found)
    assert_close(states[1][0], states[0][0], 1e-5, "first")
    assert ((got - want).abs() <= want.abs() * 2**-14).all()
    assert (got == want).double().mean() > 0.95
    assert not torch.equal(found[1][0], weight)


FILTERS_40 = Case("filters_40", (3,), 2, 40, 2, batch=3)
GROUPS = Case("groups", (3,), 2, 6, 2, groups=2)
FILTERS_3 = Case("filters_3", (3, 3), 2, 3, 2, padding=1, batch=3)


@pytest.mark.parametrize(
    ("case", "tile"),
    [
        (FILTERS_40, TileConfig(1, 2, 32, 16, 16)),  # a block of 32 and one of 8
        (FILTERS_40, TileConfig(1, 1, 64, 16, 16, split=2)),
        (FILTERS_3, TileConfig(2, 2, 4, 16, 16, swap=True)),
        (GROUPS, TileConfig(1, 2, 8, 2, 2, dot=False)),
        pytest.param(FILTERS_3, TileConfig(2, 2, 4, 16, 16, stream=2), marks=pytest.mark.nightly),
    ],
    ids=["two blocks", "split", "swapped", "groups", "streamed"],
)
def test_states_in_8_bits_have_the_codes_of_the_cpu(case, tile):
    """float64 results differ in their last places, which changes no code here."""
    t, rule = tensors(case), RULES["adamw"][0]
    gen = torch.Generator().manual_seed(1)
    state = {key: torch.rand(t.weight.shape, generator=gen) for key in NUMBERS}
    state["exp_avg"] -= 0.5
    to_codes(state, t.weight)
    before = [state[key] for key in (*CODES, AMAX)]
    want, got = ([t.weight.clone(), *(s.clone() for s in before)] for _ in range(2))
    Update(rule, want[0], tuple(want[1:3]), small=Small(amax=want[3])).apply(expected(case, t)["dw"].clone())
    update = Update(rule, got[0], tuple(got[1:3]), small=Small(amax=got[3]))
    launch.weight_update(t.x, t.g, update, Problem(case.geometry, backend="triton"), tile)
    assert_close(got[0], want[0], 1e-10, "weight")
    for found, want_, old in zip(got[1:], want[1:], before, strict=True):
        assert torch.equal(found, want_)
        assert not torch.equal(found, old)


def test_states_in_8_bits_whose_blocks_span_groups():
    """No tile holds such a block, so the gradient is stored between two launches."""
    case = Case("groups_of_16", (2,), 32, 32, 1, groups=2, batch=3)
    t, rule = tensors(case), RULES["adamw"][0]
    state = {}
    to_codes(state, t.weight)
    want, got = ([t.weight.clone(), *(state[key].clone() for key in (*CODES, AMAX))] for _ in range(2))
    Update(rule, want[0], tuple(want[1:3]), small=Small(amax=want[3])).apply(expected(case, t)["dw"].clone())
    update = Update(rule, got[0], tuple(got[1:3]), small=Small(amax=got[3]))
    launch.weight_update(t.x, t.g, update, Problem(case.geometry, backend="triton"))
    assert_close(got[0], want[0], 1e-10, "weight")
    assert all(torch.equal(found, want_) and found.any() for found, want_ in zip(got[1:], want[1:], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "sum_dtype"), [("2x2", torch.float16), ("split", torch.float32)], ids=str)
def test_products_of_16_bits_are_added_in_float32(tile, sum_dtype):
    """The sum is a main_grad in float32, or a `.grad` in 16 bits, which is rounded once."""
    case = BY_NAME["2d_asymmetric"]
    t = tensors(case, torch.float16)
    before = torch.rand(t.weight.shape, generator=torch.Generator().manual_seed(1)).to(sum_dtype)
    want, total = before.double() + expected(case, t)["dw"], before.clone()
    problem = Problem(case.geometry, backend="triton")
    launch.weight_update(t.x, t.g, Update(rules.Add(), total, ()), problem, TILES[tile])
    assert_close(total, want, 1e-6 if sum_dtype == torch.float32 else 2**-11, "sum")


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_training_with_the_kernels(clip_norm):
    """Layers on the Triton backend with the model's tiles train as those on the CPU path with torch's optimizer."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        lc_triton.LocalConv2d(3, 16, 2, input_size=(3, 3), activation="relu"),
        lc_triton.LocalConvTranspose2d(16, 2, 2, input_size=(2, 2), bias=False),
    )
    same = copy.deepcopy(net)
    fused = lc_triton.FusedAdamW(net, lr=0.01, clip_norm=clip_norm)
    plain = torch.optim.AdamW(same.parameters(), lr=0.01)
    for step in range(2):
        x = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(step))
        for model, optimizer, backend in ((net, fused, "triton"), (same, plain, "cpu")):
            optimizer.zero_grad()
            with lc_triton.backend(backend):
                model(x).square().mean().backward()
            assert model is same or all(layer.weight.grad is None for layer in net)
            if model is same and clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(same.parameters(), clip_norm)
            optimizer.step()
    for p, q in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5 * q.abs().max().item())


@pytest.mark.parametrize("tile", ["2x2", "split"])
def test_penalties_and_bounds_of_masters_are_those_of_the_cpu(tile):
    """The penalty is that of the bfloat16 weight, and no master is negative after the step."""
    case = BY_NAME["2d_asymmetric"]
    t, rule = tensors(case, torch.float32), RULES["adamw"][0]
    parts = split_master(t.weight, random_bits(0, t.weight.numel(), 1, t.weight.device))
    penalty, found = Penalty(0.1, 0.2, non_neg=True), []
    for _ in range(2):
        weight, correction = (part.clone() for part in parts)
        states = tuple(torch.full(t.weight.shape, 0.25) for _ in range(2))
        found.append(Update(rule, weight, states, penalty=penalty, small=Small(correction)))
    found[0].apply(expected(case, t)["dw"].to(torch.float32))
    launch.weight_update(t.x, t.g, found[1], Problem(case.geometry, backend="triton"), TILES[tile])
    want, got = (join_master(update.weight, update.small.correction) for update in found)
    assert_close(found[1].states[0], found[0].states[0], 1e-5, "first")
    assert ((got - want).abs() <= want.abs() * 2**-14).all()
    assert got.min() == 0 < got.max()
