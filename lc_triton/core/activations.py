"""The activations that are fused into the kernels: their names, constants, values and derivatives."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lc_triton.errors import ArgumentTypeError, ArgumentValueError, UnknownNameError

aten = torch.ops.aten

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
SOFTPLUS_THRESHOLD = 20.0  # the default of torch.nn.functional.softplus
LARGEST = sys.float_info.max  # the largest float; a Python int may be larger


@dataclass(frozen=True)
class Activation:
    """A fused activation: `name` as the kernels know it, its constant, and what its derivative is a function of."""

    name: str
    constant: float = 0.0

    @property
    def saves(self) -> Literal["nothing", "y", "z"]:
        """What backward needs: nothing, the output y = act(z), or the pre-activation z."""
        return _TABLE[self.name].saves

    @property
    def argument(self) -> str | tuple[str, float] | None:
        """The `activation=` argument that means this activation."""
        if self.name == "linear":
            return None
        return self.name if _TABLE[self.name].constant is None else (self.name, self.constant)

    def __call__(self, z: Tensor) -> Tensor:
        """act(z), elementwise, in a new tensor (linear returns z itself)."""
        return _TABLE[self.name].value(z, self.constant)

    def derivative(self, saved: Tensor) -> Tensor:
        """act'(z) from `saved` (y or z, see `saves`), in plain differentiable torch operations."""
        return _TABLE[self.name].derivative(saved, self.constant)

    def backward(self, grad: Tensor, saved: Tensor) -> Tensor:
        """dz = grad * act'(z); one fused torch kernel where no graph is being built, plain operations where one is."""
        entry = _TABLE[self.name]
        if entry.saves == "nothing":
            return grad
        if entry.fused is not None and not torch.is_grad_enabled():
            return entry.fused(grad, saved, self.constant)
        if grad.dtype in (torch.float16, torch.bfloat16):
            return (grad.float() * entry.derivative(saved.float(), self.constant)).to(grad.dtype)
        return grad * entry.derivative(saved, self.constant)


@dataclass(frozen=True)
class _Entry:
    value: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    saves: Literal["nothing", "y", "z"] = "y"
    fused: Callable[[Tensor, Tensor, float], Tensor] | None = None
    default: float = 0.0
    constant: str | None = None  # the constant's name where a caller may set one


def _hard_sigmoid(z: Tensor, _: float) -> Tensor:
    return torch.clamp(0.2 * z + 0.5, 0.0, 1.0)


def _hardsigmoid(z: Tensor, _: float) -> Tensor:
    return F.relu6(z + 3) / 6  # F.hardsigmoid cannot be differentiated twice


def _inside(y: Tensor, low: float, high: float, slope: float) -> Tensor:
    return torch.where((y <= low) | (y >= high), 0.0, torch.full_like(y, slope))


def _branch(y: Tensor, negative: Tensor | float, positive: float) -> Tensor:
    # full_like: torch.where of two Python numbers is float32, which would round a float64 slope.
    return torch.where(y <= 0, negative, torch.full_like(y, positive))


def _silu_derivative(z: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_derivative(z: Tensor, _: float) -> Tensor:
    pdf = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * pdf


def _gelu_tanh_derivative(z: Tensor, _: float) -> Tensor:
    k, cubic = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (z + cubic * z * z * z))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * k * (1 + 3 * cubic * z * z)


def _mish_derivative(z: Tensor, _: float) -> Tensor:
    t = torch.tanh(F.softplus(z))
    return t + z * torch.sigmoid(z) * (1 - t * t)


def _hardswish_derivative(z: Tensor, _: float) -> Tensor:
    return torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0))


