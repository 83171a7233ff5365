"""What the padding of a layer holds, by one name or by one a dimension."""

from __future__ import annotations

from typing import TypeAlias

from lc_triton.core.arguments import check_name, several
from lc_triton.core.geometry import Geometry
from lc_triton.errors import ArgumentTypeError, LengthError, PaddingError

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

PaddingMode: TypeAlias = str | tuple[str, ...]
# A call of `torch.nn.functional.pad`: its mode, and the sides of each dimension, the last one first.
PadStep: TypeAlias = tuple[str, tuple[int, ...]]


def check_padding_mode(value: object, ndim: int) -> PaddingMode:
    """A padding mode as one name, or as a tuple of one a dimension where they differ.

    Example:
        >>> check_padding_mode(["replicate", "circular"], 2), check_padding_mode(("zeros", "zeros"), 2)
        (('replicate', 'circular'), 'zeros')
    """
    if isinstance(value, str):
        return check_name("padding_mode", value, PADDING_MODES)
    if not several(value):
        allowed = f"one of {', '.join(PADDING_MODES)}, or a sequence of one a dimension"
        raise ArgumentTypeError(name="padding_mode", value=value, allowed=allowed)
    if len(value) != ndim:
        raise LengthError(name="padding_mode", value=value, ndim=ndim, allowed=f"a name or {ndim} name(s)")
    modes = tuple(check_name("padding_mode", mode, PADDING_MODES) for mode in value)
    return modes[0] if len(set(modes)) == 1 else modes


def modes_of(geometry: Geometry, mode: PaddingMode) -> tuple[str, ...]:
    """The mode of each dimension; "zeros" for one without padding."""
    modes = (mode,) * geometry.ndim if isinstance(mode, str) else mode
    return tuple(m if any(pair) else "zeros" for m, pair in zip(modes, geometry.padding, strict=True))


def split_padding(geometry: Geometry, mode: PaddingMode) -> tuple[Geometry, tuple[PadStep, ...]]:
    """The geometry for an input that already has its padding other than zeros, and the steps of that padding.

    Padding with zeros stays in the geometry. There is one step a mode; their order does not matter.

    Raises:
        PaddingError: an input that is too small for so much reflect or circular padding.
    """
    modes = modes_of(geometry, mode)
    _check_width(geometry, modes)
    steps = []
    for name in sorted(set(modes) - {"zeros"}):
        pairs = [pair if m == name else (0, 0) for m, pair in zip(modes, geometry.padding, strict=True)]
        steps.append((name, tuple(side for pair in reversed(pairs) for side in pair)))
    return geometry.padded([d for d, m in enumerate(modes) if m != "zeros"]), tuple(steps)


def _check_width(geometry: Geometry, modes: tuple[str, ...]) -> None:
    """Refuse padding that torch does not do: above size - 1 for reflect, above size for circular."""
    for size, pair, mode in zip(geometry.in_spatial, geometry.padding, modes, strict=True):
        limit = {"reflect": size - 1, "circular": size}.get(mode)
        if limit is not None and max(pair) > limit:
            raise PaddingError(
                value=geometry.padding,
                reason=f"is too wide for padding_mode={mode!r}: an input of size {size} allows at most {limit} a side; "
                "pad less or use padding_mode='zeros'",
            )
