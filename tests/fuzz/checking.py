"""Compare a call with the definition: values, gradients of both orders, layouts, and memory that must not change."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import assume
from torch import Tensor

import lc_triton
from lc_triton.core.activations import AFTER_KERNEL, LINEAR, Activation, parse_activation
from lc_triton.ops import reference
from tests.cases import KINKED
from tests.cpu_strategies import CpuStrategy
from tests.fuzz.strategies import Call, StridedTensor, make_strided, shapes


def strided_tensors(call: Call) -> dict[str, StridedTensor]:
    """The tensors of a call: x, weight, bias if there is one, and g, the gradient of the result."""
    sizes = shapes(call.geometry, call.transposed, call.batch, call.bias, call.channels_last)
    dtypes = {"x": call.dtype, "g": call.dtype, "weight": call.weight_dtype, "bias": call.weight_dtype}
    return {
        name: make_strided(
            shape,
            call.layouts[name],
            dtypes[name],
            seed=4 * call.seed + n,
            scale=call.geometry.window**-0.5 if name == "weight" else 1.0,
        )
        for n, (name, shape) in enumerate(sizes.items())
    }


def run(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Call the operator."""
    operator = lc_triton.local_conv_transpose if call.transposed else lc_triton.local_conv
    return operator(x, weight, bias, **call.arguments)


def canonical(call: Call, tensor: Tensor) -> Tensor:
    """x, y or a gradient of one as `(B, *spatial, channels)`."""
    tensor = tensor if call.channels_last else tensor.movedim(-call.geometry.ndim - 1, -1)
    return tensor.unsqueeze(0) if call.batch is None else tensor


def padded(call: Call, x: Tensor) -> Tensor:
    """A canonical x, padded by its padding modes, one dimension after the other."""
    modes, ndim = call.arguments["padding_mode"], call.geometry.ndim
    x = x.movedim(-1, 1)
    for d, mode in enumerate((modes,) * ndim if isinstance(modes, str) else modes):
        pairs = [pair if d == other else (0, 0) for other, pair in enumerate(call.geometry.padding)]
        sides = [side for pair in reversed(pairs) for side in pair]
        if any(sides):
            x = F.pad(x, sides, mode="constant" if mode == "zeros" else mode)
    return x.movedim(1, -1)


def definition(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation = LINEAR) -> Tensor:
    """The output by the definition, for canonical tensors."""
    if call.transposed:
        return reference.transpose(x, weight, bias, call.geometry, act)
    if call.arguments["padding_mode"] == "zeros":
        return reference.forward(x, weight, bias, call.geometry, act)
    return reference.forward(padded(call, x), weight, bias, call.geometry.padded(), act)


@dataclass
class Expected:
    """The results of the definition in float64, and for each the size of its sum without cancellation."""

    values: dict[str, Tensor]
    sizes: dict[str, float]
    second: dict[str, Tensor]


def expected(call: Call, given: dict[str, StridedTensor]) -> Expected:
    """y and the requested gradients of a call, canonical."""
    contiguous = {name: p.view.detach().resolve_neg().double().contiguous() for name, p in given.items()}
    for name in ("x", "g"):
        contiguous[name] = canonical(call, contiguous[name])
    leaves = {n: contiguous[n].requires_grad_(n in call.needs) for n in ("x", "weight", "bias") if n in contiguous}
    x, weight, bias = leaves["x"], leaves["weight"], leaves.get("bias")
    act = parse_activation(call.arguments["activation"])
    z = definition(call, x, weight, bias)
    y = AFTER_KERNEL[act](z, dim=-1) if isinstance(act, str) else act(z)
    requested = [leaves[name] for name in call.needs]
    (dz,) = torch.autograd.grad(y, z, contiguous["g"], retain_graph=True)
    first = torch.autograd.grad(y, requested, contiguous["g"], create_graph=call.twice)
    second = torch.autograd.grad(_penalty(y, first), requested, allow_unused=True) if call.twice else ()
    names = ["d" + name for name in call.needs]
    values = {"y": y.detach()} | dict(zip(names, (v.detach() for v in first), strict=True))
    return Expected(
        values,
        _magnitudes(call, {n: v.detach() for n, v in leaves.items()}, dz.abs() + contiguous["g"].abs(), values),
        dict(
            zip(
                names,
                (torch.zeros_like(a) if v is None else v for a, v in zip(requested, second, strict=False)),
                strict=bool(second),
            )
        ),
    )


