"""Recurrent layers: SimpleRNN, LSTM and GRU."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import StrictBool
from torch import Tensor, nn

from lc_triton.errors import ArgumentValueError
from lc_triton.keras.saved.activation import Function, function
from lc_triton.keras.saved.arguments import Arguments, Count, Place, Rate
from lc_triton.keras.saved.slots import Convert, Slot, inside
from lc_triton.keras.saved.training import Trained

Tensors = tuple[Tensor, ...]
Mask = Tensor | None


class Recurrent(Trained):
    """What the recurrent layers share: weights of `gates` blocks in torch's order, and the walk along the steps.

    The weights are torch's: `weight_ih` `(gates * units, channels)` and `weight_hh` `(gates * units, units)`.
    """

    takes_mask = True
    gates = 1
    states = 1
    # Keras's number of each of torch's gates.
    order: tuple[int, ...] = (0,)
    bias_shape: tuple[int, ...] = ()
    # Whether Keras drops the same channels at all steps where it uses the standard activations too.
    shares_dropout = False

    def __init__(
        self,
        channels: int,
        units: int,
        activation: Function | None,
        recurrent_activation: Function | None,
        *,
        standard: bool,
        bias: bool,
        sequences: bool,
        state: bool,
        backwards: bool,
        time_major: bool,
        zero_masked: bool,
        dropout: float,
        recurrent_dropout: float,
        untied: bool,
        stateful: bool,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.units, self.activation, self.recurrent_activation = units, activation, recurrent_activation
        self.standard, self.sequences, self.state, self.backwards = standard, sequences, state, backwards
        self.time_major, self.zero_masked = time_major, zero_masked
        self.dropout, self.recurrent_dropout, self.untied = dropout, recurrent_dropout, untied
        self.stateful = stateful
        self.reset_states()
        rows = self.gates * units
        self.weight_ih = nn.Parameter(torch.empty(rows, channels, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, units, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(*self.bias_shape, rows, dtype=dtype)) if bias else None

    def slots(self) -> list[Slot]:
        """See the base."""
        there: Convert = partial(reordered, order=tuple(self.order.index(gate) for gate in range(self.gates)))
        back: Convert = partial(reordered, order=self.order)
        found = [
            Slot(name, self, at, tuple(reversed(getattr(self, at).shape)), lambda w: there(w.mT), lambda k: back(k).mT)
            for name, at in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh"))
        ]
        if self.bias is not None:
            found.append(Slot("bias", self, "bias", tuple(self.bias.shape), there, back))
        return inside("cell", found)

    def forward(self, x: Tensor, *initial: Tensor, mask: Mask | tuple[Mask, ...] = None) -> Tensor | Tensors:
        """The outputs for x `(batch, steps, channels)`.

        Args:
            x: with the steps first if the layer is time-major.
            initial: the states before the first step, zero if none is given.
            mask: `(batch, steps)`, False at steps that are left out: there states stay what they are. With states, a
                tuple of which the first is this.

        Returns:
            The last step's output or, with `sequences`, every step's; then the last states, with `state`.
        """
        x = x.transpose(0, 1) if self.time_major else x
        mask = mask[0] if isinstance(mask, tuple) else mask
        if self.backwards:
            x, mask = x.flip(1), None if mask is None else mask.flip(1)
        before = initial or self._kept(x) or tuple(x.new_zeros(x.shape[0], self.units) for _ in range(self.states))
        stepped = self.training and bool(self.recurrent_dropout or (self.shares_dropout and self.dropout))
        if self.standard and mask is None and not stepped:
            outputs, after = self.fused(F.dropout(x, self.dropout, self.training), before)
            y = outputs if self.sequences else outputs[:, -1]
        else:
            y, after = self._stepped(x, before, mask)
        if self.stateful and not x.is_meta:
            for name, state in zip(self._state_names(), after, strict=True):
                setattr(self, name, state.detach())
        y = y.transpose(0, 1) if self.time_major and self.sequences else y
        y = self.observed(y)
        return (y, *after) if self.state else y

    def reset_states(self) -> None:
        """Start from zero at the next batch, where the states of one are the first of the next (`stateful=True`)."""
        for name in self._state_names():
            self.register_buffer(name, None, persistent=False)

    def _state_names(self) -> list[str]:
        return [f"last_state_{i}" for i in range(self.states)] if self.stateful else []

    def _kept(self, x: Tensor) -> Tensors | None:
        """The states that the batch before left; None after a reset."""
        kept = tuple(getattr(self, name) for name in self._state_names())
        if not kept or kept[0] is None or x.is_meta:
            return None
        if kept[0].shape[0] != x.shape[0]:
            allowed = (
                f"the {kept[0].shape[0]} samples of the batch before, whose states go on: reset_states() ends that"
            )
            raise ArgumentValueError(name="the batch of a stateful layer", value=x.shape[0], allowed=allowed)
        return kept

    def output_mask(self, inputs: Tensors, masks: tuple[Mask, ...]) -> Mask:
        """The mask of the outputs: that of the steps, where all are returned."""
        return masks[0] if self.sequences else None

    def fused(self, x: Tensor, before: Tensors) -> tuple[Tensor, Tensors]:
        """All steps by torch's own operator, for the standard activations."""
        raise NotImplementedError

    def step(self, z: Tensor, h: Tensor, before: Tensors) -> Tensors:
        """The states after a step, the first of them its output.

        Args:
            z: what the step's input gives each gate, `(batch, gates, units)`.
            h: the state before, dropped out, `(batch, gates, units)` or, the same for all gates, `(batch, 1, units)`.
            before: the states.
        """
        raise NotImplementedError

    def recurrent(self, h: Tensor, gates: slice = slice(None)) -> Tensor:
        """What the state gives gates, `(batch, gates, units)`."""
        weight = self.weight_hh.unflatten(0, (self.gates, self.units))[gates]
        return torch.einsum("bgu,gvu->bgv", h.expand(-1, weight.shape[0], -1), weight)

    def input_bias(self) -> Tensor | None:
        """The bias of what inputs give."""
        return self.bias

    def _stepped(self, x: Tensor, before: Tensors, mask: Tensor | None) -> tuple[Tensor, Tensors]:
        z, dropped = self._from_inputs(x), self._recurrent_mask(before[0])
        found: list[Tensor] = []
        y = torch.zeros_like(before[0])
        for i in range(x.shape[1]):
            h = before[0][:, None]
            after = self.step(z[:, i], h if dropped is None else h * dropped, before)
            if mask is None:
                y, before = after[0], after
            else:
                kept = mask[:, i, None]
                y = torch.where(kept, after[0], torch.zeros_like(y) if self.zero_masked else y)
                before = tuple(torch.where(kept, new, old) for new, old in zip(after, before, strict=True))
            if self.sequences:
                found.append(y)
        return torch.stack(found, 1) if self.sequences else y, before

    def _from_inputs(self, x: Tensor) -> Tensor:
        """What inputs give each gate, `(batch, steps, gates, units)`; a sample's channels drop out at all steps."""
        bias = self.input_bias()
        if self.training and self.dropout:
            # Keras's implementation 1 draws for each gate.
            ones = x.new_ones(x.shape[0], 1, self.gates if self.untied else 1, x.shape[2])
            x = (x[:, :, None] * F.dropout(ones, self.dropout)).expand(-1, -1, self.gates, -1)
            z: Tensor = torch.einsum("btgc,guc->btgu", x, self.weight_ih.unflatten(0, (self.gates, self.units)))
            return z if bias is None else z + bias.unflatten(0, (self.gates, self.units))
        gates: Tensor = F.linear(x, self.weight_ih, bias).unflatten(-1, (self.gates, self.units))
        return gates

    def _recurrent_mask(self, h: Tensor) -> Tensor | None:
        if not self.training or not self.recurrent_dropout:
            return None
        return F.dropout(h.new_ones(h.shape[0], self.gates, self.units), self.recurrent_dropout)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.weight_ih.shape[1]}, {self.units}, sequences={self.sequences}, backwards={self.backwards}"


