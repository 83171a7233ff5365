"""Which outputs a call of a layer takes, as Keras 2 and Keras 3 write it in a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias


class NotUnderstood(Exception):
    """A configuration of another form than Keras writes."""


class Ref(NamedTuple):
    """One output of one call of a layer: the layer's name, the number of the call, and the number of the output."""

    layer: str
    call: int
    output: int = 0


@dataclass(frozen=True)
class Constant:
    """A number, or a list of numbers, where a call could have had a tensor."""

    value: Any


# The keys of tensors that are given, or returned, in a dictionary.
Keys: TypeAlias = tuple[str, ...] | None


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    `args` are the tensors of Keras's first argument, a dictionary if it has `keys`; `first` is that argument as it was,
    tensors in lists of lists. `kwargs` are the other arguments, plain values of JSON in which each tensor is its `Ref`.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    first: Any = None
    keys: Keys = None

    def refs(self) -> Iterator[Ref]:
        """All tensors that the call takes."""
        yield from refs_in(self.args)
        yield from refs_in(dict(self.kwargs))


_CONSTANT = "_CONSTANT_VALUE"
_TENSOR = "__keras_tensor__"
_DEEPEST = 64


def calls(nodes: object) -> Iterator[Call]:
    """The calls of a layer, from its `inbound_nodes`."""
    for node in as_list(nodes, "inbound_nodes"):
        if isinstance(node, dict) and "args" in node:
            yield _keras_3(node)
        else:
            yield _keras_2(node)


def ends(value: object) -> tuple[tuple[Ref, ...], Keys]:
    """The inputs or outputs of a model, and their keys if the model names them."""
    if isinstance(value, dict):
        found = [list(_refs(entry)) for entry in value.values()]
        if any(len(refs) != 1 for refs in found):
            raise NotUnderstood(f"a dictionary of other things than tensors: {str(value)[:80]}")
        return tuple(refs[0] for refs in found), tuple(map(str, value))
    return tuple(_refs(value)), None


def refs_in(value: object) -> Iterator[Ref]:
    """The references in the arguments of a call."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from refs_in(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from refs_in(entry)


def as_mapping(value: object, what: str) -> dict[str, Any]:
    """The value, which should be a mapping."""
    if not isinstance(value, dict):
        raise NotUnderstood(f"{what} should be a mapping, got {str(value)[:80]}")
    return value


def as_list(value: object, what: str) -> list[Any]:
    """The value, which should be a list."""
    if not isinstance(value, list):
        raise NotUnderstood(f"{what} should be a list, got {str(value)[:80]}")
    return value


def _keras_2(node: object) -> Call:
    """A call as nested lists of `[layer, call, output, arguments]`; each has the arguments of the whole call."""
    args: list[Ref | Constant] = []
    kwargs: dict[str, Any] = {}
    for items in _entries(node):
        if len(items) == 4:
            given = as_mapping(items[3], "a call's arguments")
            kwargs |= {str(name): _argument(value) for name, value in given.items()}
        args.append(_entry(items))
    keys = tuple(map(str, node)) if isinstance(node, dict) and len(node) == len(args) else None
    return Call(tuple(args), kwargs, _nested(node), keys)


def _nested(node: object) -> Any:
    """The first argument of a call as it was."""
    if isinstance(node, dict):
        return {str(key): _nested(entry) for key, entry in node.items()}
    items = as_list(node, "a reference to a layer")
    return _entry(items) if items and isinstance(items[0], str) else [_nested(item) for item in items]


def _entry(items: list[Any]) -> Ref | Constant:
    return Constant(items[2]) if items[0] == _CONSTANT else _ref(items)


def _entries(value: object, depth: int = 0) -> Iterator[list[Any]]:
    if isinstance(value, dict):
        value = list(value.values())
    items = as_list(value, "a reference to a layer")
    if depth > _DEEPEST:
        raise NotUnderstood("references nested too deeply")
    if items and isinstance(items[0], str):
        if not 3 <= len(items) <= 4:
            raise NotUnderstood(f"a reference to a layer that cannot be read: {str(items)[:80]}")
        yield items
        return
    for item in items:
        yield from _entries(item, depth + 1)


def _ref(items: list[Any]) -> Ref:
    name, call, output = items[:3]
    if type(call) is not int or type(output) is not int or not 0 <= output < 1 << 16:
        raise NotUnderstood(f"a reference to a layer that cannot be read: {str(items)[:80]}")
    return Ref(name, call, output)


def _refs(value: object) -> Iterator[Ref]:
    yield from map(_ref, _entries(value))


def _argument(value: Any, depth: int = 0) -> Any:
    """An argument of a call, its tensors as references."""
    if depth > _DEEPEST:
        raise NotUnderstood("arguments nested too deeply")
    if isinstance(value, dict):
        if value.get("class_name") == _TENSOR:
            return _history(value)
        return {str(key): _argument(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list):
        tensor = len(value) in (3, 4) and isinstance(value[0], str) and value[0] != _CONSTANT
        if tensor and all(type(number) is int for number in value[1:3]):
            return _ref(value)
        if len(value) in (3, 4) and value[0] == _CONSTANT:
            return value[2]
        return [_argument(entry, depth + 1) for entry in value]
    return value


def _keras_3(node: dict[str, Any]) -> Call:
    """A call as its arguments, whose tensors have their history."""
    given = as_list(node.get("args"), "a call's args")
    kwargs = as_mapping(node.get("kwargs") or {}, "a call's arguments")
    args: list[Ref | Constant] = []
    for value in given:
        args += _tensors(value)
    return Call(tuple(args), {str(name): _argument(value) for name, value in kwargs.items()}, tuple(args))


def _tensors(value: object) -> Iterator[Ref]:
    if isinstance(value, list):
        for item in value:
            yield from _tensors(item)
        return
    tensor = as_mapping(value, "an argument of a layer")
    if tensor.get("class_name") != _TENSOR:
        raise NotUnderstood(f"an argument of a layer that is no tensor: {str(value)[:80]}")
    yield _history(tensor)


def _history(tensor: dict[str, Any]) -> Ref:
    history = as_mapping(tensor.get("config"), "a tensor's config").get("keras_history")
    found = list(_refs(history))
    if len(found) != 1:
        raise NotUnderstood(f"a tensor without history: {str(tensor)[:80]}")
    return found[0]
