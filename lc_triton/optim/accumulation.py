"""Gradients of layers' weights that are added where they are made, for optimizers of any kind."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lc_triton.core import fused
from lc_triton.core.fused import Deferred, Update, current_stream
from lc_triton.core.tracing import is_observed
from lc_triton.errors import ArgumentTypeError
from lc_triton.optim.parameter_table import weights_of_layers
from lc_triton.optim.rules import Add
from lc_triton.optim.sharded import is_dtensor
from lc_triton.optim.slot import WeightSlot, autograd_task, is_alike, lies_alike, on_stream

# The attributes by which Megatron-LM and TransformerEngine accumulate gradients.
MAIN_GRAD, ADDED, OVERWRITTEN, ZEROED = (
    "main_grad",
    "grad_added_to_main_grad",
    "overwrite_main_grad",
    "zero_out_wgrad",
)


def accumulate_gradients(model_or_params: Any) -> Accumulation:
    """Let the backward of layers add the gradients of their weights to what is there, instead of storing them first.

    Where `weight.grad` exists, the weight gradient's kernel adds its sums to it. Autograd would store them in a second
    buffer and add that: twice the bytes, and one more buffer. The first gradient after `zero_grad()` is stored as ever.

    Where a weight has a `main_grad`, as Megatron-LM's data-parallel wrapper gives it, all its gradients are added
    there, in the accumulator's precision, and none is stored. If it also has `grad_added_to_main_grad`, that is set to
    True, and `.grad` gets a tensor without values, for which that wrapper's hooks wait.

    Where a gradient must exist (hooks on the weight, `create_graph`, a compiler, a CUDA graph that is captured), it
    goes to `.grad` as in torch, `grad_added_to_main_grad` is set to False, and one warning names the parameter and the
    reason. Other uses of the weight in the same graph are added as well. Weights that `FusedAdamW` or `FusedSGD`
    update are left to them: see their argument `accumulate`.

    Args:
        model_or_params: a module, or parameters. Copies of a module, and parameters that are put into it later, need a
            call of their own.

    Returns:
        A handle, which need not be kept: its `remove()`, or the end of a `with` block around it, undoes this.

    Raises:
        LocalConvError: (also a TypeError) neither a module nor parameters.

    Source: `gradient_accumulation_fusion` of Megatron-LM, `fuse_wgrad_accumulation` of TransformerEngine.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv2d(2, 4, 3, input_size=(6, 6))
        >>> handle = lc_triton.accumulate_gradients(layer)
        >>> for _ in range(4):
        ...     layer(torch.randn(3, 2, 6, 6)).square().mean().backward()
        >>> layer.weight.grad.shape
        torch.Size([4, 4, 3, 3, 2, 4])
        >>> handle.remove()
    """
    return Accumulation({name: weight for name, weight in _weights_of(model_or_params) if _is_free(weight)})


class Accumulation:
    """The handle that `accumulate_gradients` returns.

    Args:
        weights: leaves, by the names that warnings call them.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._slots = [_share_slot(weight, name) for name, weight in weights.items()]

    def remove(self) -> None:
        """Let autograd store and add gradients again, but for weights that another handle has asked for as well."""
        slots, self._slots = self._slots, []
        for slot in slots:
            slot.handles -= 1
            weight = slot.weight
            if weight is not None and not slot.handles:
                fused.unregister(weight, slot)

    def __enter__(self) -> Accumulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _share_slot(weight: Tensor, name: str) -> AddingSlot:
    """The slot of a weight for one more handle: the one that earlier handles have, or a new one."""
    slot = fused.slot_of(weight)
    if not isinstance(slot, AddingSlot):
        slot = AddingSlot(weight, name)
        fused.register(weight, slot, keep=True)
    slot.handles += 1
    return slot


def _weights_of(model_or_params: Any) -> list[tuple[str, Tensor]]:
    if isinstance(model_or_params, nn.Module):
        weights = weights_of_layers(model_or_params)
        return [(name, p) for name, p in model_or_params.named_parameters() if id(p) in weights]
    allowed = "a module, or an iterable of parameters"
    if isinstance(model_or_params, (Tensor, str, Mapping)) or not isinstance(model_or_params, Iterable):
        raise ArgumentTypeError(name="model_or_params", value=model_or_params, allowed=allowed)
    params = list(model_or_params)
    for p in params:
        if not isinstance(p, Tensor):
            raise ArgumentTypeError(name="model_or_params", value=p, allowed=allowed)
    return [(f"parameter {number}", p) for number, p in enumerate(params)]


def _is_free(weight: Tensor) -> bool:
    """Whether no optimizer of this library updates the weight, and it is whole: autograd adds up parts of one."""
    return not (is_dtensor(weight) or isinstance(fused.slot_of(weight), WeightSlot))