class SimpleRNN(Recurrent):
    """`h = act(W x + U h + b)`."""

    shares_dropout = True

    def fused(self, x: Tensor, before: Tensors) -> tuple[Tensor, Tensors]:
        """See the base."""
        y, h = torch.rnn_tanh(x, before[0][None], _flat(self), self.bias is not None, 1, 0.0, False, False, True)
        return y, (h[0],)

    def step(self, z: Tensor, h: Tensor, before: Tensors) -> Tensors:
        """See the base."""
        return (_apply(self.activation, (z + self.recurrent(h))[:, 0]),)


class LSTM(Recurrent):
    """A long short-term memory. Source: Hochreiter and Schmidhuber, 1997; `keras.layers.LSTM`."""

    gates = 4
    states = 2
    order = (0, 1, 2, 3)

    def fused(self, x: Tensor, before: Tensors) -> tuple[Tensor, Tensors]:
        """See the base."""
        states = [state[None] for state in before]
        y, h, c = torch.lstm(x, states, _flat(self), self.bias is not None, 1, 0.0, False, False, True)
        return y, (h[0], c[0])

    def step(self, z: Tensor, h: Tensor, before: Tensors) -> Tensors:
        """See the base."""
        i, f, g, o = (z + self.recurrent(h)).unbind(1)
        i, f, o = (_apply(self.recurrent_activation, gate) for gate in (i, f, o))
        c = f * before[1] + i * _apply(self.activation, g)
        return o * _apply(self.activation, c), c


