"""Random changes of the state of a layer, and its outputs, gradients and updates against the definition.

    python -m tests.fuzz.states --cases 2000 --seed 0

A case is a layer of any class, at most six changes of its state, a call of it, gradients that `accumulate_gradients`
adds, and a step of a fused optimizer. The result must be that of `lc_triton.ops.reference` in float64 for the layer's
weight, bias and arguments. A LocalConvError is allowed, and an error of torch for a change or a call that torch refuses
(`TORCH_REFUSES`). Anything else is a finding.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd import graph
from torch.nn.utils import parametrize

from lc_triton import FusedSGD, LocalConvError, accumulate_gradients
from tests.fuzz import state_layers
from tests.fuzz.state_changes import CHANGES

EAGER = {
    "plain": lambda layer, x: layer(x),
    "functional_call": lambda layer, x: torch.func.functional_call(layer, dict(layer.named_parameters()), (x,)),
    "ensemble": state_layers.ensemble,
    "vmap": lambda layer, x: torch.func.vmap(layer)(x.unsqueeze(1)).squeeze(1),
    "checkpoint": lambda layer, x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False),
    "in place": lambda layer, x: layer(x).add_(1).sub_(1),
    "resized": state_layers.resized,
}
CONTEXTS: dict[str, Callable[[], Any]] = {
    "none": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "saved hooks": lambda: graph.saved_tensors_hooks(torch.clone, torch.clone),
    "save_on_cpu": graph.save_on_cpu,
}
TORCH_REFUSES = [  # patterns of the action, and of torch's message
    (r"call in place", r"modified by an inplace operation|is a view and is being modified"),
    (r"call inference_mode", r"Inference tensors cannot be saved"),
    (r"call ensemble", r"at least one Tensor to vmap over|must override the setup_context|autocast::prioritize"),
    (r"call vmap", r"must override the setup_context"),
    (r"step", r"refers to a single memory location"),  # an expanded parameter
    (r"call|program|forward|step", r"as parameter '\w+' \(torch.nn.Parameter or None"),  # a pruned weight was assigned
    (r"copy", r"parametrized modules is only supported through state_dict"),
    (r"program", r"backward hooks assigned|Guard failed|Only Tensors created explicitly"),
    (r"convert a net", r"Kernel size can't be greater|size should be less|causes wrapping"),
    (r"load", r"Error\(s\) in loading state_dict"),  # into expanded weights
    (r"dtype", r"Couldn't swap"),
]
# Changes by torch's functions: an error without a frame of lc_triton is torch's.
CHANGES_BY_TORCH = (
    "parametrize",
    "old norm",
    "prune",
    "end",
    "assign",
    "assign another",
    "tie",
    "bias",
    "load",
    "values in place",
)


class Case:
    """A layer, the log of its changes, and the random generator that draws both."""

    def __init__(self, seed: int, number: int) -> None:
        self.rng = random.Random(f"{seed}-{number}")
        self.log: list[str] = []
        self.programs: list[tuple[str, Any, Tensor, dict[str, Any], Any]] = []
        torch.manual_seed(number)
        self.layer: Any = None

    def pick(self, *values: Any) -> Any:
        return self.rng.choice(values)

    def ints(self, low: int, high: int, count: int) -> tuple[int, ...]:
        return tuple(self.rng.randint(low, high) for _ in range(count))

    def run(self) -> None:
        """Draw a layer, change it, then call it and its traced programs."""
        self.layer = state_layers.draw_layer(self)
        for _ in range(self.rng.randint(0, 6)):
            name = self.pick(*CHANGES, "program", "program")
            self.log.append(name)
            before = self.layer
            try:
                self.trace() if name == "program" else CHANGES[name](self)
            except Exception as error:
                self.raise_unexpected(name, error)
                self.layer = before
        mode, context = self.pick(*EAGER), self.pick(*CONTEXTS)
        x = self.input()
        if state_layers.changes_itself(self.layer) or (mode == "ensemble" and state_layers.weight_hooks(self.layer)):
            mode, context = "plain", "none"
        if mode == "vmap" and (x.ndim != self.layer.ndim + 2 or not x.numel()):
            mode = "plain"
        try:
            self.log.append(f"call {mode}, {context}: x {tuple(x.shape)} {x.stride()} {x.dtype}")
            cached = mode not in ("functional_call", "ensemble", "vmap") and context != "autocast"
            self.compare(
                lambda x: EAGER[mode](self.layer, x), state_layers.arguments_of(self.layer), x, context, cached=cached
            )
        except Exception as error:
            self.raise_unexpected(f"call {mode}" if mode != "plain" else f"call {context}", error)
        for name, program, x, arguments, structure in self.programs:
            if structure == state_layers.structure(self.layer) and not state_layers.changes_itself(self.layer):
                self.log.append(f"program {name}, later")
                try:
                    self.compare(program, arguments, self.like(x), "none", cached=False)
                except Exception as error:
                    self.raise_unexpected("program", error)
        for run in (self.accumulate, self.train):
            try:
                run()
            except Exception as error:
                self.raise_unexpected("step", error)

    def accumulate(self) -> None:
        """Compare the gradients that `accumulate_gradients` adds with the sums of autograd's."""
        layer, x = self.layer, self.input()
        leaves = {name: p for name, p in layer.named_parameters() if p.requires_grad}
        if not leaves or state_layers.changes_itself(layer):
            return
        mode = self.pick("plain", "plain", "retained", "penalised", "two calls", "hooked")
        main_dtype = self.pick(None, None, torch.float32, torch.float64) if mode != "hooked" else None
        self.log.append(f"gradients added, {mode}, {main_dtype}: x {tuple(x.shape)} {x.stride()} {x.dtype}")

        def loss() -> Tensor:
            calls = [layer(x) for _ in range(2 if mode == "two calls" else 1)]
            total = sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() for y in calls)
            return total + sum(0.1 * p.sum() for p in leaves.values()) if mode == "penalised" else total

        requested = torch.autograd.grad(loss(), list(leaves.values()), allow_unused=True)
        layer.zero_grad()
        if main_dtype is not None:
            for p in leaves.values():
                p.main_grad = torch.zeros(p.shape, dtype=main_dtype)
        hooks = [p.register_hook(lambda g: 3 * g) for p in leaves.values()] if mode == "hooked" else []
        with accumulate_gradients(layer):
            for _ in range(3):
                total = loss()
                total.backward(retain_graph=mode == "retained")
                if mode == "retained":
                    total.backward()
        for hook in hooks:
            hook.remove()
        factor = 3 * {"retained": 2, "hooked": 3}.get(mode, 1)
        eps = max(torch.finfo(dtype).eps for dtype in (x.dtype, layer.weight.dtype, main_dtype or torch.float64))
        for (name, p), g in zip(leaves.items(), requested, strict=True):
            got = 0 if p.grad is None else p.grad.double()
            if main_dtype is not None:
                got = got + p.main_grad.double()
                del p.main_grad
            p.grad = None
            if g is not None:
                assert_close_to(f"the gradient of {name}", got, factor * g.double(), 16 * eps)

    def train(self) -> None:
        """Compare a step of a fused optimizer with a step by autograd's gradients."""
        layer, x = self.layer, self.input()
        leaves = {name: p for name, p in layer.named_parameters() if p.requires_grad}
        if not leaves or state_layers.changes_itself(layer) or layer.weight.dtype.itemsize < 4:
            return
        mode = self.pick("once", "twice", "paused first", "retained", "penalised", "two graphs", "asked for", "hooked")
        self.log.append(f"step, {mode}: x {tuple(x.shape)} {x.stride()} {x.dtype}")
        x.requires_grad_(x.is_floating_point() and self.pick(True, False))
        count = 2 if mode in ("twice", "two graphs") else 1
        (l1, l2), non_neg = self.pick((0.0, 0.0), (0.0, 0.05), (0.1, 0.05)), self.pick(False, False, True)
        options = {"l1": l1, "l2": l2, "non_neg": non_neg}
        optimizer = FusedSGD(layer, lr=0.5, weight_decay=0.1, accumulate=self.pick(1, count), **options)
        if mode == "twice":
            optimizer.accumulate = 2

        def loss() -> Tensor:
            y = layer(x)
            total = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()
            return total + sum(0.1 * p.sum() for p in leaves.values()) if mode == "penalised" else total

        factor = {"twice": 2, "paused first": 2, "retained": 2, "two graphs": 2, "hooked": 3}.get(mode, 1)
        requested = torch.autograd.grad(loss(), list(leaves.values()), allow_unused=True)
        gradients = dict(zip(leaves, requested, strict=True))
        before = {name: p.detach().clone() for name, p in leaves.items()}
        hooks = [p.register_hook(lambda g: 3 * g) for p in leaves.values()] if mode == "hooked" else []
        if mode == "asked for":
            torch.autograd.grad(loss(), list(leaves.values()), allow_unused=True)
        if mode == "paused first":
            with optimizer.paused():
                loss().backward()
        losses = [loss(), loss()] if mode == "two graphs" else [loss()]
        for total in losses:
            total.backward(retain_graph=mode == "retained")
        if mode in ("twice", "retained"):
            (loss() if mode == "twice" else losses[0]).backward()
        optimizer.step()
        for hook in hooks:
            hook.remove()
        eps = max(torch.finfo(t.dtype).eps for t in (x, layer.weight))
        for name, p in leaves.items():
            g = gradients[name]
            old = before[name]
            want = old if g is None else old - 0.5 * (factor * g + (0.1 + 2 * l2) * old + l1 * old.sign())
            want = want.clamp(min=0) if non_neg else want
            assert_close_to(f"{name} after a step", p, want, 4 * eps)

    def raise_unexpected(self, where: str, error: Exception) -> None:
        """Raise an error that is a finding; log the others."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/lc_triton/" in f.filename and f.name != "__setattr__"]
        is_listed = any(re.match(w, where) and re.search(text, str(error)) for w, text in TORCH_REFUSES)
        if not (isinstance(error, LocalConvError) or is_listed or (where in CHANGES_BY_TORCH and not ours)):
            raise error
        self.log[-1] += f" -> {type(error).__name__}"

    def input(self) -> Tensor:
        """A valid input in a random memory layout."""
        (spatial, channels), first = state_layers.size_of(self.layer), not state_layers.is_channels_last(self.layer)
        shape = (channels, *spatial) if first else (*spatial, channels)
        batch = self.pick(0, 1, 2, 3, None)
        if batch is not None or hasattr(self.layer, "data_format"):
            shape = (1 if batch is None else batch, *shape)
        dtype = self.layer.weight.dtype
        if dtype == torch.float32 and self.rng.random() < 0.1:
            dtype = self.pick(torch.float16, torch.bfloat16)
        return state_layers.memory(self, torch.randn(shape).to(dtype))

    def like(self, x: Tensor) -> Tensor:
        """Another input for a program traced with x, of another batch where it has one."""
        batched = x.ndim == self.layer.ndim + 2 and x.shape[0] > 1
        shape = (self.pick(1, 2, 3, 5), *x.shape[1:]) if batched else x.shape
        return state_layers.memory(self, torch.randn(shape).to(x.dtype))

    def trace(self) -> None:
        """Trace a program of the layer, and compare it with the layer now and at the end of the case."""
        x, name = self.input(), self.pick("jit", "jit, loaded", "jit, frozen", "fx", "make_fx", "export")
        if state_layers.changes_itself(self.layer) or not x.numel():
            return
        if name == "make_fx" and x.ndim == self.layer.ndim + 2:
            x = torch.randn(29, *x.shape[1:]).to(x.dtype)  # torch would take equal sizes for the same symbol
        with torch.set_grad_enabled(self.pick(True, False)):
            program = state_layers.trace(name, self.layer, x)
        self.log[-1] += f" {name}"
        self.compare(
            program,
            state_layers.arguments_of(self.layer),
            self.like(x),
            "none",
            cached=False,
            values=name.startswith("jit,"),
        )
        if not name.startswith("jit,"):  # jit programs hold copies of the parameters
            self.programs.append(
                (name, program, x, state_layers.arguments_of(self.layer), state_layers.structure(self.layer))
            )

    def compare(
        self, run: Any, arguments: dict[str, Any], x: Tensor, context: str, *, cached: bool, values: bool = False
    ) -> None:
        """Compare the output and the gradients of x and of all parameters with the definition."""
        low = torch.bfloat16 if context == "autocast" else torch.float64
        layer, x = self.layer, x.detach().requires_grad_(self.pick(True, False))
        with ExitStack() as stack:
            if cached:  # the layer and this test then use the same computed tensors
                stack.enter_context(parametrize.cached())
            stack.enter_context(CONTEXTS[context]())
            y = run(x)
            for hook in state_layers.weight_hooks(layer) if not cached else []:
                hook(layer, (x,))  # a program does not store their results on the layer
            weight, bias = layer.weight, layer.bias
        exact = [None if t is None else t.detach().resolve_neg().double().clone() for t in (x, weight, bias)]
        differentiated = [
            (t, e) for t, e in zip((x, weight, bias), exact, strict=True) if t is not None and t.requires_grad
        ]
        for _, e in differentiated:
            e.requires_grad_()
        want = state_layers.definition(arguments, *exact)
        eps = max(torch.finfo(t.dtype).eps for t in (x, weight, y, torch.empty(0, dtype=low)))
        assert_close_to("the output", y, want, eps)
        kinked = eps > 1e-4 and arguments["activation"] in state_layers.KINKED
        if values or kinked or not differentiated or context in ("no_grad", "inference_mode"):
            return
        assert y.requires_grad, "the output has no graph"
        g = torch.randn(want.shape).to(y.dtype)
        wanted = torch.autograd.grad(want, [e for _, e in differentiated], g.double())
        leaves = {name: t for name, t in (("x", x), *layer.named_parameters()) if t.requires_grad}
        computed, gradients = (
            [t for t, _ in differentiated],
            [d.to(t.dtype) for d, (t, _) in zip(wanted, differentiated, strict=True)],
        )
        options: Any = {"allow_unused": True, "retain_graph": True}
        want_grads = torch.autograd.grad(computed, list(leaves.values()), gradients, **options) if leaves else ()
        got = torch.autograd.grad(y, list(leaves.values()), g, **options) if leaves else ()
        for name, one, other in zip(leaves, got, want_grads, strict=True):
            assert_close_to(f"the gradient of {name}", one, other, 4 * eps)


def assert_close_to(name: str, got: Tensor | None, want: Tensor | None, eps: float) -> None:
    """Compare a result with the expected one; None equals a gradient of zeros."""
    known = want if got is None else got
    if known is None:
        return
    got, want = (torch.zeros_like(known) if t is None else t.detach().double() for t in (got, want))
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)} for {tuple(want.shape)}"
    scale = max([1.0, *want.abs().flatten().tolist()])
    error = max([0.0, *(got - want).abs().flatten().tolist()])
    assert error <= 200 * max(eps, 1e-12) * scale, f"{name}: off by {error:.3g} of {scale:.3g}"


def run(seed: int, number: int) -> str | None:
    """The finding of a case, or None."""
    case = Case(seed, number)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.run()
    except Exception as error:  # an error of any kind is a finding
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
        return "\n    ".join([f"python -m tests.fuzz.states --seed {seed} --case {number}", text, *case.log])
    return None


def main() -> int:
    """Run the cases of the command line; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(description="Random states of layers, compared with the definition.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = range(options.cases) if options.case is None else [options.case]
    found = [finding for number in numbers if (finding := run(options.seed, number)) is not None]
    print(*found, f"{len(found)} findings in {len(numbers)} cases", sep="\n\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