def _magnitudes(call: Call, leaves: dict[str, Tensor], dz: Tensor, values: dict[str, Tensor]) -> dict[str, float]:
    """The sums of the absolute values of their terms, to which rounding errors are proportional."""
    with torch.enable_grad():
        terms = {name: v.abs().requires_grad_() for name, v in leaves.items()}
        z = definition(call, terms["x"], terms["weight"], terms.get("bias"))
        sums = torch.autograd.grad(z, list(terms.values()), dz)
    found = dict(zip(("d" + name for name in terms), sums, strict=True))
    largest = {name: max(1.0, _largest(v)) for name, v in found.items()}
    return largest | {"y": max(1.0, _largest(z.detach())) * max(1.0, _largest(values["y"]))}


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


def _penalty(y: Tensor, first: tuple[Tensor, ...]) -> Tensor:
    """A loss that depends on values and gradients."""
    return sum((v.square().sum() for v in first), y.pow(3).sum())


def tolerance(call: Call, name: str) -> float:
    """The largest allowed error of a result, relative to its size."""
    if call.dtype == torch.float64:
        return 1e-12
    # Gradients of float32 weights with 16-bit tensors are float32 sums, unless an activation rounds between.
    is_float32_sum = call.arguments["activation"] in (None, "linear") and name in ("dweight", "dbias")
    return 4 * torch.finfo(call.weight_dtype if is_float32_sum else call.dtype).eps


def _torch_refuses(call: Call, g: Tensor) -> bool:
    """Torch 2.13 has no gradient of gelu, which follows a transposed layer, for a g that overlaps itself."""
    if not call.transposed or call.arguments["activation"] != "gelu":
        return False
    return len(set(torch.arange(_span(g)).as_strided(g.shape, g.stride()).flatten().tolist())) < g.numel()


def _span(tensor: Tensor) -> int:
    return 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n)


def check(call: Call) -> None:
    """Run a call by the chosen implementation and check its values, dtypes, layouts and memory."""
    given = strided_tensors(call)
    assume(not _torch_refuses(call, given["g"].view))
    want = expected(call, given)
    leaves = {n: given[n].view.requires_grad_(n in call.needs) for n in ("x", "weight", "bias") if n in given}
    x, weight, bias = leaves["x"], leaves["weight"], leaves.get("bias")
    with torch.no_grad():
        without_graph, repeated = run(call, x, weight, bias), run(call, x, weight, bias)
    assert torch.equal(without_graph, repeated)  # the second call may take another dispatch path
    assert without_graph.stride() == repeated.stride()
    y = run(call, x, weight, bias)
    requested = [leaves[name] for name in call.needs]
    first = torch.autograd.grad(y, requested, given["g"].view, create_graph=call.twice)
    for leaf, gradient in zip(requested, first, strict=True):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)
    for result in (without_graph, y):
        assert result.dtype == call.dtype
        assert canonical(call, result).is_contiguous()
        _close(call, want, "y", result)
    kinked = call.arguments["activation"] in KINKED and call.dtype != torch.float64
    for name, gradient in zip(("d" + n for n in call.needs), first, strict=True):
        # Torch chooses the layout of such a gradient.
        padded_by_torch = name == "dx" and call.arguments.get("padding_mode", "zeros") != "zeros"
        assert padded_by_torch or (canonical(call, gradient) if name == "dx" else gradient).is_contiguous(), name
        if not kinked:
            _close(call, want, name, gradient)
    if call.twice:
        second = torch.autograd.grad(_penalty(y, first), requested, allow_unused=True)
        for (name, value), leaf, got in zip(want.second.items(), requested, second, strict=True):
            got = torch.zeros_like(leaf) if got is None else got
            got = canonical(call, got) if name == "dx" else got
            scale = max(1.0, *(v.abs().max().item() for v in want.second.values() if v.numel()), 1.0)
            assert got.shape == value.shape
            assert _largest(got - value) <= 1e-10 * scale, f"second order, {name}"
    for name, tensor in given.items():
        assert not tensor.changed, f"{name} was written to"


def _close(call: Call, want: Expected, name: str, got: Tensor) -> None:
    got = canonical(call, got) if name in ("y", "dx") else got
    value = want.values[name]
    assert got.shape == value.shape, name
    if value.numel():
        error = (got.detach().double() - value).abs().max().item()
        assert error <= tolerance(call, name) * want.sizes[name], f"{name}: off by {error:.2e}"


STRATEGIES = [
    CpuStrategy(block, most, *rules, tap_by_tap=rules[0])
    for block, most in ((None, None), (1, 600), (600, 1), (1500, None))
    for rules in itertools.product((False, True), repeat=2)
]
