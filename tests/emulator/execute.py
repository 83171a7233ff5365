"""Runs a job's kernels on the emulator, and compares what they write with the definition."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from lc_triton import launch
from lc_triton.core.activations import LINEAR, Activation, parse_activation
from lc_triton.core.fused import Penalty, Rule, Small, Update
from lc_triton.core.problem import Problem
from lc_triton.optim import rules
from lc_triton.optim.states import AMAX, CODES, NUMBERS, to_codes
from tests.cases import tensors
from tests.emulator.definition import Definition, Wanted, plain_of
from tests.emulator.driver import Watch, emulated_gpu, sample
from tests.emulator.jobs import TYPES, VIEWS, Job
from tests.emulator.machine import Finding, Result


@dataclass
class Report:
    """The results of a job: for each kernel, wrong numbers and wrong accesses to memory.

    A kind that begins with "note:" is undefined by the instruction set, but the emulator's numbers are correct.
    """

    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    refused: list[str] = field(default_factory=list)  # passes whose tile does not fit the device
    results: list[tuple[str, Result]] = field(default_factory=list)
    compared: int = 0
    seconds: float = 0.0

    @property
    def findings(self) -> dict[str, list[Finding]]:
        """By kernel, without notes."""
        return self._by_kernel(notes=False)

    @property
    def notes(self) -> dict[str, list[Finding]]:
        """By kernel, the notes alone."""
        return self._by_kernel(notes=True)

    @property
    def faults(self) -> list[str]:
        """All faults, one line each; none if the job is sound."""
        lines = [f"{kernel}: {text}" for kernel, texts in self.wrong.items() for text in texts]
        return lines + [f"{kernel}: {f}" for kernel, found in self.findings.items() for f in found]

    def _by_kernel(self, notes: bool) -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = defaultdict(list)
        for kernel, result in self.results:
            found[kernel] += [f for f in result.findings if f.kind.startswith("note:") == notes]
        return {kernel: findings for kernel, findings in found.items() if findings}


def execute(job: Job, change: Callable[[str], str] = lambda ptx: ptx) -> Report:
    """Run a job; a mutation may change its PTX first."""
    started = time.perf_counter()
    run = _Run(job)
    report = run.report
    with emulated_gpu(job.arch, Watch(choose=sample(job.most, job.seed), change=change)) as gpu:
        for config, one in zip(job.configs, (run.forward, run.input_grad, run.weight_grad), strict=True):
            if config is None:
                continue
            try:
                one()
            except OutOfResources as error:
                report.refused.append(f"{one.__name__}: {error}")
        report.results = gpu.results
    report.seconds = time.perf_counter() - started
    return report


class _Run:
    """The tensors of a job, and its passes."""

    def __init__(self, job: Job) -> None:
        types, geo = TYPES[job.types], job.case.geometry
        self.job, self.types, self.geo = job, types, geo
        self.tensors = tensors(job.case, types.x, weight_dtype=types.weight, seed=job.seed)
        self.tensors.x, self.tensors.g = (VIEWS[job.view](v) for v in (self.tensors.x, self.tensors.g))
        act = parse_activation(job.act)
        assert isinstance(act, Activation)
        self.act = act
        self.problem = Problem(geo, self.act, "triton", types.precision)
        self.definition = Definition(geo, *types, self.act)
        self.report = Report()

    def compare(self, kernel: str, wanted: dict[str, Wanted], **got: Tensor | None) -> None:
        """Note what is wrong with a kernel's results."""
        for name, tensor in got.items():
            if tensor is None:
                continue
            wrong, count = wanted[name].mismatch(name, tensor, sampled=bool(self.job.most))
            self.report.compared += count
            if wrong or not count:
                self.report.wrong[kernel].append(wrong or f"{name}: nothing to compare")

    def forward(self) -> None:
        """The forward, which also stores z where the activation's derivative needs it."""
        t, geo = self.tensors, self.geo
        bias = {"none": None, "position": t.bias, "channel": t.bias.reshape(-1, geo.out_channels)[0].clone()}[
            self.job.bias
        ]
        y = torch.zeros((self.job.case.batch, *geo.bias_shape), dtype=self.types.x)
        z = torch.zeros_like(y) if self.act.saves == "z" else None
        launch.forward(t.x, t.weight, bias, y, z, self.problem, self.job.configs[0])
        self.compare("forward_kernel", self.definition.forward(t.x, t.weight, bias), y=y, z=z)

    def input_grad(self) -> None:
        """The input gradient; with a bias, the transposed layer."""
        t, geo = self.tensors, self.geo
        shape = {"none": None, "channel": (geo.in_channels,), "position": (*geo.in_spatial, geo.in_channels)}[
            self.job.transposed_bias
        ]
        bias = None
        if shape is not None:
            gen = torch.Generator().manual_seed(5)
            bias = torch.randn(shape, generator=gen, dtype=torch.float64).to(self.types.weight)
        dx = torch.zeros((self.job.case.batch, *geo.in_spatial, geo.in_channels), dtype=self.types.x)
        problem = self.problem.linear() if bias is None else self.problem
        launch.input_grad(t.g, t.weight, bias, dx, problem, self.job.configs[1])
        self.compare("input_grad_kernel", self.definition.input_grad(t.g, t.weight, bias), dx=dx)

    def weight_grad(self) -> None:
        """The gradients of weight and bias, from that of z, or from that of y and the activation; or the update."""
        if self.job.rule:
            self.weight_update()
            return
        t, config, kernel = self.tensors, self.job.configs[2], "weight_grad_kernel"
        dw = torch.zeros_like(t.weight)
        db = None if self.job.bias == "none" else torch.zeros_like(t.bias)
        upstream, error, fused = t.g, None, self.job.fused and self.act != LINEAR
        if fused:
            forward = self.definition.forward(t.x, t.weight, t.bias)
            saved = forward["y" if self.act.saves == "y" else "z"].exact.to(self.types.x)
            dz = torch.zeros((self.job.case.batch, *self.geo.bias_shape), dtype=self.types.x)
            launch.weight_grad(t.x, t.g, dw, db, self.problem, config, saved, dz)
            wanted = self.definition.activation_grad(t.g, saved)
            self.compare(kernel, wanted, dz=dz)
            exact, within = wanted["dz"].exact, wanted["dz"].rounded_error(dz.dtype)
            upstream = torch.where(dz.isnan(), exact, dz.double())  # NaN: another program would store it
            error = torch.where(dz.isnan(), within, 0.0)
        else:
            launch.weight_grad(t.x, t.g, dw, db, self.problem.linear(), config)
        wanted = self.definition.weight_grad(t.x, upstream, error)
        self.compare(kernel, wanted, dw=dw)
        if db is not None and not (self.job.most and bool(db.isnan().all())):
            self.compare(kernel, wanted, db=db)

    def weight_update(self) -> None:
        """The update of the weight and of the optimizer's states by the weight gradient."""
        t, rule = self.tensors, RULES[self.job.rule]
        gen = torch.Generator().manual_seed(7)
        full = torch.promote_types(t.weight.dtype, torch.float32)
        dtype = torch.bfloat16 if self.job.rule == SMALL else full
        states = tuple(
            torch.rand(t.weight.shape, generator=gen, dtype=torch.float64).add(0.5).to(dtype)
            for _ in range(STATES[self.job.rule])
        )
        added = states[0].to(t.weight.dtype, copy=True) if self.job.seed % 2 and states else None
        small = Small()
        if t.weight.dtype == torch.bfloat16 and states:
            small = Small(torch.randint(-128, 128, t.weight.shape, generator=gen).to(torch.int8))
        if self.job.rule == IN_8_BITS:
            kept = dict(zip(NUMBERS, states, strict=True))
            to_codes(kept, t.weight)
            states, small = tuple(kept[key] for key in CODES), small._replace(amax=kept[AMAX])
        penalty = Penalty(0.01, 0.02, non_neg=True) if self.job.seed % 3 == 1 and states else None
        given = Update(rule, t.weight, states, added, penalty=penalty, small=small)
        wanted = self.definition.weight_update(t.x, t.g, given)
        small = Small(*(None if kept is None else kept.clone() for kept in small))
        copied = tuple(s.clone() for s in states)
        update = Update(rule, t.weight.clone(), copied, added, penalty=penalty, small=small)
        launch.weight_update(t.x, t.g, update, self.problem.linear(), self.job.configs[2])
        got = dict(zip(("weight", "first", "second"), plain_of(update), strict=False))
        self.compare("weight_grad_kernel", wanted, **got)
        if self.job.rule == "add":
            total = launch.weight_grad_square_sum(t.x, t.g, t.weight, None, self.problem.linear(), self.job.configs[2])
            self.compare("weight_grad_kernel", self.definition.square_sum(t.x, t.g), total=total)


# AdamW with states in bfloat16, which are rounded stochastically.
SMALL = "adamw, small states"
# In 8 bits, which are rounded stochastically as well.
IN_8_BITS = "adamw, 8 bits"
# An optimizer's rule at its third step, and how many states it has.
RULES: dict[str, Rule] = {
    "adamw": rules.AdamW(0.01, 0.9, 0.99, 1e-8, 0.1, False, 3, torch.tensor(3.0)),
    "sgd": rules.SGD(0.1, 0.0, 0.0, 0.01, False, True, False),
    "momentum": rules.SGD(0.1, 0.9, 0.5, 0.01, False, False, False),
    "nesterov": rules.SGD(0.1, 0.9, 0.0, 0.01, True, False, False),
    "add": rules.Add(),
}
RULES[SMALL] = RULES[IN_8_BITS] = RULES["adamw"]
STATES = {"adamw": 2, SMALL: 2, IN_8_BITS: 2, "sgd": 0, "momentum": 1, "nesterov": 1, "add": 0}
