"""A dense layer whose products an equation names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, StrictStr
from torch import Tensor, nn

from lc_triton.keras.saved.activation import Function, function
from lc_triton.keras.saved.arguments import Arguments, Count, Place, Shape
from lc_triton.keras.saved.slots import Slot, same_layout
from lc_triton.keras.saved.training import Trained

_EQUATION = re.compile(r"(\.\.\.)?([a-zA-Z]+)(\.\.\.)?,([a-zA-Z]+)->(\.\.\.)?([a-zA-Z]+)(\.\.\.)?")


@dataclass(frozen=True)
class Sizes:
    """The shapes of the weights that an equation needs."""

    kernel: Shape
    bias: Shape


class EinsumDense(Trained):
    """`einsum(equation, x, kernel) + bias`, and an activation. Source: `keras.layers.EinsumDense`."""

    def __init__(
        self, equation: str, sizes: Sizes, activation: Function | None, *, bias: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.equation, self.activation = equation, activation
        self.weight = nn.Parameter(torch.empty(sizes.kernel, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(sizes.bias, dtype=dtype)) if bias else None

    def slots(self) -> list[Slot]:
        """See the base."""
        return same_layout("kernel", self, "weight") + same_layout("bias", self, "bias")

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for a batch x."""
        y = torch.einsum(self.equation, x, self.weight)
        y = y if self.bias is None else y + self.bias
        return self.observed(y if self.activation is None else self.activation(y))

    def extra_repr(self) -> str:
        """The equation."""
        return f"{self.equation!r}, kernel={tuple(self.weight.shape)}"


def sizes(equation: str, given: Shape, output: tuple[int | None, ...], bias_axes: str) -> Sizes:
    """The shapes of the weights of an equation.

    Args:
        equation: two operands, the axes of the first elided at one end or not at all.
        given: the shape of the input without the batch.
        output: the sizes of the output that are not elided, without the batch; None where the input has them.
        bias_axes: the letters of the output that the bias has.

    Raises:
        ValueError: an equation of another form, or one that leaves a size of a weight open.
    """
    match = _EQUATION.fullmatch(equation.replace(" ", ""))
    form = "'ab,bc->ac', '...b,bc->...c' or 'ab...,bc->ac...'"
    if match is None or match[1] != match[5] or match[3] != match[7] or (match[1] and match[3]):
        raise ValueError(f"its equation {equation[:80]!r} is none like {form}")
    left, ins, right, weight, _, outs, _ = match.groups()
    elided = len(given) + 1 - len(ins)
    if elided < 0 or (elided and not (left or right)):
        raise ValueError(f"its equation {equation[:80]!r} is not for inputs of shape {given}")
    # Letters and sizes meet at the end that is not elided. The batch has no size, and no weight has its letter.
    known: dict[str, int] = {}
    for letter, size in (*_met(ins, given, left), *_met(outs, output, left)):
        if size is not None and known.setdefault(letter, size) != size:
            raise ValueError(
                f"its output_shape {output} has another size for {letter!r} than its input: {known[letter]}"
            )
    missing = [letter for letter in dict.fromkeys(weight + bias_axes) if letter not in known]
    if missing or not set(bias_axes) <= set(outs):
        raise ValueError(
            f"{', '.join(missing or bias_axes)} in its equation {equation[:80]!r} has no size that is known"
        )
    bias: Shape = ()
    if bias_axes:
        bias = tuple(known[c] if c in bias_axes else 1 for c in outs[min(map(outs.index, bias_axes)) :])
        bias += (1,) * (elided if right else 0)
    return Sizes(tuple(known[letter] for letter in weight), bias)


def _met(letters: str, sizes: tuple[int | None, ...], left: str | None) -> list[tuple[str, int | None]]:
    """Letters with their sizes, from the end if the axes on the left are elided."""
    if left:
        return list(zip(reversed(letters), reversed(sizes), strict=False))
    return list(zip(letters[1:], sizes, strict=False))


class EinsumDenseArguments(Arguments):
    """`EinsumDense`."""

    equation: StrictStr
    output_shape: Annotated[
        tuple[Count | None, ...], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)
    ]
    bias_axes: StrictStr | None = None
    activation: Any = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        bias = self.bias_axes or ""
        found = sizes(self.equation, place.shape, self.output_shape, bias)
        activation = function(self.activation, place.keras)
        return EinsumDense(self.equation, found, activation, bias=bool(bias), dtype=self.variable_dtype)


CLASSES: dict[str, type[Arguments]] = {"EinsumDense": EinsumDenseArguments}
