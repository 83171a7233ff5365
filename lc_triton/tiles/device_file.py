"""A user's own devices, read from a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from lc_triton.core.arguments import check_int
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, DeviceFileError, LocalConvError, UnknownNameError
from lc_triton.tiles.device import Device

_COUNTS = ("multiprocessors", "shared_bytes", "warps", "registers", "lanes")
_RATES = ("memory_rate", "l2_rate", "tensor_rate", "clock")
_TEXTS = ("name", "full_name", "note")


def read(path: Path) -> dict[str, Device]:
    """The devices of a file, `{"devices": [{"name": ..., "arch": 89, ...}, ...]}`, by name.

    Each has the fields of `Device`; those with a default may be left out. `lc-triton env --devices` prints such a file
    for the GPUs of a machine.

    Raises:
        DeviceFileError: a file that cannot be read, or an entry that is wrong: its number and field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeviceFileError(path=path, reason=f"it cannot be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("devices"), list):
        raise DeviceFileError(path=path, reason='it must be an object with a list "devices"')
    found: dict[str, Device] = {}
    for number, entry in enumerate(content["devices"], 1):
        try:
            device = _device(entry)
            if device.name in found:
                raise ArgumentValueError(name="name", value=device.name, allowed="given once")
        except LocalConvError as error:
            raise DeviceFileError(path=path, reason=f"device {number}: {error}") from error
        found[device.name] = device
    return found


def to_text(devices: Mapping[str, Device]) -> str:
    """The file that holds these devices."""
    return json.dumps({"devices": [asdict(device) for device in devices.values()]}, indent=1)


def _device(entry: Any) -> Device:
    if not isinstance(entry, dict):
        raise ArgumentTypeError(name="a device", value=entry, allowed="an object")
    known = {f.name: f for f in fields(Device)}
    for name in entry:
        if name not in known:
            raise UnknownNameError.of("field", name, known)
    for name, field in known.items():
        if name not in entry and field.default is MISSING:
            raise ArgumentTypeError(name=name, value=None, allowed="given")
    for name in _TEXTS:
        if not isinstance(entry.get(name, ""), str) or (name == "name" and not entry[name]):
            raise ArgumentTypeError(name=name, value=entry[name], allowed="a string")
    arch = entry["arch"]
    if not (isinstance(arch, str) and arch.startswith("gfx")):
        check_int("arch", arch, 70)
    for name in _COUNTS:
        if name in entry:
            check_int(name, entry[name], 1)
    for name in _RATES:
        value = entry[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ArgumentTypeError(name=name, value=value, allowed="a number")
        if not 0 < value < float("inf"):
            raise ArgumentValueError(name=name, value=value, allowed="a number above 0")
    return Device(**entry)
