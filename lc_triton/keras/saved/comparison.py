"""The outputs of a converted model beside those that Keras computed of the same inputs."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lc_triton.errors import ArgumentValueError, first_line
from lc_triton.keras.saved.arguments import policy_name
from lc_triton.keras.saved.evaluation import input_dtypes
from lc_triton.keras.saved.graph import Model
from lc_triton.keras.saved.references import Keys

# Over the largest output. Keras and torch sum in other orders, and layers pass on what that makes of each.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}

# The dtypes in which Keras computes what has float32 weights.
_MIXED = {"mixed_float16": torch.float16, "mixed_bfloat16": torch.bfloat16}

# A file does not say in which order it has the entries of a dictionary: all orders of so many are tried.
_MOST_PERMUTED = 3


@dataclass(frozen=True)
class Comparison:
    """The largest difference over the largest output, and the dtype whose tolerance it has.

    `policy` is the policy of mixed precision because of which that is not the dtype of the weights.
    """

    error: float
    dtype: torch.dtype
    policy: str | None


def compare(model: Model, path: Path) -> Comparison:
    """Compare a model with the arrays of an `.npz` file: x or x0, x1, ..., and y or y0, y1, ...

    Where inputs or outputs are a dictionary in Keras, arrays may have its keys for names instead.

    Raises:
        ArgumentValueError: a file without such arrays, or arrays that do not fit the model.
    """
    arrays = _arrays(path)
    dtype, policy = _precision(model)
    wanted = _ordered(arrays, "y", model.keras.output_keys, path)
    errors: list[float] = []
    failure: ArgumentValueError | None = None
    for inputs in _ordered(arrays, "x", model.keras.input_keys, path):
        try:
            outputs = _computed(model, inputs, path)
        except ArgumentValueError as error:
            failure = failure or error
            continue
        fitting = [found for found in wanted if _shapes(found) == _shapes(outputs)]
        if not fitting:
            allowed = f"outputs of shape {', '.join(map(str, _shapes(outputs)))}"
            failure = ArgumentValueError(name="y in --check", value=_shapes(wanted[0]), allowed=allowed)
        errors += [_difference(outputs, found) for found in fitting]
    if failure is not None and not errors:
        raise failure
    return Comparison(min(errors), dtype, policy)


def _precision(model: Model) -> tuple[torch.dtype, str | None]:
    """The coarsest of the dtypes that Keras computed in, and the policy that it is from."""
    dtypes: list[tuple[torch.dtype, str | None]] = [
        (p.dtype, None) for p in model.parameters() if p.is_floating_point()
    ]
    for _, layer in model.keras.all_layers():
        policy = policy_name(layer.config.get("dtype"))
        if policy in _MIXED:
            dtypes.append((_MIXED[policy], policy))
    return max(dtypes or [(torch.float32, None)], key=lambda found: TOLERANCES[found[0]])


def _computed(model: Model, inputs: list[Tensor], path: Path) -> list[Tensor]:
    dtypes = input_dtypes(model.keras)
    model.reset_states()
    try:
        with torch.no_grad():
            found = model(*(x.to(dtype) for x, dtype in zip(inputs, dtypes, strict=True)))
    except (RuntimeError, TypeError, ValueError) as error:
        allowed = f"inputs that fit the model ({first_line(error)})"
        raise ArgumentValueError(name="--check", value=str(path), allowed=allowed) from error
    finally:
        model.reset_states()
    if isinstance(found, dict):
        return list(found.values())
    return list(found) if isinstance(found, tuple) else [found]


def _difference(outputs: list[Tensor], wanted: list[Tensor]) -> float:
    found = [
        ((y.double() - w.double()).abs().max() / w.double().abs().max().clamp(min=1e-300)).item()
        for y, w in zip(outputs, wanted, strict=True)
        if w.numel()
    ]
    return float("inf") if any(e != e for e in found) else max(found, default=0.0)


def _shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors]


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file, which is not trusted either."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, AttributeError) as error:
        raise ArgumentValueError(
            name="--check", value=str(path), allowed=f"an .npz file ({first_line(error)})"
        ) from error


def _ordered(arrays: dict[str, Tensor], letter: str, keys: Keys, path: Path) -> list[list[Tensor]]:
    """The arrays of one side in the order of the model, or in each order that the entries of a dictionary may have."""
    if keys is not None and all(key in arrays for key in keys):
        return [[arrays[key] for key in keys]]
    found = _numbered(arrays, letter, path)
    if keys is None or len(found) != len(keys):
        return [found]
    by_key = dict(zip(sorted(keys), found, strict=True))
    few = len(keys) <= _MOST_PERMUTED
    return list(map(list, permutations(found))) if few else [found, [by_key[key] for key in keys]]


def _numbered(arrays: dict[str, Tensor], letter: str, path: Path) -> list[Tensor]:
    """The array x, or x0, x1, ..."""
    if letter in arrays:
        return [arrays[letter]]
    found: list[Tensor] = []
    while (name := f"{letter}{len(found)}") in arrays:
        found.append(arrays[name])
    if not found:
        allowed = "a file with arrays x and y, as np.savez(path, x=x, y=model.predict(x)) makes it"
        raise ArgumentValueError(name="--check", value=f"{path} with {', '.join(arrays)[:200]}", allowed=allowed)
    return found
