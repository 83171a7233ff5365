"""Modules of a user's own in the place of layers that cannot be read: Lambda, custom classes."""

from __future__ import annotations

import copy
import runpy
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ConversionError, first_line
from lc_triton.keras.saved import masks
from lc_triton.keras.saved.arguments import Shape
from lc_triton.keras.saved.slots import Slot, same_layout
from lc_triton.keras.saved.spec import LayerSpec, ModelSpec
from lc_triton.keras.saved.spec import Path as Names


@dataclass(frozen=True)
class KerasLayer:
    """The description that a factory is given of the layer whose place its module takes.

    `path` is the name with those of the models it is inside of (`"encoder/scale"`), `config` are the layer's arguments
    as Keras wrote them, `input_shapes` have no batch, and `dtype` is that of its weights.
    """

    name: str
    path: str
    class_name: str
    config: Mapping[str, Any]
    input_shapes: tuple[Shape, ...]
    dtype: torch.dtype


# Makes the module, or the function of tensors, that computes what the layer does.
Factory: TypeAlias = Callable[[KerasLayer], "nn.Module | Callable[..., Any]"]
Modules: TypeAlias = Mapping[str, Factory]


def check(modules: object) -> dict[str, Factory]:
    """The factories of `modules=`."""
    if modules is None:
        return {}
    allowed = '{"layer name or class name": lambda layer: module}'
    if not isinstance(modules, Mapping):
        raise ArgumentTypeError(name="modules", value=modules, allowed=allowed)
    for name, factory in modules.items():
        if not isinstance(name, str) or isinstance(factory, nn.Module) or not callable(factory):
            hint = "; for a module that is made already: lambda layer: module" if isinstance(factory, nn.Module) else ""
            raise ArgumentTypeError(name=f"modules[{name!r}]", value=factory, allowed=f"a factory, as {allowed}{hint}")
    return dict(modules)


def from_file(path: Path) -> dict[str, Factory]:
    """The factories that a Python file of the user's own assigns to `modules`; the file is run.

    Raises:
        ArgumentValueError: no such file, one that raises, or one without `modules`.
    """
    allowed = 'a Python file with modules = {"layer name or class name": lambda layer: module}'
    if not path.is_file():
        raise ArgumentValueError(name="--modules", value=str(path), allowed=f"{allowed}; it is no file")
    try:
        names = runpy.run_path(str(path))
    except Exception as error:  # of the user's own code
        raise ArgumentValueError(
            name="--modules", value=str(path), allowed=f"{allowed} ({first_line(error)})"
        ) from error
    if "modules" not in names:
        raise ArgumentValueError(name="--modules", value=str(path), allowed=f"{allowed}; it assigns no modules")
    return check(names["modules"])


def check_used(modules: Mapping[str, Factory], spec: ModelSpec) -> None:
    """Refuse a name that is no layer and no class of the model: it would be left out in silence."""
    known = {name for path, layer in spec.all_layers() for name in _names(path, layer)}
    for name in modules:
        if name not in known:
            present = sorted({f"{'/'.join(path)} ({layer.class_name})" for path, layer in spec.all_layers()})
            listed = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
            raise ArgumentValueError(name="modules", value=name, allowed=f"names of layers or classes: {listed}")


# How many layers the line has that tells a user how to replace them.
_MOST_IN_HINT = 4


def hint(spec: ModelSpec, layers: list[tuple[Names, LayerSpec]], known: Container[str]) -> str:
    """The line to write for layers that cannot be read; those of classes that are known here go by their names.

    Nothing for calls that no tensor reaches: a module would have nothing to compute from.
    """
    count = Counter(layer.name for _, layer in spec.all_layers())
    keys = []
    for path, layer in layers:
        if layer.calls and not any(list(call.refs()) for call in layer.calls):
            continue
        own = layer.class_name not in known and layer.class_name != "Lambda"
        name = layer.name if count[layer.name] == 1 else "/".join(path)
        keys.append(layer.class_name if own else name)
    entries = [f'"{key}": lambda layer: MyModule()' for key in dict.fromkeys(keys)]
    entries = entries[:_MOST_IN_HINT] + ["..."] * (len(entries) > _MOST_IN_HINT)
    if not entries:
        return ""
    return (
        f". A torch module of yours can take a layer's place: load_model(path, modules={{{', '.join(entries)}}}), or "
        "lc-triton convert --modules FILE.py, a file that assigns these modules"
    )


