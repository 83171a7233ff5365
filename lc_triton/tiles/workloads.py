"""Layers to tune, inspect or time, read from a JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lc_triton.core.arguments import check_int
from lc_triton.core.geometry import Geometry
from lc_triton.core.share import parse_share
from lc_triton.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    GroupsError,
    KernelTooLargeError,
    LocalConvError,
    PaddingError,
    UnknownNameError,
    WorkloadError,
)
from lc_triton.tiles.config import Pass
from lc_triton.tiles.task import Task, types_of


@dataclass(frozen=True)
class Workload:
    """A named layer and the batches it is used at.

    Args:
        name: for the commands' --workload.
        geometry: the layer.
        batches: B, one or more.
        source: where the shape comes from.
    """

    name: str
    geometry: Geometry
    batches: tuple[int, ...]
    source: str = ""


@dataclass(frozen=True)
class _Fields:
    """The fields of an entry of the file; `input` is (*spatial, C), `padding` counts sites a side."""

    name: str
    input: list[int]
    kernel: list[int]
    filters: int
    batches: list[int]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    share: Any = None
    source: str = ""


def read(path: Path) -> dict[str, Workload]:
    """The workloads of a file, `{"workloads": [{"name": ..., "input": [H, W, C], ...}, ...]}`, by name.

    Raises:
        WorkloadError: a file that cannot be read, or an entry that is wrong: its line and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WorkloadError(path=path, line=1, reason=f"it cannot be read ({error})") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise WorkloadError(path=path, line=error.lineno, reason=f"it is no JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise WorkloadError(path=path, line=1, reason=f"it cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("workloads"), list):
        raise WorkloadError(path=path, line=1, reason='it must be an object with a list "workloads"')
    found: dict[str, Workload] = {}
    for entry, (start, places) in zip(content["workloads"], _places(text), strict=True):
        field = ""
        try:
            known = {f.name: f for f in fields(_Fields)}
            if not isinstance(entry, dict):
                raise ArgumentTypeError(name="a workload", value=entry, allowed="an object")
            for field in entry:
                if field not in known:
                    raise UnknownNameError.of("field", field, known)
            field = ""
            required = [name for name in ("name", "input", "kernel", "filters", "batches") if name not in entry]
            if required:
                raise ArgumentTypeError(name=required[0], value=None, allowed="given")
            workload = _workload(_Fields(**entry))
            if workload.name in found:
                field = "name"
                raise ArgumentTypeError(name="name", value=workload.name, allowed="given once")
        except LocalConvError as error:
            field = field or _field_of(error)
            line = text.count("\n", 0, places.get(field, start)) + 1
            raise WorkloadError(path=path, line=line, reason=str(error)) from error
        found[workload.name] = workload
    return found


SHAPE_SYNTAX = (
    "like 63x63x16,k9,f16 (input sizes and channels, kernel, filters), then s, p, d, g for stride, padding, ..."
)
_LETTERS = {"k": "kernel", "f": "filters", "s": "stride", "p": "padding", "d": "dilation", "g": "groups"}


def parse_shape(text: str, batches: Sequence[int]) -> Workload:
    """The workload that one word describes.

    Args:
        text: input sizes and channels, kernel and filters, and where wanted stride, padding, dilation and groups, as
            in "63x63x16,k9,f16,s2,p4,d1,g1"; a pair of sizes is "k9x7".
        batches: B, one or more.

    Raises:
        LocalConvError: it describes no layer.

    Example:
        >>> parse_shape("63x63x16,k9,f16", [32]).geometry.out_spatial
        (55, 55)
    """
    first, *rest = text.split(",")
    options: dict[str, Any] = {}
    try:
        options["input"] = [int(n) for n in first.split("x")]
        for word in rest:
            name = _LETTERS[word[:1]]
            sizes = [int(n) for n in word[1:].split("x")]
            if name in options or (len(sizes) > 1 and name in ("filters", "groups")):
                raise ValueError
            options[name] = sizes if name == "kernel" or len(sizes) > 1 else sizes[0]
        if "kernel" not in options or "filters" not in options:
            raise ValueError
    except (ValueError, KeyError):
        raise ArgumentValueError(name="shape", value=text, allowed=SHAPE_SYNTAX) from None
    if options["kernel"][1:] == []:
        options["kernel"] *= max(1, len(options["input"]) - 1)
    return _workload(_Fields(name=text, batches=list(batches), **options))


