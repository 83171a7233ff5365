"""AdamW, with the update of a layer's weight made where its gradient is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_triton.core.arguments import check_name
from lc_triton.core.fused import Rule, Small
from lc_triton.optim import rules
from lc_triton.optim.arguments import number
from lc_triton.optim.fused import FusedOptimizer
from lc_triton.optim.sharded import is_dtensor
from lc_triton.optim.states import AMAX, CODES, CORRECTION, MASTERS, NUMBERS, SMALL_STATES, to_codes, to_numbers


class FusedAdamW(FusedOptimizer, torch.optim.AdamW):
    """`torch.optim.AdamW`, whose update of a layer's weight is a part of the layer's backward.

    A weight's gradient is never stored: it is made, and the weight and its states are updated by it, in one pass over
    their memory. `.grad` of such a weight is None after backward. `step()` ends the step, and updates all other
    parameters by torch's own fused update.

    Where a gradient must exist (hooks on the weight, `create_graph`, a retained graph, a weight that is used more than
    once, a parametrization, DistributedDataParallel, a compiler), it is stored and updated by in `step()`, with one
    warning that names the parameter and the reason. With a GradScaler all gradients are stored. With `clip_norm`,
    nothing changes before `step()`, which makes each gradient twice: for the norm of all, and for the update.

    Args:
        model_or_params: a module, or parameters or groups of them as of torch's optimizers.
        lr: the learning rate.
        betas: of the means of the gradient and of its square, as of `torch.optim.AdamW`.
        eps: added to the root of the mean of squares.
        weight_decay: decoupled from the gradient.
        clip_norm: the largest norm of all gradients together, to which they are scaled in `step()`; None for no limit.
        states: how the two states of layers' weights are kept: in "float32" (of the weight, that is), in "bfloat16", or
            in "8 bits" with a largest magnitude for 32 filters. They take 8, 4 or 2.25 bytes; the small ones are
            rounded stochastically. Other parameters, and weights that are sharded over ranks, keep states of their own
            dtype.
        master: "24 bits" is for parameters in bfloat16 (`model.to(torch.bfloat16)`): what is updated is a master of 24
            bits, the parameter's and those of its state "correction", which is rounded stochastically. The parameter is
            the bfloat16 number next to it. Weights of layers are updated in backward, all others in `step()`. None
            leaves such parameters to torch's update, which rounds them each step.
        accumulate: the number of backwards whose gradients are added up for one step. All but the last one store them
            in `.grad`; the last one updates.
        maximize: whether to follow the gradient upwards.
        l1: the factor of the penalty `sum(|w|)` of each parameter, whose gradient is added to the loss's where that is
            made. It is an option of each group, as the next two are; `penalty_groups` has those of Keras layers.
        l2: the factor of the penalty `sum(w^2)`, likewise.
        non_neg: whether negative numbers become 0 after each update.
        read_once: whether a layer whose window is one site (LocalLinear, kernels of 1) may update its weight together
            with its input's gradient, in a kernel that reads the weight once. Pass True only if the layer's forward is
            the weight's only use in each graph: a gradient of another use comes too late, and backward raises an error.
            It changes nothing on a CPU, with `clip_norm`, for states in 8 bits, for weights that ranks share, where the
            layer's input needs no gradient, and for batches above 64 (in float32 and float64 above 32; of maps of few
            numbers above 128).

    Raises:
        LocalConvError: (also a ValueError or TypeError) an argument out of range or of a wrong type.
        OptimizerStepError: in backward, with `read_once`: another use of a weight gave a gradient.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (https://arxiv.org/abs/1711.05101).

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv2d(2, 4, 3, input_size=(6, 6))
        >>> optimizer = lc_triton.FusedAdamW(layer, lr=0.01)
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.randn(3, 2, 6, 6)).square().mean().backward()
        >>> layer.weight.grad is None, bool((layer.weight != before).any())
        (True, True)
        >>> optimizer.step()
        >>> optimizer.zero_grad()
    """

    def __init__(
        self,
        model_or_params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
        states: str = "float32",
        master: str | None = None,
        *,
        accumulate: int = 1,
        maximize: bool = False,
        l1: float = 0.0,
        l2: float = 0.0,
        non_neg: bool = False,
        read_once: bool = False,
    ) -> None:
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        self.states = check_name("states", states, tuple(SMALL_STATES))
        self.master = None if master is None else check_name("master", master, MASTERS)
        penalties = {"l1": l1, "l2": l2, "non_neg": non_neg}
        super().__init__(model_or_params, clip_norm, accumulate, read_once, own, penalties)

    def _rule(
        self, weight: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> tuple[Rule, tuple[Tensor, ...], Small]:
        small_dtype = self.small_dtype if self._table.is_weight(weight) and not is_dtensor(weight) else None
        in_8_bits = small_dtype == torch.uint8
        dtype = small_dtype or torch.promote_types(weight.dtype, torch.float32)
        if not state:  # as torch makes it
            device = weight.device if group["fused"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for key in () if in_8_bits else NUMBERS:
                state[key] = torch.zeros_like(weight, requires_grad=False, dtype=dtype)
        if in_8_bits:
            to_codes(state, weight)
        else:
            to_numbers(state, dtype)
        if weight.dtype != torch.bfloat16:
            state.pop(CORRECTION, None)  # of a weight that has been converted since
        elif CORRECTION not in state:
            state[CORRECTION] = torch.zeros_like(weight, requires_grad=False, dtype=torch.int8)
        rule = rules.AdamW(
            lr=number(group["lr"]),
            beta1=number(group["betas"][0]),
            beta2=number(group["betas"][1]),
            eps=group["eps"],
            weight_decay=number(group["weight_decay"]),
            maximize=group["maximize"],
            count=self.count_step(state["step"]),
            step=state["step"],
        )
        first, second = CODES if in_8_bits else NUMBERS
        return rule, (state[first], state[second]), Small(state.get(CORRECTION), state.get(AMAX))
