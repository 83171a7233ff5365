"""The arrays of Keras layers in torch's own recurrent modules."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lc_triton.keras.saved.recurrent import GRU, LSTM, Recurrent, SimpleRNN, reordered
from lc_triton.keras.saved.slots import Convert, Slot, inside

KINDS: dict[type[nn.RNNBase], type[Recurrent]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: SimpleRNN}


def recurrent_slots(module: nn.RNNBase) -> list[Slot]:
    """The arrays of a recurrent layer, or of a Bidirectional one: none if it has layers over layers, or projections.

    Keras has one bias where torch has two, except in a GRU: their sum is Keras's, and the second becomes zero.
    """
    kind = next((ours for theirs, ours in KINDS.items() if isinstance(module, theirs)), None)
    if kind is None or module.num_layers != 1 or module.proj_size:
        return []
    forward = _direction(module, kind, "")
    if not module.bidirectional:
        return inside("cell", forward)
    backward = _direction(module, kind, "_reverse")
    return inside("forward_layer/cell", forward) + inside("backward_layer/cell", backward)


def _direction(module: nn.RNNBase, kind: type[Recurrent], ending: str) -> list[Slot]:
    there: Convert = partial(reordered, order=tuple(kind.order.index(gate) for gate in range(kind.gates)))
    back: Convert = partial(reordered, order=kind.order)
    found = []
    for name, at in (("kernel", f"weight_ih_l0{ending}"), ("recurrent_kernel", f"weight_hh_l0{ending}")):
        shape = tuple(reversed(getattr(module, at).shape))
        found.append(Slot(name, module, at, shape, lambda w: there(w.mT), lambda k: back(k).mT))
    if module.bias:
        rows = kind.gates * module.hidden_size
        first, second = f"bias_ih_l0{ending}", f"bias_hh_l0{ending}"
        if kind is GRU:
            found.append(Slot("bias", module, first, (2, rows), there, back, second=second))
        else:
            found.append(
                Slot("bias", module, first, (rows,), partial(_sum, there), partial(_split, back), second=second)
            )
    return found


def _sum(convert: Convert, biases: Tensor) -> Tensor:
    return convert(biases.sum(0))


def _split(convert: Convert, bias: Tensor) -> Tensor:
    return torch.stack((convert(bias), torch.zeros_like(bias)))