_TABLE: dict[str, _Entry] = {
    "linear": _Entry(lambda z, _: z, lambda s, _: torch.ones_like(s), "nothing"),
    "relu": _Entry(
        lambda z, _: F.relu(z),
        lambda y, _: _branch(y, 0.0, 1.0),
        fused=lambda g, y, _: aten.threshold_backward(g, y, 0.0),
    ),
    "leaky_relu": _Entry(
        lambda z, a: F.leaky_relu(z, a),
        lambda y, a: _branch(y, a, 1.0),
        fused=lambda g, y, a: aten.leaky_relu_backward(g, y, a, True),
        default=0.01,
        constant="negative slope",
    ),
    "relu6": _Entry(
        lambda z, _: F.relu6(z),
        lambda y, _: _inside(y, 0.0, 6.0, 1.0),
        fused=lambda g, y, _: aten.hardtanh_backward(g, y, 0.0, 6.0),
    ),
    "elu": _Entry(
        lambda z, a: F.elu(z, a),
        lambda y, a: _branch(y, y + a, 1.0),
        fused=lambda g, y, a: aten.elu_backward(g, a, 1.0, 1.0, True, y),
        default=1.0,
        constant="alpha",
    ),
    "selu": _Entry(
        lambda z, _: F.selu(z),
        lambda y, _: _branch(y, y + SELU_SCALE * SELU_ALPHA, SELU_SCALE),
        fused=lambda g, y, _: aten.elu_backward(g, SELU_ALPHA, SELU_SCALE, 1.0, True, y),
    ),
    "sigmoid": _Entry(
        lambda z, _: torch.sigmoid(z),
        lambda y, _: y * (1 - y),
        fused=lambda g, y, _: aten.sigmoid_backward(g, y),
    ),
    "hardsigmoid": _Entry(_hardsigmoid, lambda y, _: _inside(y, 0.0, 1.0, 1 / 6)),
    "hard_sigmoid": _Entry(_hard_sigmoid, lambda y, _: _inside(y, 0.0, 1.0, 0.2)),
    "tanh": _Entry(
        lambda z, _: torch.tanh(z),
        lambda y, _: 1 - y * y,
        fused=lambda g, y, _: aten.tanh_backward(g, y),
    ),
    "softplus": _Entry(
        lambda z, _: F.softplus(z),
        lambda y, _: torch.where(y > SOFTPLUS_THRESHOLD, 1.0, -torch.expm1(-y)),
    ),
    "softsign": _Entry(lambda z, _: F.softsign(z), lambda y, _: (1 - y.abs()) ** 2),
    "exponential": _Entry(lambda z, _: torch.exp(z), lambda y, _: y),
    "silu": _Entry(lambda z, _: F.silu(z), _silu_derivative, "z", fused=lambda g, z, _: aten.silu_backward(g, z)),
    # contiguous: oneDNN, which computes it on the CPU, has no tensors that overlap themselves.
    "gelu": _Entry(
        lambda z, _: F.gelu(z), _gelu_derivative, "z", fused=lambda g, z, _: aten.gelu_backward(g.contiguous(), z)
    ),
    "gelu_tanh": _Entry(
        lambda z, _: F.gelu(z, approximate="tanh"),
        _gelu_tanh_derivative,
        "z",
        fused=lambda g, z, _: aten.gelu_backward(g.contiguous(), z, approximate="tanh"),
    ),
    "mish": _Entry(lambda z, _: F.mish(z), _mish_derivative, "z", fused=lambda g, z, _: aten.mish_backward(g, z)),
    "hardswish": _Entry(
        lambda z, _: F.hardswish(z), _hardswish_derivative, "z", fused=lambda g, z, _: aten.hardswish_backward(g, z)
    ),
}

_ALIASES = {"swish": "silu"}
AFTER_KERNEL = {"softmax": torch.softmax, "log_softmax": torch.log_softmax}
FUSED_NAMES = tuple(_TABLE)
NAMES = (*_TABLE, *_ALIASES, *AFTER_KERNEL)

LINEAR = Activation("linear")


def parse_activation(value: object) -> Activation | Callable[..., Tensor] | str:
    """What an `activation=` argument means: a fused Activation, "softmax"/"log_softmax", or a callable."""
    if value is None:
        return LINEAR
    if isinstance(value, str):
        name = _ALIASES.get(value, value)
        if name in AFTER_KERNEL:
            return name
        if name not in _TABLE:
            raise UnknownNameError.of("activation", value, NAMES)
        return Activation(name, _TABLE[name].default)
    if isinstance(value, Sequence) and len(value) == 2 and isinstance(value[0], str):
        return _with_constant(value[0], value[1])
    if callable(value) and not isinstance(value, type):  # nn.ReLU is a slip for nn.ReLU()
        return value
    raise ArgumentTypeError(
        name="activation", value=value, allowed="None, a name, a (name, constant) pair or a callable"
    )


def _with_constant(name: str, constant: object) -> Activation:
    name = _ALIASES.get(name, name)
    if name not in _TABLE:
        raise UnknownNameError.of("activation", name, FUSED_NAMES)
    if name == "gelu" and isinstance(constant, str) and constant in ("none", "tanh"):
        return Activation("gelu_tanh" if constant == "tanh" else "gelu")
    entry = _TABLE[name]
    if entry.constant is None:
        raise ArgumentValueError(
            name="activation",
            value=(name, constant),
            allowed='a name alone here; only "leaky_relu", "elu" and ("gelu", "tanh") take a second entry',
        )
    # A negative constant would make z ambiguous given y, and the derivative is a function of y.
    if isinstance(constant, bool) or not isinstance(constant, (int, float)) or not 0 <= constant <= LARGEST:
        raise ArgumentValueError(
            name="activation",
            value=(name, constant),
            allowed=f"({name!r}, {entry.constant}) with a finite constant >= 0",
        )
    return Activation(name, float(constant))
