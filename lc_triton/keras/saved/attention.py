"""Attention: of several heads, by dot products, and additive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.keras.saved.arguments import Arguments, Axes, Count, Counts, Place, Rate, positive_axis
from lc_triton.keras.saved.masks import Mask
from lc_triton.keras.saved.slots import Slot, inside, same_layout
from lc_triton.keras.saved.training import Trained

# What Keras adds to the scores of what is masked; float16 has no such number.
MASKED = -1e9


class Projection(Trained):
    """A matrix over the last axis, whose inputs or outputs Keras has by heads: `(channels, heads, size)`, say."""

    def __init__(self, ins: tuple[int, ...], outs: tuple[int, ...], *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.ins, self.outs = ins, outs
        self.weight = nn.Parameter(torch.empty(math.prod(outs), math.prod(ins), dtype=dtype))
        self.bias = nn.Parameter(torch.empty(math.prod(outs), dtype=dtype)) if bias else None

    def slots(self) -> list[Slot]:
        """See the base."""
        shape = (*self.ins, *self.outs)
        there, back = partial(_kernel, shape=shape), partial(_weight, shape=tuple(self.weight.shape))
        found = [Slot("kernel", self, "weight", shape, there, back)]
        if self.bias is not None:
            there, back = partial(torch.reshape, shape=self.outs), partial(torch.reshape, shape=tuple(self.bias.shape))
            found.append(Slot("bias", self, "bias", self.outs, there, back))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """The products for x `(..., channels)`."""
        return self.observed(F.linear(x, self.weight, self.bias))


def _kernel(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    return weight.mT.reshape(shape)


def _weight(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    return kernel.reshape(shape[1], shape[0]).mT


class MultiHeadAttention(Trained):
    """Attention of several heads over some axes. Source: Vaswani et al., 2017; `keras.layers.MultiHeadAttention`."""

    takes_mask = True

    def __init__(
        self,
        channels: tuple[int, int, int],
        heads: int,
        key_size: int,
        value_size: int,
        outputs: tuple[int, ...],
        axes: tuple[int, ...],
        *,
        dropout: float,
        bias: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        query, value, key = channels
        self.heads, self.key_size, self.outputs, self.axes, self.dropout = heads, key_size, outputs, axes, dropout
        made = partial(Projection, bias=bias, dtype=dtype)
        self.query, self.key = made((query,), (heads, key_size)), made((key,), (heads, key_size))
        self.value, self.output = made((value,), (heads, value_size)), made((heads, value_size), outputs)

    def slots(self) -> list[Slot]:
        """See the base."""
        return [slot for name in _PARTS for slot in inside(f"_{name}_dense", getattr(self, name).slots())]

    def ask(self, asks: Mapping[str, Any]) -> None:
        """See the base: each of the four matrices is asked for; only the last has an output that is penalised."""
        for name in _PARTS:
            getattr(self, name).ask({k: v for k, v in asks.items() if name == "output" or k != "activity_regularizer"})

    def output_mask(self, inputs: tuple[Tensor, ...], masks: tuple[Mask, ...]) -> Mask:
        """The mask of the outputs: that of the queries."""
        return masks[0]

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
        mask: tuple[Mask, ...] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the queries find, and the scores if they are asked for.

        Args:
            query: `(batch, *sites, channels)`; the axes that are not attended to are like the batch.
            value: what is found; its sites may be others.
            key: what is compared with the queries; the value if None.
            attention_mask: `(batch, queries, keys)`, False where nothing is found.
            use_causal_mask: True if a query finds nothing after its own place.
            return_attention_scores: True for scores `(batch, heads, queries, keys)` as well.
            mask: of the queries, the values and perhaps the keys.
        """
        key = value if key is None else key
        allowed = _allowed(query, value, attention_mask, mask, causal=use_causal_mask)
        q, k, v = (self._by_heads(part(x)) for part, x in ((self.query, query), (self.key, key), (self.value, value)))
        scores = (q * (1 / math.sqrt(self.key_size))) @ k.mT
        if allowed is not None:
            large = torch.finfo(scores.dtype).min if scores.dtype == torch.float16 else MASKED
            scores = scores + (~allowed).to(scores.dtype)[:, None] * large
        weights = scores.softmax(-1)
        y = F.dropout(weights, self.dropout, self.training) @ v
        y = self._as_before(y, query)
        y = self.output(y).unflatten(-1, self.outputs)
        return (y, weights) if return_attention_scores else y

    def _by_heads(self, x: Tensor) -> Tensor:
        """x `(batch, *sites, heads * size)` as `(batch and other axes, heads, attended sites, size)`."""
        x = x.unflatten(-1, (self.heads, -1)).movedim(self.axes, tuple(range(-2 - len(self.axes), -2)))
        return x.flatten(-2 - len(self.axes), -3).flatten(0, -4).transpose(1, 2)

    def _as_before(self, y: Tensor, query: Tensor) -> Tensor:
        """What `_by_heads` undoes, the heads in one axis."""
        sites = query.shape[:-1]
        attended = [sites[axis] for axis in self.axes]
        others = [size for axis, size in enumerate(sites) if axis not in self.axes]
        y = y.transpose(1, 2).flatten(-2).reshape(*others, *attended, -1)
        return y.movedim(tuple(range(len(others), len(sites))), self.axes)


_PARTS = ("query", "key", "value", "output")


