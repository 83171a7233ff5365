"""One weight of an optimizer: whether its gradient may be taken over, and what of the coming step is done."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from lc_triton.core.fused import Deferred, Penalty, Update, current_stream
from lc_triton.core.storage import check_memory
from lc_triton.core.tracing import is_observed, is_unresolved
from lc_triton.errors import OptimizerStepError
from lc_triton.optim.rules import Add
from lc_triton.optim.sharded import as_dtensor_like, is_dtensor, is_placed_alike, local_part

_autograd: Any = torch._C._autograd


class Owner(Protocol):
    """What a slot asks its optimizer."""

    accumulate: int
    clip_norm: float | None

    @property
    def reads_weights_once(self) -> bool:
        """Whether layers update their weights in their own nodes, where a kernel does that."""

    def updated_dtypes(self, weight: Tensor) -> tuple[torch.dtype, ...]:
        """The dtypes in which a weight is updated where its gradient is made."""

    def stores_all(self) -> bool:
        """Whether all gradients are stored for now, as is expected, so that no warning is due."""

    def obstacle_in_backward(self, weight: Tensor) -> str | None:
        """Why the weight's group, its states or other parameters do not let a backward update it."""

    def owns(self, weight: Tensor) -> bool:
        """Whether the weight is in one of the groups, which users may edit."""

    def penalty_of(self, weight: Tensor) -> Penalty | None:
        """What the weight's group adds to its gradient, if anything."""

    def update_of(self, weight: Tensor, scale: Tensor | None = None) -> Update:
        """The update of the coming step, of this rank's part; the step's number is counted by this call."""


class Kept(NamedTuple):
    """A gradient that waits for `step()`: its product, the stream it belongs to, and the versions of its operands."""

    product: Deferred
    stream: Any
    versions: tuple[int, ...]


