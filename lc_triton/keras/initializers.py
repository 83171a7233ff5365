"""Keras's initializers. Their fans are those of one position, which is a small dense layer.

Keras takes the fans of the whole variable, so that its glorot, he and lecun scales come out sqrt(P) too small with
implementation 1 and smaller yet with the others; `fan_mode="keras"` reproduces that. An initializer is called with the
shape of a Keras variable and returns a tensor of it: for a kernel `(P, D, F)`, and that of the layer's own
implementation where the fans are to be Keras's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lc_triton.core.arguments import check_int, check_name
from lc_triton.errors import ArgumentValueError
from lc_triton.keras.registry import as_tensor, check_number, lookup

# A normal cut at two standard deviations has this standard deviation; VarianceScaling divides by it.
TRUNCATED_STD = 0.87962566103423978

FAN_MODES = ("position", "keras")


@dataclass(frozen=True)
class Initializer:
    """The base of all initializers: a call with a shape, a dtype and a device."""

    def __call__(
        self, shape: Sequence[int], dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """A new tensor of `shape`, drawn on `device` in `dtype`."""
        dtype = dtype or torch.get_default_dtype()
        largest = torch.finfo(dtype).max
        for name, value in vars(self).items():
            if isinstance(value, float) and abs(value) > largest:
                raise ArgumentValueError(
                    name=name,
                    value=value,
                    allowed=f"within {largest:.3g}, the largest {str(dtype).removeprefix('torch.')}",
                )
        # 16-bit values are drawn in float32: the tails of a normal need more bits than they keep.
        draw = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        tensor = torch.empty(tuple(shape), dtype=draw, device=device)
        if not tensor.is_meta:
            with torch.no_grad():
                self.fill_(tensor)
        return tensor.to(dtype)

    def fill_(self, tensor: Tensor) -> None:
        """Overwrite `tensor`, whose last two axes are the window and the filters of one position."""
        raise NotImplementedError


@dataclass(frozen=True)
class Zeros(Initializer):
    """All zeros."""

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102  # as the base
        tensor.zero_()


@dataclass(frozen=True)
class Ones(Initializer):
    """All ones."""

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        tensor.fill_(1.0)


@dataclass(frozen=True)
class Constant(Initializer):
    """All `value`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        check_number("value", self.value)

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        tensor.fill_(self.value)


@dataclass(frozen=True)
class _Random(Initializer):
    def _check_seed(self, seed: int | None) -> None:
        if seed is not None:
            object.__setattr__(self, "seed", check_int("seed", seed, 0, 2**64 - 1))

    def _generator(self, tensor: Tensor, seed: int | None) -> torch.Generator | None:
        return None if seed is None else torch.Generator(tensor.device).manual_seed(seed)


@dataclass(frozen=True)
class RandomNormal(_Random):
    """Normal numbers of a mean and a standard deviation."""

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("stddev", self.stddev, 0)
        self._check_seed(self.seed)

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        tensor.normal_(self.mean, self.stddev, generator=self._generator(tensor, self.seed))


@dataclass(frozen=True)
class RandomUniform(_Random):
    """Uniform numbers between `minval` and `maxval`."""

    minval: float = -0.05
    maxval: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("minval", self.minval)
        check_number("maxval", self.maxval, self.minval)
        self._check_seed(self.seed)

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        tensor.uniform_(self.minval, self.maxval, generator=self._generator(tensor, self.seed))


@dataclass(frozen=True)
class TruncatedNormal(_Random):
    """Normal numbers, redrawn beyond two standard deviations; `stddev` is that of the uncut normal."""

    mean: float = 0.0
    stddev: float = 0.05
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("stddev", self.stddev, 0)
        self._check_seed(self.seed)

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        _truncated_(tensor, self.mean, self.stddev, self._generator(tensor, self.seed))


def _truncated_(tensor: Tensor, mean: float, std: float, generator: torch.Generator | None) -> None:
    if std == 0:
        tensor.fill_(mean)
    else:
        torch.nn.init.trunc_normal_(tensor, mean, std, mean - 2 * std, mean + 2 * std, generator=generator)


MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")


@dataclass(frozen=True)
class VarianceScaling(_Random):
    """Numbers of variance scale / fan.

    Args:
        scale: above 0.
        mode: "fan_in", "fan_out" or "fan_avg".
        distribution: "truncated_normal", "untruncated_normal" or "uniform".
        seed: for the same numbers each time.
        fan_mode: "position" takes the fans of one position, D in and F out; "keras" those of the whole variable, as
            Keras does: P * D in and P * F out with implementation 1.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    seed: int | None = None
    fan_mode: str = "position"

    def __post_init__(self) -> None:
        check_number("scale", self.scale, 0, strictly=True)
        check_name("mode", self.mode, MODES)
        if self.distribution == "normal":
            object.__setattr__(self, "distribution", "truncated_normal")  # Keras's older name
        check_name("distribution", self.distribution, DISTRIBUTIONS)
        check_name("fan_mode", self.fan_mode, FAN_MODES)
        self._check_seed(self.seed)

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        _scaled_(tensor, self.scale, self.mode, self.distribution, self.fan_mode, self._generator(tensor, self.seed))


def _scaled_(
    tensor: Tensor, scale: float, mode: str, distribution: str, fan_mode: str, generator: torch.Generator | None
) -> None:
    fan_in, fan_out = fans(tensor.shape, fan_mode)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    variance = scale / max(1.0, fan)
    if distribution == "uniform":
        limit = math.sqrt(3 * variance)
        tensor.uniform_(-limit, limit, generator=generator)
    elif distribution == "untruncated_normal":
        tensor.normal_(0.0, math.sqrt(variance), generator=generator)
    else:
        _truncated_(tensor, 0.0, math.sqrt(variance) / TRUNCATED_STD, generator)


def fans(shape: Sequence[int], fan_mode: str = "position") -> tuple[int, int]:
    """The fan_in and fan_out of a Keras-shaped variable such as (P, D, F)."""
    if len(shape) < 2:
        return (shape[0], shape[0]) if shape else (1, 1)
    positions = math.prod(shape[:-2]) if fan_mode == "keras" else 1
    return positions * shape[-2], positions * shape[-1]


@dataclass(frozen=True)
class _Named(_Random):
    """A variance scaling with a name of its own."""

    seed: int | None = None
    fan_mode: str = "position"

    _rule: ClassVar[tuple[float, str, str]]

    def __post_init__(self) -> None:
        check_name("fan_mode", self.fan_mode, FAN_MODES)
        self._check_seed(self.seed)

    def fill_(self, tensor: Tensor) -> None:
        _scaled_(tensor, *self._rule, self.fan_mode, self._generator(tensor, self.seed))


@dataclass(frozen=True)
class GlorotUniform(_Named):
    """Uniform, variance 2 / (D + F). Source: Glorot and Bengio, AISTATS 2010."""

    _rule = (1.0, "fan_avg", "uniform")


@dataclass(frozen=True)
class GlorotNormal(_Named):
    """Truncated normal, variance 2 / (D + F). Source: Glorot and Bengio, AISTATS 2010."""

    _rule = (1.0, "fan_avg", "truncated_normal")


@dataclass(frozen=True)
class HeUniform(_Named):
    """Uniform, variance 2 / D. Source: He et al., ICCV 2015."""

    _rule = (2.0, "fan_in", "uniform")


@dataclass(frozen=True)
class HeNormal(_Named):
    """Truncated normal, variance 2 / D. Source: He et al., ICCV 2015."""

    _rule = (2.0, "fan_in", "truncated_normal")


@dataclass(frozen=True)
class LecunUniform(_Named):
    """Uniform, variance 1 / D. Source: LeCun et al., "Efficient Backprop", 1998."""

    _rule = (1.0, "fan_in", "uniform")


@dataclass(frozen=True)
class LecunNormal(_Named):
    """Truncated normal, variance 1 / D. Source: LeCun et al., "Efficient Backprop", 1998."""

    _rule = (1.0, "fan_in", "truncated_normal")


@dataclass(frozen=True)
class Orthogonal(_Random):
    """A random matrix with orthonormal rows or columns, (D, F), for each position. Source: Saxe et al., ICLR 2014."""

    gain: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("gain", self.gain)
        self._check_seed(self.seed)

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        rows, cols = _matrix("orthogonal", tensor)
        tall = (*tensor.shape[:-2], max(rows, cols), min(rows, cols))
        normal = torch.randn(
            tall, dtype=tensor.dtype, device=tensor.device, generator=self._generator(tensor, self.seed)
        )
        q, r = torch.linalg.qr(normal)
        q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes the distribution uniform
        tensor.copy_(self.gain * (q if rows >= cols else q.mT))


@dataclass(frozen=True)
class Identity(Initializer):
    """The identity matrix for each position, where a window has as many numbers as there are filters."""

    gain: float = 1.0

    def __post_init__(self) -> None:
        check_number("gain", self.gain)

    def fill_(self, tensor: Tensor) -> None:  # noqa: D102
        rows, cols = _matrix("identity", tensor)
        if rows != cols:
            allowed = f"another here: a window has {rows} numbers, there are {cols} filters, identity needs as many"
            raise ArgumentValueError(name="kernel_initializer", value="identity", allowed=allowed)
        tensor.copy_(self.gain * torch.eye(rows, dtype=tensor.dtype, device=tensor.device).expand_as(tensor))


def _matrix(name: str, tensor: Tensor) -> tuple[int, int]:
    if tensor.ndim < 2:
        raise ArgumentValueError(name="initializer", value=name, allowed="used for a kernel: it makes matrices")
    return tensor.shape[-2], tensor.shape[-1]


INITIALIZERS: dict[str, type] = {
    "zeros": Zeros,
    "zero": Zeros,
    "ones": Ones,
    "one": Ones,
    "constant": Constant,
    "random_normal": RandomNormal,
    "normal": RandomNormal,
    "random_uniform": RandomUniform,
    "uniform": RandomUniform,
    "truncated_normal": TruncatedNormal,
    "variance_scaling": VarianceScaling,
    "glorot_uniform": GlorotUniform,
    "glorot_normal": GlorotNormal,
    "he_uniform": HeUniform,
    "he_normal": HeNormal,
    "lecun_uniform": LecunUniform,
    "lecun_normal": LecunNormal,
    "orthogonal": Orthogonal,
    "identity": Identity,
}
INITIALIZERS |= {cls.__name__: cls for cls in INITIALIZERS.values()}


def by_window(initializer: Any) -> bool:
    """Whether it draws windows `(P, D, F)`; others draw the variable in Keras's layout, on which their fans depend."""
    return getattr(initializer, "fan_mode", "position") == "position"


def get(identifier: Any) -> Any:
    """The initializer a name, configuration or callable stands for.

    Args:
        identifier: a name such as "he_normal" or "HeNormal", `{"class_name": ..., "config": {...}}`, or a callable
            `(shape, dtype)` that returns a tensor.

    Raises:
        LocalConvError: an unknown name, with the nearest one, or a constant out of range.

    Source: `tf_keras.initializers`.

    Example:
        >>> get("he_normal") == HeNormal()
        True
    """
    if identifier is None:
        return Zeros()
    return lookup("initializer", identifier, INITIALIZERS)


def draw(initializer: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What an initializer gives for `shape`; a user's callable gets `(shape, dtype)`, and its result is checked."""
    if isinstance(initializer, Initializer):
        return initializer(shape, dtype, device)
    value = as_tensor("what the initializer returned", initializer(shape, dtype))
    if tuple(value.shape) != tuple(shape):
        raise ArgumentValueError(
            name="shape of what the initializer returned", value=tuple(value.shape), allowed=f"{shape}"
        )
    return value
