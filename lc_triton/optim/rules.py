"""The optimizers as data: one class of hyperparameters each, as they are at one step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lc_triton.core.fused import NOTHING_SMALL, Small
from lc_triton.optim.blocks import MOST, dequantize, quantize
from lc_triton.optim.rounding import join_master, random_bits, round_stochastically, split_master


@dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled weight decay; its states are the means of the gradient and of its square.

    Args:
        lr, beta1, beta2, eps, weight_decay, maximize: as of `torch.optim.AdamW`.
        count: the number of this step, from 1.
        step: the same number as a tensor, which torch's operator reads.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool
    count: int
    step: Tensor
    name: str = "adamw"

    @property
    def scalars(self) -> tuple[float, ...]:
        """The factors of g, w, g in m, v, g^2 in v and m; the square root of v's bias correction; eps; count."""
        return (
            -1.0 if self.maximize else 1.0,
            1 - self.lr * self.weight_decay,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            self.lr / (1 - self.beta1**self.count),
            math.sqrt(1 - self.beta2**self.count),
            self.eps,
            float(self.count),
        )

    def apply(
        self, weight: Tensor, gradient: Tensor, states: tuple[Tensor, ...], start: int = 0, small: Small = NOTHING_SMALL
    ) -> None:
        """Update a weight and its states, or the part of each from an offset on, by torch's own operator.

        States in bfloat16 or 8 bits, and the master of a weight in bfloat16, are rounded stochastically.
        """
        master = weight if small.correction is None else join_master(weight, small.correction)
        amax = None if small.amax is None else small.amax.unflatten(-1, (-1, 2)).unbind(-1)
        numbers = states if amax is None else map(dequantize, states, amax, MOST)
        mean, square = (number.to(master.dtype) for number in numbers)
        step = self.step if self.step.device == weight.device else self.step.to(weight.device)
        torch._fused_adamw_(
            [master],
            [gradient.to(master.dtype)],
            [mean],
            [square],
            [],
            [step],
            lr=self.lr,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=self.maximize,
        )
        if mean is states[0] and small.correction is None:
            return
        bits = random_bits(start, weight.numel(), self.count, weight.device)
        halves = bits & 0xFFFF, bits >> 16
        for i, number in enumerate((mean, square)):
            if amax is not None:
                codes, largest = quantize(number, halves[i], MOST[i])
                states[i].copy_(codes)
                amax[i].copy_(largest)
            elif number is not states[i]:
                states[i].copy_(round_stochastically(number, halves[i]))
        if small.correction is not None:
            for tensor, part in zip((weight, small.correction), split_master(master, bits), strict=True):
                tensor.copy_(part)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent; with momentum, its state is the momentum buffer.

    Args:
        lr, momentum, dampening, weight_decay, nesterov, maximize: as of `torch.optim.SGD`.
        is_first: whether the momentum buffer holds nothing yet.
    """

    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool
    is_first: bool

    @property
    def name(self) -> str:
        """The name that the kernels know it by."""
        if not self.momentum:  # as a scheduler may set it, whatever `nesterov` is
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"

    @property
    def scalars(self) -> tuple[float, ...]:
        """The factors of g, w, the buffer, g in the buffer, the buffer in the step; lr."""
        return (
            -1.0 if self.maximize else 1.0,
            self.weight_decay,
            0.0 if self.is_first else self.momentum,
            1.0 if self.is_first else 1 - self.dampening,
            self.momentum,
            self.lr,
            0.0,
            0.0,
            0.0,
        )

    def apply(
        self, weight: Tensor, gradient: Tensor, states: tuple[Tensor, ...], start: int = 0, small: Small = NOTHING_SMALL
    ) -> None:
        """Update a weight and its state, or the part of each from an offset on, by torch's own operator."""
        torch._fused_sgd_(
            [weight],
            [gradient],
            list(states),
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=self.lr,
            dampening=self.dampening,
            nesterov=self.nesterov,
            maximize=self.maximize,
            is_first_step=self.is_first and self.momentum != 0,
        )


@dataclass(frozen=True)
class Add:
    """The sum of gradients: what is updated is `.grad`, to which another gradient is added."""

    name: str = "add"

    @property
    def scalars(self) -> tuple[float, ...]:
        """The factor of g."""
        return (1.0, *(0.0,) * 8)

    def apply(
        self, weight: Tensor, gradient: Tensor, states: tuple[Tensor, ...], start: int = 0, small: Small = NOTHING_SMALL
    ) -> None:
        """Add a gradient to one, or to the part of one from an offset on."""
        weight += gradient