def tasks(
    workloads: Iterable[Workload], batches: Sequence[int], dtypes: Sequence[str], passes: Sequence[Pass]
) -> dict[str, Task]:
    """The kernels of some workloads, each once, by labels.

    Args:
        workloads: the layers.
        batches: B; none for each workload's own.
        dtypes: as `types_of` reads them.
        passes: which kernels.
    """
    found: dict[str, Task] = {}
    found_keys = set()
    for workload in workloads:
        for batch in batches or workload.batches:
            for dtype in dtypes:
                for pass_name in passes:
                    task = Task(pass_name, workload.geometry, batch, *types_of(dtype))
                    if (pass_name, task.key) not in found_keys:
                        found_keys.add((pass_name, task.key))
                        found[f"{workload.name} batch {batch} {dtype} {pass_name}"] = task
    return found


# Fields of a file, by the arguments that the checks of a geometry name.
_RENAMED = {
    "kernel_size": "kernel",
    "out_channels": "filters",
    "in_channels": "input",
    "input_size": "input",
    "a period in share": "share",
    "the first entry of share": "share",
}


def _field_of(error: LocalConvError) -> str:
    """The field of an entry that an error is about."""
    if isinstance(error, KernelTooLargeError):
        return "kernel"
    if isinstance(error, PaddingError):
        return "padding"
    if isinstance(error, GroupsError):
        return "groups"
    name = str(error.fields.get("name", ""))
    return _RENAMED.get(name, name)


def _workload(entry: _Fields) -> Workload:
    for name in ("name", "source"):
        if not isinstance(getattr(entry, name), str):
            raise ArgumentTypeError(name=name, value=getattr(entry, name), allowed="a string")
    for name in ("input", "kernel", "batches"):
        if not isinstance(getattr(entry, name), list) or not getattr(entry, name):
            raise ArgumentTypeError(name=name, value=getattr(entry, name), allowed="a list of integers")
    if len(entry.input) not in (2, 3, 4):
        raise ArgumentTypeError(name="input", value=entry.input, allowed="[L, C], [H, W, C] or [D, H, W, C]")
    for size in entry.input:
        check_int("input", size, 1)
    *spatial, channels = entry.input
    geometry = Geometry.make(
        spatial,
        channels,
        entry.filters,
        entry.kernel,
        stride=entry.stride,
        padding=entry.padding,
        dilation=entry.dilation,
        groups=entry.groups,
        regions=parse_share(entry.share, len(spatial)),
    )
    return Workload(entry.name, geometry, tuple(check_int("batches", b, 1) for b in entry.batches), entry.source)


def _places(text: str) -> list[tuple[int, dict[str, int]]]:
    """Where each entry of the list "workloads" begins, and where the names of its fields do.

    `text` is known to be JSON. Of a name that stands twice the last counts, as for `json`.
    """
    entries = _fields_of(text, _skip(text, 0))["workloads"][1]
    found = []
    for place in _items(text, entries):
        fields_found = _fields_of(text, place) if text[place] == "{" else {}
        found.append((place, {name: at for name, (at, _) in fields_found.items()}))
    return found


def _fields_of(text: str, place: int) -> dict[str, tuple[int, int]]:
    """The name and the value of each field of the object at a place: where they begin."""
    found: dict[str, tuple[int, int]] = {}
    place = _skip(text, place + 1)
    while text[place] != "}":
        name, end = _decode(text, place)
        value = _skip(text, _skip(text, end) + 1)  # behind the colon
        found[name] = (place, value)
        place = _skip(text, _decode(text, value)[1])
        place = _skip(text, place + 1) if text[place] == "," else place
    return found


def _items(text: str, place: int) -> Iterator[int]:
    """Where each item of the list at a place begins."""
    place = _skip(text, place + 1)
    while text[place] != "]":
        yield place
        place = _skip(text, _decode(text, place)[1])
        place = _skip(text, place + 1) if text[place] == "," else place


def _skip(text: str, place: int) -> int:
    """The first place, from this one on, that is no white space."""
    while text[place] in " \t\r\n":
        place += 1
    return place


_decode = json.JSONDecoder().raw_decode
