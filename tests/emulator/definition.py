"""The results that kernels should have: the definition in float64, and the largest error of a kernel's sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lc_triton.core.activations import LINEAR, Activation
from lc_triton.core.fused import BLOCK, Penalty, Update
from lc_triton.core.geometry import Geometry
from lc_triton.ops import reference
from lc_triton.optim.blocks import MOST, dequantize
from lc_triton.optim.rounding import join_master
from lc_triton.tiles.footprint import rows_of_weight_grad

# Half the distance from 1 to the next larger number, and half the distance from 0 to the least.
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24, torch.float64: 2.0**-53}
TINY = {torch.bfloat16: 1e-40, torch.float16: 2.0**-25, torch.float32: 1e-45, torch.float64: 0.0}
# Of a master of 24 bits, which is rounded up or down: the distance from 1 to the next larger number.
MASTER_UNIT = 2.0**-15
TF32_UNIT = 2.0**-10  # truncated, not rounded
LARGEST_FLOAT16 = 65504
# The largest derivative of an activation, if it is above 1.2.
SLOPE = {"selu": 1.8, "exponential": 20.0}
# The additional error of exp, erf and division, in units of the accumulator.
ACTIVATION_UNITS = 50


def plain_of(update: Update) -> list[Tensor]:
    """The weight, or its master, and the states of an update in the form that the arithmetic uses."""
    small = update.small
    weight = update.weight if small.correction is None else join_master(update.weight, small.correction)
    if small.amax is None:
        return [weight, *update.states]
    return [weight, *map(dequantize, update.states, small.amax.unbind(-1), MOST)]


def between_codes(x: Tensor, most: int) -> Tensor:
    """For each number, the distance between the magnitudes one code above and one code below it."""
    blocks = torch.nn.functional.pad(x.abs(), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    amax = blocks.amax(-1, keepdim=True).expand_as(blocks).flatten(-2)[..., : x.shape[-1]]
    place = (x.abs() / amax) ** 0.25 * most
    return amax * (((place + 1) / most) ** 4 - ((place - 1).clamp(min=0) / most) ** 4)


@dataclass(frozen=True)
class Wanted:
    """The exact numbers of a result, and the largest error of each before it is rounded to the result's type."""

    exact: Tensor
    error: Tensor

    def rounded_error(self, dtype: torch.dtype) -> Tensor:
        """The largest error of each number after it is rounded to a type."""
        return self.error + UNIT[dtype] * (self.exact.abs() + self.error) * 1.001 + TINY[dtype]

    def mismatch(self, name: str, got: Tensor, sampled: bool = False) -> tuple[str, int]:
        """What is wrong with a result, "" if nothing is; and how many numbers were compared.

        With `sampled`, programs were left out, and what they would have written is NaN.
        """
        value, allowed = got.double(), self.rounded_error(got.dtype)
        known = ~value.isnan() if sampled else torch.ones_like(value, dtype=torch.bool)
        wrong = known & ~((value - self.exact).abs() <= allowed)
        if got.dtype == torch.float16:
            wrong &= ~((self.exact.abs() + allowed >= LARGEST_FLOAT16) & value.isinf())
        count = int(known.sum())
        if not wrong.any():
            return "", count
        at = tuple(wrong.nonzero()[0].tolist())
        nans = int((value.isnan() & known).sum())
        first = f"{value[at].item():.7g}, exact {self.exact[at].item():.7g} +- {allowed[at].item():.2g}"
        return f"{name}: {int(wrong.sum())} of {count} wrong ({nans} NaN), at {at} {first}", count