def find(modules: Mapping[str, Factory], path: Names, layer: LayerSpec) -> Factory | None:
    """The factory for a layer: by the path to it, by its name or by its class."""
    return next((modules[name] for name in _names(path, layer) if name in modules), None)


def _names(path: Names, layer: LayerSpec) -> tuple[str, ...]:
    registered = [f"{layer.package}>{layer.class_name}"] if layer.package else []
    return ("/".join(path), layer.name, *registered, layer.class_name)


class Called(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*inputs, **kwargs)

    def extra_repr(self) -> str:
        """The function."""
        return getattr(self.function, "__name__", repr(self.function))


def make(factory: Factory, layer: KerasLayer) -> nn.Module:
    """The module of a factory, on the CPU with its own numbers.

    Raises:
        ConversionError: a factory that raises, or that makes something else.
    """
    name = f"layer {layer.path!r} ({layer.class_name})"
    try:
        made = factory(layer)
    except Exception as error:  # of the user's own code
        reason = f"its factory of modules= raised {type(error).__name__}: {first_line(error)}"
        raise ConversionError(name=name, reason=reason) from error
    if callable(made) and not isinstance(made, type):
        module = made if isinstance(made, nn.Module) else Called(made)
        setattr(module, masks.STANDS_FOR, layer.class_name)
        return module
    reason = f"its factory of modules= made a {type(made).__name__}, no torch module and no function of tensors"
    raise ConversionError(name=name, reason=reason)


# Of a module that cannot do without numbers: as many as are made to see the shapes of its outputs.
MOST_NUMBERS = 1 << 24


def output(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], here: tuple[masks.Mask, ...]
) -> tuple[Any, tuple[masks.Mask, ...]]:
    """What a user's own module returns for inputs without memory: a copy of it without memory is called on them."""
    failure = ""
    for device in ("meta", "cpu"):
        sizes = sum(arg.numel() for arg in args if isinstance(arg, Tensor))
        if device == "cpu" and sizes > MOST_NUMBERS:
            break
        there = partial(_moved, device=device)
        try:
            with torch.no_grad(), torch.device(device):
                copied = copy.deepcopy(module).to(device).eval()
                found = masks.call(copied, there(args), there(dict(kwargs)), there(here))
        except Exception as error:  # of the user's own code
            failure = first_line(error)
            continue
        if not _is_tensors(found[0]):
            raise ValueError(f"its module of modules= returned {type(found[0]).__name__}, no tensor or several")
        moved: tuple[Any, tuple[masks.Mask, ...]] = _moved(found, "meta")
        return moved
    raise ValueError(f"its module of modules= failed on zeros of the shapes of its inputs: {failure}")


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros_like(value, device=device)
    if isinstance(value, dict):
        return {key: _moved(entry, device) for key, entry in value.items()}
    return type(value)(_moved(entry, device) for entry in value) if isinstance(value, (list, tuple)) else value


def _is_tensors(output: object) -> bool:
    """Whether a module returned tensors: one, or several in a tuple, a list or a dictionary."""
    if isinstance(output, dict):
        return all(isinstance(value, Tensor) for value in output.values())
    found = output if isinstance(output, (tuple, list)) else [output]
    return bool(found) and all(isinstance(value, Tensor) for value in found)


def own_slots(module: nn.Module, slots: Callable[[nn.Module], list[Slot]], part: str = "") -> list[Slot]:
    """The arrays of a module of a user's own: parameters, then buffers, and those of the modules inside of it.

    Modules that Keras has too have Keras's layout; anything else has its array's. Modules inside are the parts of the
    same name.
    """
    known = slots(module)
    if known:
        return [replace(slot, part="/".join(filter(None, (part, slot.part)))) for slot in known]
    found: list[Slot] = []
    for name, tensor in module.named_parameters(recurse=False):
        found += [replace(slot, part=part) for slot in same_layout(name, module, name) if tensor is not None]
    for name, _ in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            found += [replace(slot, part=part) for slot in same_layout(name, module, name, trained=False)]
    for name, child in module.named_children():
        found += own_slots(child, slots, "/".join(filter(None, (part, name))))
    return found