class WeightSlot:
    """A weight whose update is made where its gradient is.

    A layer's backward hands its product over (`defer`) and gives autograd no gradient. The engine reaches the weight's
    AccumulateGrad node when everything in this backward that uses the weight is done: the slot's hook there updates the
    weight if this product is all that its gradient consists of, and otherwise stores the sum.

    Of a weight that is sharded over ranks, each rank has such a slot. Its products are of the rank's part, and what it
    stores is the DTensor of it; nothing is sent. Only `clip_norm` adds up sums over the ranks.

    Args:
        weight: a leaf.
        name: what warnings call it.
        owner: its optimizer.
        known: whether it is known to be the weight of a layer of this library.
    """

    takes_parts = True

    def __init__(self, weight: Tensor, name: str, owner: Owner, known: bool) -> None:
        self.weight, self.name, self.known = weight, name, known
        self.reason: str | None = None  # why its gradient was stored since the last step
        self.updated = False
        self.has_zero = False  # torch would have a gradient here for zero_grad(set_to_none=False) to fill
        self.kept: Kept | None = None
        self._owner = weakref.ref(owner)
        self._under_ddp = self._in_backward = self._in_evaluation = False
        self._graphs = self._backwards = 0
        self._task = -1  # the last backward that made a gradient of it
        self._deferred: dict[int, list[tuple[Deferred, Any]]] = {}  # by backward
        self._adding: set[int] = set()  # backwards whose gradient is added to `.grad`
        self._in_node: tuple[int, Any] | None = None  # the backward whose node made the update, and its stream
        self._node: Any = None
        self._hooks: tuple[Any, ...] = ()
        self.others: list[weakref.ref[Any]] = []  # slots that optimizers made earlier for this weight

    def end_step(self) -> None:
        """Forget what belongs to the step that has been made: the next one begins."""
        self.updated, self.reason = False, None
        self._in_backward = self._in_evaluation = False
        self._graphs = self._backwards = 0
        self._deferred.clear()
        self._adding.clear()
        self._in_node = self.kept = None

    def drop_counted(self) -> None:
        """Count the backwards of the coming step anew, as what they added to `.grad` is dropped."""
        if not self.updated:
            self._backwards = 0

    def enter_graph(self) -> None:
        """Count a graph that uses the weight."""
        self.known = True
        self._graphs += 1
        self._in_backward |= autograd_task() != -1
        self._under_ddp |= torch.nn.parallel.DistributedDataParallel._active_ddp_module is not None

    def enter_evaluation(self) -> None:
        """Note that a layer in evaluation mode uses the weight."""
        self._in_evaluation = True

    def accepts(self, accumulate: Any) -> bool | None:
        """Whether the gradient that is about to be made is taken over; None where nobody wants it."""
        keep = _autograd._get_current_graph_task_keep_graph()
        if not keep:
            self._graphs = max(0, self._graphs - 1)
        try:
            if not torch._C._will_engine_execute_node(accumulate):
                return None
        except RuntimeError:  # torch.autograd.grad asks for this gradient
            return False
        if not self.weight.requires_grad:  # frozen since the forward: AccumulateGrad drops its gradient
            return None
        owner = self._owner()
        if owner is None or owner.stores_all() or not owner.owns(self.weight):
            return False
        task = autograd_task()
        if task != self._task:
            self._task, self._backwards = task, self._backwards + 1
        if self._backwards < owner.accumulate:
            return self._adds(accumulate)
        self._attach(accumulate)
        # The owner's reason comes first: hooks may be those of a rival, another optimizer of this weight.
        reason = (
            owner.obstacle_in_backward(self.weight) or self._obstacle() or ("the graph is retained" if keep else None)
        )
        self.reason = reason or self.reason
        return reason is None

    def _adds(self, accumulate: Any) -> bool:
        """Whether the gradient of an early micro-batch is added to `.grad` where it is made."""
        if self.weight.grad is None:
            return False
        self._attach(accumulate)
        if self._obstacle() is not None:
            return False
        self._adding.add(autograd_task())
        return True

    def update_in_node(self) -> Update | None:
        """The update of the coming step, for the layer's node to make: it counts as made.

        None where another graph waits for its backward, and where this backward adds to `.grad` or has handed over
        another product of the weight.
        """
        owner, task = self._owner(), autograd_task()
        if owner is None or not owner.reads_weights_once or is_dtensor(self.weight):
            return None
        if self._graphs or task in self._adding or task in self._deferred:
            return None
        update = owner.update_of(self.weight)
        self._in_node = task, current_stream(self.weight)
        self.updated = self.has_zero = True
        return update

    def defer(self, product: Deferred) -> None:
        """Take a gradient over."""
        self._deferred.setdefault(autograd_task(), []).append((product, current_stream(self.weight)))

    def square_sum(self, penalty: Penalty | None) -> Tensor:
        """The sum of the squares of the gradient that is kept, and of a penalty's."""
        assert self.kept is not None
        if self.kept.product.versions() != self.kept.versions:
            reason = (
                "the layer's input or its gradient was changed in place between backward and step(), which reads it"
            )
            raise OptimizerStepError(name=self.name, reason=reason)
        product = self.kept.product
        total: Tensor = on_stream(self.kept.stream, self.weight, lambda: product.square_sum(penalty))
        return total

    def store(self) -> None:
        """Add the gradient that is kept, if there is one, to `.grad`."""
        if self.kept is not None:
            gradient = self._gradient(self.kept.product, self.kept.stream)
            self.weight.grad = gradient if self.weight.grad is None else self.weight.grad.add_(gradient)
            self.kept = None

    def update_kept(self, scale: Tensor) -> None:
        """Update the weight by the gradient that is kept, times `scale`."""
        owner = self._owner()
        assert self.kept is not None
        assert owner is not None
        self._update(self.kept.product, self.kept.stream, owner.update_of(self.weight, scale))
        self.kept = None

    def _update(self, product: Deferred, stream: Any, update: Update) -> None:
        """Update the weight."""
        on_stream(stream, self.weight, lambda: product.update(update))
        if update.weight is not self.weight:  # a part, of which the DTensor does not see that it has changed
            increment_version(self.weight)
        self.updated = self.has_zero = True

    def _gradient(self, product: Deferred, stream: Any) -> Tensor:
        """Make a gradient in the form of `.grad`: of the weight's shape, and a DTensor if the weight is one."""
        gradient = on_stream(stream, self.weight, product.gradient)  # of a view of the weight, perhaps
        return as_dtensor_like(gradient.view(local_part(self.weight).shape), self.weight)

    def _attach(self, accumulate: Any) -> None:
        """Hook the node that adds gradients to `.grad`. While the slot holds the node, all graphs have the same one."""
        if self._node is accumulate:
            return
        slot = weakref.ref(self)

        def before(grads: Any) -> Any:
            own = slot()
            return None if own is None else own._accumulate(grads)

        self._node = accumulate
        # The second hook does nothing: `_obstacle` sees by its handle whether others have registered one.
        self._hooks = accumulate.register_prehook(before), accumulate.register_hook(lambda *_: None)

    def __del__(self) -> None:
        """Take the hooks off their node, which a graph may keep until the next optimizer of the weight."""
        for handle in self._hooks:
            handle.remove()

    def _obstacle(self) -> str | None:
        """Why this gradient must exist."""
        weight = self.weight
        if torch.is_grad_enabled():
            return "it is differentiated again (create_graph=True)"
        of_weight = weight._backward_hooks, weight._post_accumulate_grad_hooks
        if any(of_weight) or any(len(handle.hooks_dict_ref()) > 1 for handle in self._hooks):
            return "it has hooks"
        if self.kept is not None:
            return "an earlier backward made a gradient of it, after which there was no step()"
        if self.updated:
            return "it was updated by an earlier backward, after which there was no step()"
        if self._in_evaluation:
            return (
                "its layer ran in evaluation mode since the last step: evaluate under torch.no_grad(), and call "
                "train() before training"
            )
        if self._in_backward:
            return "its layer was run by a backward, as torch.utils.checkpoint does with use_reentrant=True"
        if self._under_ddp:
            return "DistributedDataParallel averages its gradient over ranks"
        if weight.is_cuda and torch.cuda.is_current_stream_capturing():
            return "a CUDA graph is captured, whose replays would repeat the hyperparameters of this step"
        if is_observed():
            return "a compiler, tracer or dispatch mode sees its backward"
        part = local_part(weight)
        if type(part) not in (Tensor, Parameter) or not part.is_contiguous() or is_unresolved(part):
            return "it is not a plain contiguous tensor"
        owner = self._owner()
        if owner is not None and weight.dtype not in (dtypes := owner.updated_dtypes(weight)):
            own, *others = (str(dtype).removeprefix("torch.") for dtype in (weight.dtype, *dtypes))
            return f"its dtype is {own}, not {', '.join(others[:-1])} or {others[-1]}"
        grad = weight.grad
        if grad is not None and not (is_placed_alike(grad, weight) and is_alike(grad, weight)):
            return "its .grad is of another layout"
        return None

    def _accumulate(self, grads: tuple[Tensor | None, ...]) -> Any:
        """Update the weight, or store its gradient; called before AccumulateGrad, with what others gave."""
        task = autograd_task()
        taken, adding = self._deferred.pop(task, []), task in self._adding
        self._adding.discard(task)
        if self._in_node is not None and self._in_node[0] == task:
            self._end_update_in_node(self._in_node[1], grads[0])
        owner = self._owner()
        if not taken or owner is None:
            return None
        others, weight = grads[0], self.weight
        if adding:
            grad = weight.grad
            if len(taken) == 1 and others is None and grad is not None:
                on_stream(taken[0][1], weight, lambda: taken[0][0].update(Update(Add(), local_part(grad), ())))
                return None
        elif len(taken) == 1 and others is None and self._graphs == 0:
            if owner.clip_norm is not None:
                if weight.grad is None:
                    self.kept = Kept(*taken[0], taken[0][0].versions())
                else:
                    weight.grad += self._gradient(*taken[0])
                return None
            self._update(*taken[0], owner.update_of(weight))
            weight.grad = None  # of earlier micro-batches, which is a part of the update
            return None
        if not adding:
            self.reason = "its gradient has other parts: it is used more than once"
            if (penalty := owner.penalty_of(weight)) is not None and penalty.scalars:
                self.reason += (
                    ", or has a penalty in the loss beside the l1 and l2 of its group: regularization_loss(model, "
                    "optimizer) leaves out those that the optimizer adds"
                )
        if self._graphs and not adding:
            self.reason = "another graph that uses it waits for its backward: evaluate under torch.no_grad()"
        gradients = [self._gradient(product, stream) for product, stream in taken]
        total = sum(gradients[1:], gradients[0])
        if others is not None:
            return (others + total,)
        with torch.no_grad():
            weight.grad = total if weight.grad is None else weight.grad.add_(total)
        return None

    def _end_update_in_node(self, stream: Any, others: Tensor | None) -> None:
        """Let later work wait for the update that the layer's node made, and refuse another gradient."""
        self._in_node = None
        current = current_stream(self.weight)
        if stream != current:
            current.wait_stream(stream)
        self.weight.grad = None  # of earlier micro-batches, which is a part of the update
        if others is not None:
            reason = (
                "with read_once=True its layer's backward updated it by the layer's gradient alone, and then another "
                "use of it in the same graph gave a gradient, which is lost. Restore the parameters, or go on from "
                "the weight as it is; and pass read_once=False, or give a penalty as l1 and l2 of its group"
            )
            raise OptimizerStepError(name=self.name, reason=reason)


def autograd_task() -> int:
    """The number of the backward that is running on this thread; -1 for none."""
    task: int = torch._C._current_graph_task_id()
    return task


def is_alike(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a tensor has the layout, device, shape and dtype of a contiguous weight."""
    return tensor.dtype == weight.dtype and lies_alike(tensor, weight)


def lies_alike(tensor: Tensor, weight: Tensor) -> bool:
    """Whether a tensor has the layout, device and shape of a contiguous weight, in any dtype; refuse a freed one."""
    check_memory("the gradient of a weight", tensor)
    of_tensor = tensor.layout, tensor.device, tensor.shape
    return (
        of_tensor == (weight.layout, weight.device, weight.shape)
        and tensor.is_contiguous()
        and not is_unresolved(tensor)
    )


def on_stream(stream: Any, weight: Tensor, run: Any) -> Any:
    """Call `run` on the stream of the layer's backward, and let the current stream wait for it."""
    current = current_stream(weight)
    if stream == current:
        return run()
    stream.wait_stream(current)  # where hyperparameters are made
    with torch.cuda.stream(stream):
        result = run()
    current.wait_stream(stream)
    return result