@dataclass(frozen=True)
class Definition:
    """A layer's three passes in float64.

    Args:
        geo: the layer.
        dtype: of x, in which products are made.
        weight_dtype: of the weight, which is rounded to x's type.
        precision: of float32 products.
        activation: of the forward.
    """

    geo: Geometry
    dtype: torch.dtype
    weight_dtype: torch.dtype
    precision: str = "ieee"
    activation: Activation = LINEAR

    @property
    def unit(self) -> float:
        """Of the accumulator."""
        return UNIT[torch.float64 if self.dtype == torch.float64 else torch.float32]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Wanted]:
        """The output y and the pre-activation z."""
        x, weight, bias = x.double(), weight.double(), None if bias is None else bias.double()
        z = reference.forward(x, weight, bias, self.geo)
        size = reference.forward(x.abs(), weight.abs(), None if bias is None else bias.abs(), self.geo)
        error = self._of_sum(size, self.geo.window, rounds_weight=True)
        return {"y": self._activated(z, error, self.activation), "z": Wanted(z, error)}

    def input_grad(self, g: Tensor, weight: Tensor, bias: Tensor | None = None) -> dict[str, Wanted]:
        """The gradient dx; with a bias, the output of the transposed layer."""
        g, weight, bias = g.double(), weight.double(), None if bias is None else bias.double()
        dx = reference.transpose(g, weight, bias, self.geo)
        size = reference.transpose(g.abs(), weight.abs(), None if bias is None else bias.abs(), self.geo)
        error = self._of_sum(size, self.geo.taps * self.geo.out_channels // self.geo.groups, rounds_weight=True)
        return {"dx": self._activated(dx, error, LINEAR if bias is None else self.activation)}

    def activation_grad(self, g: Tensor, saved: Tensor) -> dict[str, Wanted]:
        """The gradient dz of z, from that of y and what the forward saved."""
        dz = g.double() * self.activation.derivative(saved.double())
        return {"dz": Wanted(dz, self.unit * ACTIVATION_UNITS * (dz.abs() + g.double().abs()))}

    def weight_grad(self, x: Tensor, dz: Tensor, dz_error: Tensor | None = None) -> dict[str, Wanted]:
        """The gradients dw and db from dz, from which the kernel's may be `dz_error` apart."""
        x, dz = x.double(), dz.double()
        error = torch.zeros_like(dz) if dz_error is None else dz_error
        leaf = x.new_zeros(self.geo.weight_shape).requires_grad_()

        def summed(x: Tensor, dz: Tensor) -> Tensor:
            return torch.autograd.grad(reference.forward(x, leaf, None, self.geo), leaf, dz)[0]

        of_sum = self._of_sum(summed(x.abs(), dz.abs()), rows_of_weight_grad(self.geo, len(x)))
        of_bias = 4 * len(x) ** 0.5 * self.unit * dz.abs().sum(0)
        return {
            "dw": Wanted(summed(x, dz), of_sum + summed(x.abs(), error)),
            "db": Wanted(dz.sum(0), of_bias + error.sum(0)),
        }

    def weight_update(self, x: Tensor, dz: Tensor, update: Update) -> dict[str, Wanted]:
        """The weight and the states after an update by the gradient of (x, dz); `update` stays as it is."""
        dw = self.weight_grad(x, dz)["dw"]
        penalty = update.penalty or Penalty()
        of_penalty = penalty.gradient(update.weight.double())  # of the weight that the layer has, not of its master

        def after(gradient: Tensor) -> list[Tensor]:
            exact = [t.double().clone() for t in plain_of(update)]
            added = None if update.added is None else update.added.double()
            bound = Penalty(non_neg=penalty.non_neg)
            Update(update.rule, exact[0], tuple(exact[1:]), added, penalty=bound).apply(gradient + of_penalty)
            return exact

        right, *off = after(dw.exact), after(dw.exact + dw.error), after(dw.exact - dw.error)
        size = [t.double().abs() for t in plain_of(update)]
        error = [
            sum((o[i] - right[i]).abs() for o in off) + 16 * self.unit * (right[i].abs() + size[i] + dw.exact.abs())
            for i in range(len(right))
        ]
        if update.small.correction is not None:
            error[0] += MASTER_UNIT * (right[0].abs() + error[0]) * 1.001
        for i, state in enumerate(update.states, 1):
            if update.small.amax is not None:
                error[i] += between_codes(right[i], MOST[i - 1])
            elif state.dtype == torch.bfloat16:  # rounded up or down, not to the nearest number
                error[i] += UNIT[state.dtype] * (right[i].abs() + error[i]) * 1.001
        names = "weight", "first", "second"
        return {name: Wanted(*both) for name, *both in zip(names, right, error, strict=False)}

    def square_sum(self, x: Tensor, dz: Tensor) -> dict[str, Wanted]:
        """The sum of the squares of the weight gradient, whose blocks are summed in any order."""
        dw = self.weight_grad(x, dz)["dw"]
        total = dw.exact.square().sum()
        error = (dw.error * (2 * dw.exact.abs() + dw.error)).sum() + 64 * self.unit * total
        return {"total": Wanted(total, error)}

    def _of_sum(self, size: Tensor, terms: int, rounds_weight: bool = False) -> Tensor:
        """The error of a sum of so many products whose magnitudes sum up to `size`."""
        relative: float = 4 * terms**0.5 * self.unit
        if self.precision == "tf32" and self.dtype == torch.float32:
            relative += 2 * TF32_UNIT
        if rounds_weight and self.weight_dtype != self.dtype:
            relative += UNIT[self.dtype]
        return size * relative + 1e-30

    def _activated(self, z: Tensor, error: Tensor, activation: Activation) -> Wanted:
        if activation == LINEAR:
            return Wanted(z, error)
        value = activation(z)
        return Wanted(value, error * SLOPE.get(activation.name, 1.2) + self.unit * ACTIVATION_UNITS * (value.abs() + 1))