class AddingSlot:
    """A weight whose gradients are added to its `main_grad` or `.grad` where they are made.

    Args:
        weight: a leaf, which this does not keep alive.
        name: what warnings call it.
    """

    takes_parts = False

    def __init__(self, weight: Tensor, name: str) -> None:
        self._weight, self.name = weakref.ref(weight), name
        self.handles = 0  # that have asked for it and were not removed
        self._warned: set[str] = set()
        # By backward. The graph keeps what is pending alive, so that a backward that fails leaves nothing behind.
        self._pending: weakref.WeakValueDictionary[int, _Pending] = weakref.WeakValueDictionary()

    @property
    def weight(self) -> Tensor | None:
        """The weight; None if it is gone."""
        return self._weight()

    def enter_graph(self) -> None:
        """Do nothing: adding a gradient changes no weight that another graph may read."""

    def enter_evaluation(self) -> None:
        """Do nothing, for the same reason."""

    def accepts(self, accumulate: Any) -> bool | None:
        """Whether the gradient that is about to be made is taken over; None where nobody wants it."""
        try:
            if not torch._C._will_engine_execute_node(accumulate):
                return None
        except RuntimeError:  # torch.autograd.grad asks for this gradient
            return False
        weight = self.weight
        if weight is None or not weight.requires_grad:  # frozen since the forward: AccumulateGrad drops its gradient
            return None
        reason = self._obstacle(weight, accumulate)
        if reason is None and _target(weight) is not None:
            self._attach(weight, accumulate)
            return True
        _mark(weight, added=False)
        if reason is not None and reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(
                f"accumulate_gradients leaves the gradient of {self.name} to autograd: {reason}", stacklevel=2
            )
        return False

    def defer(self, product: Deferred) -> None:
        """Take a gradient over."""
        weight = self.weight
        assert weight is not None
        self._pending[autograd_task()].products.append((product, current_stream(weight)))

    def update_in_node(self) -> Update | None:
        """None: other uses of the weight are added too, whichever way they come."""
        return None

    def has_pending(self) -> bool:
        """Whether the backward that is running has been asked to add a gradient."""
        return autograd_task() in self._pending

    def _attach(self, weight: Tensor, accumulate: Any) -> None:
        """Hook the node that adds gradients to `.grad`, once a backward."""
        if self.has_pending():
            return
        for earlier in list(self._pending.values()):
            if earlier.is_done:
                earlier.handle.remove()
        pending = self._pending[autograd_task()] = _Pending(self, weight)
        pending.handle = accumulate.register_prehook(pending)

    def _obstacle(self, weight: Tensor, accumulate: Any) -> str | None:
        """Why this gradient must exist."""
        if torch.is_grad_enabled():
            return "it is differentiated again (create_graph=True)"
        # Hooks after AccumulateGrad read `.grad` or `main_grad`; but those of the node are given the gradient, too.
        if weight._backward_hooks or _has_hooks(accumulate.register_prehook):
            return "it has hooks"
        has_main_grad = isinstance(getattr(weight, MAIN_GRAD, None), Tensor)
        if not has_main_grad and _has_hooks(accumulate.register_hook):
            return "it has hooks"
        if weight.is_cuda and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph is captured"
        if is_observed():
            return "a compiler, tracer or dispatch mode sees its backward"
        if type(weight) not in (Tensor, Parameter):
            return "it is not a plain tensor"
        if has_main_grad:
            main_grad = getattr(weight, MAIN_GRAD)
            if type(main_grad) not in (Tensor, Parameter) or not lies_alike(main_grad, weight):
                return "its main_grad is not a plain contiguous tensor of its shape"
            if not main_grad.is_floating_point():
                return "its main_grad is not of a floating-point dtype"
            return "it has overwrite_main_grad" if getattr(weight, OVERWRITTEN, False) else None
        grad = weight.grad
        if grad is not None and (type(grad) is not Tensor or not is_alike(grad, weight)):
            return "its .grad is of another layout"
        return None


class _Pending:
    """The gradients of a weight that one backward has still to add: a hook before the weight's AccumulateGrad node.

    If the weight has `grad_added_to_main_grad`, the hook stays after its backward: it sets that to False when a later
    backward gives a gradient by another way.
    """

    handle: Any

    def __init__(self, slot: AddingSlot, weight: Tensor) -> None:
        self.is_done = False
        self.products: list[tuple[Deferred, Any]] = []
        self._slot, self._weight, self._task = slot, weakref.ref(weight), autograd_task()

    def __call__(self, grads: tuple[Tensor | None, ...]) -> Any:
        """Add them; called with the sum of what others gave, which autograd adds to `.grad`."""
        weight = self._weight()
        if weight is None:
            return None
        if autograd_task() != self._task:
            if self.is_done and not self._slot.has_pending():
                _mark(weight, added=False)
            return None
        products, self.products, self.is_done = self.products, [], True
        if not products:  # a layer whose pre-activation was differentiated as well stored its gradient
            _mark(weight, added=False)
        if not products or not hasattr(weight, ADDED):
            self.handle.remove()
        return self._add(weight, products, grads[0]) if products else None

    @staticmethod
    def _add(weight: Tensor, products: list[tuple[Deferred, Any]], others: Tensor | None) -> Any:
        """Add the products to the target; returns None if autograd is to add `others` to `.grad`, else (None,)."""
        target = _target(weight)
        if target is None:  # dropped by a hook meanwhile
            first, stream = products.pop(0)
            target = weight.grad = on_stream(stream, weight, first.gradient).view_as(weight)
        for product, stream in products:
            update = Update(Add(), target, ())
            on_stream(stream, weight, lambda product=product, update=update: product.update(update))
        if target is weight.grad:
            return None
        if others is not None:
            target += others
        if _mark(weight, added=True) and weight.grad is None:
            make = torch.zeros_like if getattr(weight, ZEROED, False) else torch.empty_like
            weight.grad = make(weight, requires_grad=False)
        return (None,)


def _mark(weight: Tensor, *, added: bool) -> bool:
    """Say whether a weight's gradient was added to its `main_grad`, if there is an attribute for it: the result."""
    if not hasattr(weight, ADDED):
        return False
    setattr(weight, ADDED, added)
    return True


def _target(weight: Tensor) -> Tensor | None:
    """What gradients of a weight are added to."""
    main_grad = getattr(weight, MAIN_GRAD, None)
    return main_grad if isinstance(main_grad, Tensor) else weight.grad


def _has_hooks(register: Any) -> bool:
    """Whether a node has hooks that are not ours: `register` is its method that adds one."""
    handle = register(lambda *_: None)
    hooks = handle.hooks_dict_ref()
    handle.remove()
    return any(not isinstance(hook, _Pending) for hook in hooks.values())