def _allowed(
    query: Tensor, value: Tensor, attention_mask: Tensor | None, masks: tuple[Mask, ...] | None, *, causal: bool
) -> Tensor | None:
    """Which queries find which keys, `(batch or 1, queries, keys)`; None if all find all."""
    found = None if attention_mask is None else attention_mask.bool()
    parts = []
    for i, mask in enumerate(masks or ()):
        if mask is not None:
            parts.append(mask[:, None] if i else mask[:, :, None])
    if causal:
        ones = torch.ones(1, query.shape[1], value.shape[1], dtype=torch.bool, device=query.device)
        parts.append(ones.tril())
    for part in parts:
        found = part if found is None else found & part
    return found


class Attention(Trained):
    """Attention by dot products, or by sums of tanh; `keras.layers.Attention` and `AdditiveAttention`."""

    takes_mask = True
    scale: Tensor | None
    concat_score_weight: Tensor | None

    def __init__(self, mode: str, scales: Mapping[str, tuple[int, ...]], dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.mode, self.dropout = mode, dropout
        for name in ("scale", "concat_score_weight"):
            given = nn.Parameter(torch.empty(scales[name], dtype=dtype)) if name in scales else None
            self.register_parameter(name, given)

    def slots(self) -> list[Slot]:
        """See the base."""
        return same_layout("scale", self, "scale") + same_layout("concat_score_weight", self, "concat_score_weight")

    def output_mask(self, inputs: tuple[Tensor, ...], masks: tuple[Mask, ...]) -> Mask:
        """The mask of the outputs: that of the queries."""
        return masks[0]

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        *,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
        mask: tuple[Mask, ...] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What queries `(batch, queries, channels)` find among values, and the weights if they are asked for."""
        scores = self._scores(query, value if key is None else key)
        query_mask, value_mask = (None, None) if mask is None else mask[:2]
        padding = None if value_mask is None else value_mask[:, None, :]
        if use_causal_mask:
            causal = torch.ones_like(scores[:1], dtype=torch.bool).tril()
            padding = causal if padding is None else padding & causal
        if padding is not None:
            large = -torch.finfo(scores.dtype).max if scores.dtype == torch.float16 else MASKED
            scores = scores + (~padding).to(scores.dtype) * large
        weights = scores.softmax(-1)
        weights = F.dropout(weights, self.dropout, self.training)
        y = weights @ value
        y = y if query_mask is None else y * query_mask[:, :, None].to(y.dtype)
        y = self.observed(y)
        return (y, weights) if return_attention_scores else y

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        if self.mode == "dot":
            scores = query @ key.mT
            return scores if self.scale is None else scores * self.scale
        both = query[:, :, None] + key[:, None]
        if self.mode == "additive":
            both = both.tanh()
            return (both if self.scale is None else both * self.scale).sum(-1)
        both = both if self.scale is None else both * self.scale
        scores = both.tanh().sum(-1)
        return scores if self.concat_score_weight is None else scores * self.concat_score_weight


_CALL = frozenset({"use_causal_mask", "return_attention_scores"})


class MultiHeadAttentionArguments(Arguments):
    """`MultiHeadAttention`."""

    call_arguments = _CALL | {"attention_mask"}
    further_inputs = ("value", "key")

    num_heads: Count
    key_dim: Count
    value_dim: Count | None = None
    dropout: Rate = 0.0
    use_bias: StrictBool = True
    output_shape: Counts | None = None
    attention_axes: Axes | None = None
    # What it was called on, which its place in the model says too; and how masks are added, with the same result.
    query_shape: Any = None
    key_shape: Any = None
    value_shape: Any = None
    softmax_robust_masking: StrictBool = False

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        given = place.shapes
        if not 2 <= len(given) <= 3 or any(len(shape) < 2 for shape in given):
            raise ValueError(f"it takes a query, a value and perhaps a key, and is given shapes {given}")
        ndim = len(given[0]) + 1
        # Keras's default is all axes between the batch and the channels.
        axes = tuple(positive_axis(axis, ndim) for axis in self.attention_axes or range(1, ndim - 1))
        if any(axis == ndim - 1 for axis in axes) or any(len(shape) + 1 != ndim for shape in given):
            raise ValueError(f"attention_axes={self.attention_axes} are no axes of sites in shapes {given}")
        query, value, key = given[0][-1], given[1][-1], given[-1][-1]
        return MultiHeadAttention(
            (query, value, key),
            self.num_heads,
            self.key_dim,
            self.value_dim or self.key_dim,
            self.output_shape or (query,),
            axes,
            dropout=float(self.dropout),
            bias=self.use_bias,
            dtype=self.variable_dtype,
        )


class AttentionArguments(Arguments):
    """`Attention` and `AdditiveAttention`."""

    call_arguments = _CALL | {"mask"}

    use_scale: StrictBool | None = None
    score_mode: Literal["dot", "concat"] = "dot"
    dropout: Rate = 0.0

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if not 2 <= len(place.shapes) <= 3 or any(len(shape) != 2 for shape in place.shapes):
            raise ValueError(f"it takes a query, a value and perhaps a key of two axes, and is given {place.shapes}")
        additive = place.class_name == "AdditiveAttention"
        mode = "additive" if additive else self.score_mode
        scales: dict[str, tuple[int, ...]] = {}
        if self.use_scale or (additive and self.use_scale is None):
            scales["scale"] = (place.shapes[1][-1],) if additive else ()
        if mode == "concat":
            scales["concat_score_weight"] = ()
        return Attention(mode, scales, float(self.dropout), self.variable_dtype)


CLASSES: dict[str, type[Arguments]] = {
    "MultiHeadAttention": MultiHeadAttentionArguments,
    "Attention": AttentionArguments,
    "AdditiveAttention": AttentionArguments,
}
