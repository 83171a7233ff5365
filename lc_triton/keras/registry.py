"""Look-up of Keras arguments by name, configuration or object."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lc_triton.errors import ArgumentTypeError, ArgumentValueError, UnknownNameError


def lookup(kind: str, identifier: Any, table: Mapping[str, type]) -> Any:
    """What `identifier` stands for: None, a name, `{"class_name": ..., "config": {...}}`, or a callable as it is."""
    if identifier is None:
        return None
    if isinstance(identifier, str):
        return _class(kind, identifier, table)()
    if isinstance(identifier, dict):
        config = {} if identifier.get("config") is None else identifier["config"]
        if "class_name" not in identifier or not isinstance(config, dict):
            allowed = 'a dict with "class_name" and "config" if it is a configuration'
            raise ArgumentValueError(name=kind, value=identifier, allowed=allowed)
        cls = _class(kind, identifier["class_name"], table)
        known = {f.name for f in dataclasses.fields(cls)}
        for name in config:
            if name not in known:
                raise UnknownNameError.of(f"{kind} {identifier['class_name']} argument", name, known or {"none"})
        return cls(**config)
    if callable(identifier) and not isinstance(identifier, type):
        return identifier
    raise ArgumentTypeError(name=kind, value=identifier, allowed="None, a name, a configuration or a callable object")


def serialize(kind: str, value: Any) -> dict[str, Any] | None:
    """The configuration `lookup` turns back into `value`; only our own objects have one."""
    if value is None:
        return None
    if not type(value).__module__.startswith(f"{__package__}."):
        allowed = f"a named {kind.split('_')[-1]} to be written into a configuration"
        raise ArgumentTypeError(name=kind, value=value, allowed=allowed)
    config = dataclasses.asdict(value)
    if config.get("fan_mode") == "position":  # Keras has no such argument, and the default need not be written
        del config["fan_mode"]
    return {"class_name": type(value).__name__, "config": config}


def as_tensor(name: str, value: Any) -> Tensor:
    """An array, a tensor or nested lists of real numbers as a CPU or device tensor.

    Raises:
        ArgumentTypeError: anything else, a sparse, nested or quantized tensor among it.
    """
    allowed = "an array or tensor of real numbers"
    try:
        tensor = torch.as_tensor(_for_torch(value))
    except Exception as error:  # of any kind: a class of the user's own may make the array
        raise ArgumentTypeError(name=name, value=value, allowed=allowed) from error
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        raise ArgumentTypeError(name=name, value=value, allowed="a dense array or tensor of real numbers")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ArgumentTypeError(name=name, value=value, allowed=allowed)
    return tensor


def _for_torch(value: Any) -> Any:
    """An array as torch reads it: in this machine's byte order, of up to 64 bits a number, not read backwards."""
    if isinstance(value, Tensor) or not hasattr(value, "__array__"):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        return array
    dtype = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return np.require(array, dtype, ["C", "W"])  # torch warns of memory that cannot be written


def _class(kind: str, name: object, table: Mapping[str, type]) -> type:
    if not isinstance(name, str) or name not in table:
        raise UnknownNameError.of(kind, str(name), table)
    return table[name]


def check_model(value: object) -> None:
    """Refuse a value that is no module."""
    if not isinstance(value, nn.Module):
        raise ArgumentTypeError(name="model", value=value, allowed="a torch.nn.Module")


def check_number(name: str, value: object, minimum: float = float("-inf"), *, strictly: bool = False) -> None:
    """Refuse what is no finite number of at least (or, strictly, above) `minimum`."""
    bound = "" if minimum == float("-inf") else f" {'>' if strictly else '>='} {minimum:g}"
    allowed = f"a finite number{bound}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(name=name, value=value, allowed=allowed)
    largest = 2**63 - 1 if isinstance(value, int) else sys.float_info.max  # of those that torch takes
    if not abs(value) <= largest or value < minimum or (strictly and value == minimum):
        raise ArgumentValueError(name=name, value=value, allowed=allowed)
