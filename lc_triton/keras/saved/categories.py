"""Layers that make categories of numbers, and vectors of categories."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field, StrictBool, StrictInt
from torch import Tensor, nn

from lc_triton.keras.saved import operations
from lc_triton.keras.saved.arguments import DTYPES, Arguments, Count, Number, Place, Shape, policy_name

Mode = Literal["int", "one_hot", "multi_hot", "binary", "count"]

# What fits into 64 bits.
Whole: TypeAlias = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)]

# A list in a configuration; what is larger is no layer that was written by hand or adapted to data.
MOST_ENTRIES = 1 << 20


class Encoding(nn.Module):
    """Categories as whole numbers, or as one vector a sample: which of them it has, or how often.

    `depth` is the number of categories. `mode` is Keras's `output_mode`.
    """

    def __init__(self, depth: int, mode: Mode, dtype: torch.dtype) -> None:
        super().__init__()
        self.depth, self.mode, self.dtype = depth, mode, dtype

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The vectors `(batch, depth)` of categories x `(batch, n)`, which count as much as their weights say."""
        if self.mode == "int":
            return x.to(self.dtype)
        at = x.long() if x.ndim > 1 else x.long()[:, None]
        counts = torch.zeros(at.shape[0], self.depth, dtype=self.dtype, device=x.device)
        if self.mode != "count":
            return counts.scatter(1, at, 1.0)
        ones = torch.ones_like(at, dtype=self.dtype) if weights is None else weights.to(self.dtype).reshape(at.shape)
        return counts.scatter_add(1, at, ones)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.depth}, mode={self.mode!r}"


class Discretization(Encoding):
    """The bins that numbers lie in, encoded; a boundary belongs to the bin above it."""

    boundaries: Tensor

    def __init__(self, boundaries: list[float], mode: Mode, dtype: torch.dtype) -> None:
        super().__init__(len(boundaries) + 1, mode, dtype)
        self.numbers = boundaries

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The bins of x, encoded."""
        x = x if x.is_floating_point() else x.float()
        # TensorFlow makes float32 of the boundaries, for float64 too.
        boundaries = torch.tensor(self.numbers, dtype=torch.float32, device=x.device).to(x.dtype)
        return super().forward(torch.bucketize(x, boundaries, right=True))


class IntegerLookup(Encoding):
    """Places of whole numbers in a vocabulary, encoded; numbers that are not in it share the places before it.

    `first` is the place of the first number that is not in it, `spare` how many places such numbers have, `masked` the
    number that has place 0.
    """

    def __init__(
        self, vocabulary: list[int], first: int, spare: int, masked: int | None, mode: Mode, dtype: torch.dtype
    ) -> None:
        super().__init__(first + spare + len(vocabulary), mode, dtype)
        self.vocabulary, self.first, self.spare, self.masked = vocabulary, first, spare, masked

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """The places of x, encoded."""
        x = x.long()
        known, order = torch.tensor(self.vocabulary, device=x.device).sort()
        at = torch.searchsorted(known, x).clamp(max=len(self.vocabulary) - 1)
        places = torch.where(known[at] == x, order[at] + self.first + self.spare, x % self.spare + self.first)
        places = places if self.masked is None else places.masked_fill(x == self.masked, 0)
        return super().forward(places)


class _EncodingArguments(Arguments):
    output_mode: Mode = "multi_hot"
    sparse: StrictBool = False

    @property
    def variable_dtype(self) -> torch.dtype:
        """The dtype of the outputs, which are whole numbers in one mode: there are no weights."""
        name = policy_name(self.dtype) or ""
        found = DTYPES.get(name) or operations.DTYPES.get(name)
        if found is None:
            raise ValueError(f"its dtype {str(self.dtype)[:80]} is none of {', '.join((*DTYPES, *operations.DTYPES))}")
        return found

    def check_shape(self, shape: Shape) -> None:
        """Refuse what Keras refuses: vectors of more than one list a sample; and what has no counterpart.

        Raises:
            ValueError: other inputs, or sparse outputs.
        """
        if self.sparse:
            raise ValueError("sparse=True has no counterpart here: its output would be a sparse tensor")
        if self.output_mode != "int" and (
            len(shape) > 1 or (self.output_mode == "one_hot" and shape not in ((), (1,)))
        ):
            raise ValueError(f"output_mode={self.output_mode!r} takes one list a sample, and is given shape {shape}")


class CategoryEncodingArguments(_EncodingArguments):
    """`CategoryEncoding`."""

    further_inputs = ("count_weights",)

    num_tokens: Count
    output_mode: Literal["one_hot", "multi_hot", "binary", "count"] = "multi_hot"

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        shape = place.shapes[0] if place.shapes else ()
        self.check_shape(shape)
        if len(place.shapes) > 1 and self.output_mode != "count":
            raise ValueError(f"count_weights are given to it, and output_mode={self.output_mode!r} is not 'count'")
        return Encoding(self.num_tokens, self.output_mode, self.variable_dtype)


class DiscretizationArguments(_EncodingArguments):
    """`Discretization`."""

    bin_boundaries: Annotated[list[Number], Field(max_length=MOST_ENTRIES)] | None = None
    output_mode: Mode = "int"
    num_bins: Any = None
    epsilon: Any = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        self.check_shape(place.shape)
        if self.bin_boundaries is None:
            raise ValueError(
                "it was adapted to data, and its bins are not in the file: in Keras, make the layer anew with "
                "bin_boundaries=layer.bin_boundaries, and save"
            )
        boundaries = [float(number) for number in self.bin_boundaries]
        if boundaries != sorted(boundaries):
            raise ValueError(f"its bin_boundaries {str(boundaries)[:80]} are not in ascending order")
        return Discretization(boundaries, self.output_mode, self.variable_dtype)


class IntegerLookupArguments(_EncodingArguments):
    """`IntegerLookup`, of a vocabulary that is among its arguments."""

    vocabulary: Annotated[list[Whole], Field(max_length=MOST_ENTRIES)] | None = None
    output_mode: Mode = "int"
    num_oov_indices: Annotated[StrictInt, Field(ge=1, le=MOST_ENTRIES)] = 1
    mask_token: Whole | None = None
    oov_token: Whole = -1
    # What says again how large the vocabulary is, and of which dtype.
    max_tokens: Any = None
    vocabulary_size: Any = None
    vocabulary_dtype: Any = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        if self.mask_token is not None and self.output_mode != "int":
            raise ValueError(
                f"mask_token={self.mask_token} with output_mode={self.output_mode!r} has no counterpart here"
            )
        self.check_shape(place.shape)
        if not self.vocabulary:
            raise ValueError(
                "it was adapted to data, and its vocabulary is not in the file: in Keras, make the layer anew with "
                "vocabulary=layer.get_vocabulary(), and save"
            )
        first = 0 if self.mask_token is None else 1
        # Keras takes a vocabulary with the tokens that stand for no number of it, or without.
        special = [] if self.mask_token is None else [self.mask_token]
        special += [self.oov_token] * self.num_oov_indices
        vocabulary = self.vocabulary[len(special) :] if self.vocabulary[: len(special)] == special else self.vocabulary
        if not vocabulary or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"its vocabulary {str(vocabulary)[:80]} has no number, or one twice")
        masked, spare = self.mask_token, self.num_oov_indices
        return IntegerLookup(vocabulary, first, spare, masked, self.output_mode, self.variable_dtype)


CLASSES: dict[str, type[Arguments]] = {
    "CategoryEncoding": CategoryEncodingArguments,
    "Discretization": DiscretizationArguments,
    "IntegerLookup": IntegerLookupArguments,
}
