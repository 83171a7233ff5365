"""Arrays of a file put into the tensors of modules."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from lc_triton.core.parameters import check_not_meta, check_writable, check_writes, is_plain, write
from lc_triton.keras.saved.hdf5 import Array
from lc_triton.keras.saved.slots import Slot


def allocate(model: nn.Module) -> None:
    """Give memory to the tensors that have none; those of a user's own modules have theirs."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu")
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")


def in_order(wanted: list[Slot]) -> list[Slot]:
    """Arrays as older files have them: first what Keras trains, then the rest."""
    return sorted(wanted, key=lambda slot: not (slot.trained and slot.tensor.requires_grad))


def misfits(layer: str, wanted: list[Slot], found: list[Array]) -> list[str]:
    """What keeps the arrays of a file from going into a layer."""
    wanted = _held(wanted, found)
    if len(wanted) != len(found):
        names = ", ".join(slot.name for slot in wanted)
        return [f"layer {layer!r} has {len(found)} array(s) in the file, not {len(wanted)} ({names})"]
    have, want = Counter(array.part for array in found), Counter(slot.part for slot in wanted)
    if have != want and None not in have:
        shown = (", ".join(f"{n} in {part or 'itself'}" for part, n in sorted(c.items())) for c in (have, want))
        return [f"layer {layer!r} has its arrays {next(shown)} in the file, not {next(shown)}"]
    return [
        f"{slot.name} of layer {layer!r} has shape {tuple(array.shape)} in the file, not {slot.shape}"
        for slot, array in paired(wanted, found)
        if tuple(array.shape) != slot.shape
    ]


def paired(wanted: list[Slot], found: list[Array]) -> list[tuple[Slot, Array]]:
    """Each array with its slot: in order, and in the order of each part where the file knows parts."""
    wanted = _held(wanted, found)
    if not found or found[0].part is None:
        return list(zip(wanted, found, strict=True))
    by_part: dict[str, list[Array]] = {}
    for array in found:
        by_part.setdefault(array.part or "", []).append(array)
    queues = {part: iter(arrays) for part, arrays in by_part.items()}
    return [(slot, next(queues[slot.part])) for slot in wanted]


def _held(wanted: list[Slot], found: list[Array]) -> list[Slot]:
    """The slots that a file has arrays for: one that knows no parts holds an array once."""
    return [slot for slot in wanted if not (slot.repeated and found and found[0].part is None)]


def check_writes_of(pairs: list[tuple[Slot, Array]]) -> None:
    """Refuse arrays for tensors that cannot be written, or that something computes which cannot give these numbers."""
    for slot, array in pairs:
        check_writable(slot.module, slot.attributes)
        check_not_meta(slot.module, slot.attributes)
        if not all(is_plain(slot.module, name) for name in slot.attributes):
            check_writes(slot.module, slot.values(array.read()))


def copy(pairs: list[tuple[Slot, Array]]) -> None:
    """Write arrays into their tensors."""
    for slot, array in pairs:
        write(slot.module, slot.values(array.read()))