class GRU(Recurrent):
    """A gated recurrent unit, whose reset gate acts on what the state is multiplied to.

    Source: Cho et al., 2014, in the second version of it; `keras.layers.GRU` with `reset_after=True`.
    """

    gates = 3
    order = (1, 0, 2)
    bias_shape: tuple[int, ...] = (2,)  # of inputs, and of the state

    def input_bias(self) -> Tensor | None:
        """See the base."""
        return None if self.bias is None else self.bias[0]

    def fused(self, x: Tensor, before: Tensors) -> tuple[Tensor, Tensors]:
        """See the base."""
        weights = [self.weight_ih, self.weight_hh, *(() if self.bias is None else self.bias.unbind())]
        y, h = torch.gru(x, before[0][None], weights, self.bias is not None, 1, 0.0, False, False, True)
        return y, (h[0],)

    def step(self, z: Tensor, h: Tensor, before: Tensors) -> Tensors:
        """See the base."""
        recurrent = self.recurrent(h)
        if self.bias is not None:
            recurrent = recurrent + self.bias[1].unflatten(0, (3, self.units))
        r, update = (_apply(self.recurrent_activation, (z + recurrent)[:, gate]) for gate in (0, 1))
        new = _apply(self.activation, z[:, 2] + r * recurrent[:, 2])
        return (update * before[0] + (1 - update) * new,)


class ResetFirstGRU(GRU):
    """A gated recurrent unit, whose reset gate acts on the state. `keras.layers.GRU` with `reset_after=False`."""

    bias_shape = ()

    def input_bias(self) -> Tensor | None:
        """See the base."""
        return self.bias

    def step(self, z: Tensor, h: Tensor, before: Tensors) -> Tensors:
        """See the base."""
        h = h.expand(-1, 3, -1)
        gates = z[:, :2] + self.recurrent(h[:, :2], slice(2))
        r, update = (_apply(self.recurrent_activation, gate) for gate in gates.unbind(1))
        reset = self.recurrent(r[:, None] * h[:, 2:], slice(2, 3))[:, 0]
        new = _apply(self.activation, z[:, 2] + reset)
        return (update * before[0] + (1 - update) * new,)


def _apply(function: Function | None, x: Tensor) -> Tensor:
    return x if function is None else function(x)


def _flat(layer: Recurrent) -> list[Tensor]:
    """Weights as torch's operators take them, with two biases."""
    biases = [] if layer.bias is None else [layer.bias, torch.zeros_like(layer.bias)]
    return [layer.weight_ih, layer.weight_hh, *biases]


def reordered(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The blocks of the last axis in another order."""
    blocks = tensor.chunk(len(order), -1)
    return torch.cat([blocks[i] for i in order], -1) if len(order) > 1 else tensor


class LoopArguments(Arguments):
    """How a recurrent layer goes over time, whichever its cells are."""

    call_arguments = frozenset({"mask"})

    return_sequences: StrictBool = False
    return_state: StrictBool = False
    go_backwards: StrictBool = False
    stateful: StrictBool = False
    time_major: StrictBool = False
    zero_output_for_mask: StrictBool = False
    # What changes no number.
    unroll: StrictBool = False


class RecurrentArguments(LoopArguments):
    """`SimpleRNN`, `LSTM` and `GRU`."""

    units: Count
    activation: Any = "tanh"
    recurrent_activation: Any = "sigmoid"
    use_bias: StrictBool = True
    dropout: Rate = 0.0
    recurrent_dropout: Rate = 0.0
    implementation: Literal[0, 1, 2] = 2
    # Files from before there was a choice leave it out.
    reset_after: StrictBool = False
    # What changes no number: how a bias is drawn.
    unit_forget_bias: StrictBool = True
    use_cudnn: Any = None

    def module(self, place: Place) -> nn.Module:
        """See the base."""
        return self.recurrent(place)

    def recurrent(self, place: Place, **changes: bool) -> Recurrent:
        """The layer, with some of its arguments changed."""
        shape = place.shapes[0] if place.shapes else ()
        if len(shape) != 2:
            raise ValueError(f"it takes inputs of steps and channels beside the batch, and is given shape {shape}")
        kind: type[Recurrent] = {"SimpleRNN": SimpleRNN, "LSTM": LSTM, "GRU": GRU}[place.class_name]
        if kind is GRU and not self.reset_after:
            kind = ResetFirstGRU
        if len(place.shapes) not in (1, 1 + kind.states):
            raise ValueError(f"it takes one input and {kind.states} state(s), and is given {len(place.shapes)} tensors")
        if self.stateful and len(place.shapes) > 1:
            raise ValueError("stateful=True with states of its own, which Keras takes at the first batch only")
        standard = self.activation == "tanh" and (kind is SimpleRNN or self.recurrent_activation == "sigmoid")
        given: dict[str, Any] = {
            "sequences": self.return_sequences,
            "state": self.return_state,
            "backwards": self.go_backwards,
            "zero_masked": self.zero_output_for_mask,
            **changes,
        }
        layer = kind(
            shape[-1],
            self.units,
            function(self.activation, place.keras),
            function(self.recurrent_activation, place.keras),
            standard=standard and kind is not ResetFirstGRU,
            bias=self.use_bias,
            time_major=self.time_major,
            dropout=float(self.dropout),
            recurrent_dropout=float(self.recurrent_dropout),
            untied=self.implementation != 2 or bool(self.recurrent_dropout),
            stateful=self.stateful,
            dtype=self.variable_dtype,
            **given,
        )
        layer.requires_grad_(self.trainable)
        return layer


CLASSES: dict[str, type[Arguments]] = {
    "SimpleRNN": RecurrentArguments,
    "LSTM": RecurrentArguments,
    "GRU": RecurrentArguments,
}
