"""Check that a tile computes the definition: a tile with wrong results cannot win."""

from __future__ import annotations

import math

import torch

from lc_triton.ops import reference
from lc_triton.search import comparison, scratch, updating
from lc_triton.search.strategy import Disagreement
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.task import Task

SAMPLES = 8  # of the batch, evenly spaced, are compared; all outputs must have been written


class Judge:
    """Runs tiles of one task on tensors whose results are known, in float64.

    Args:
        task: the kernel.
        tensors: its inputs, and outputs that each call overwrites.
    """

    def __init__(self, task: Task, tensors: scratch.Tensors) -> None:
        self._task = task
        self._tensors = dict(tensors)
        self._of_update: updating.Judge | None = None
        self._samples = comparison.sample_indices(task.batch, SAMPLES)
        if task.pass_name == "weight_grad":
            self._tensors["g"] = comparison.mask_samples(tensors["g"], self._samples)
        self._expected = _expected(task, self._tensors, self._samples)
        if task.update is not None:
            self._of_update = updating.Judge(task, self._tensors, self._expected["dw"], scratch.run)

    def check(self, config: TileConfig) -> None:
        """Raise `Disagreement` with the error of the results, or the error of a kernel that cannot run."""
        if self._of_update is not None:
            self._of_update.check(config)
            return
        outputs = scratch.OUTPUTS[self._task.pass_name]
        for name in outputs:
            self._tensors[name].fill_(math.nan)
        scratch.run(self._task, self._tensors, config)
        for name in outputs:
            got, want = self._tensors[name], self._expected[name]
            if got.isnan().any():
                raise Disagreement(f"{name} has NaN, or numbers that were never written")
            got = got if self._task.pass_name == "weight_grad" else got[self._samples]
            mismatch = comparison.find_mismatch(self._task, name, got, want)
            if mismatch is not None:
                raise Disagreement(mismatch)


def _expected(task: Task, tensors: scratch.Tensors, samples: list[int]) -> scratch.Tensors:
    """The outputs by the definition: of the chosen samples, or summed over them."""
    geo = task.geometry
    if task.pass_name == "weight_grad":
        dw = torch.zeros(geo.weight_shape, dtype=torch.float64, device=tensors["x"].device)
        db = torch.zeros(geo.bias_shape, dtype=torch.float64, device=tensors["x"].device)
        for b in samples:  # one by one: the definition repeats the weights for each sample
            weight, bias = torch.zeros_like(dw).requires_grad_(), torch.zeros_like(db).requires_grad_()
            y = reference.forward(tensors["x"][b : b + 1].double(), weight, bias, geo)
            of_weight, of_bias = torch.autograd.grad(y, (weight, bias), tensors["g"][b : b + 1].double())
            dw += of_weight
            db += of_bias
        return {"dw": dw, "db": db}
    first = tensors[scratch.INPUTS[task.pass_name][0]]
    weight = tensors["weight"].to(first.dtype).double()  # as the kernels round it
    results = []
    for b in samples:
        sample = first[b : b + 1].double()
        if task.pass_name == "forward":
            results.append(reference.forward(sample, weight, tensors["bias"].double(), geo))
        else:
            x = torch.zeros(1, *geo.in_spatial, geo.in_channels, dtype=torch.float64, device=first.device)
            x.requires_grad_()
            results += torch.autograd.grad(reference.forward(x, weight, None, geo), x, sample)
    (name,) = scratch.OUTPUTS[task.pass_name]
    return {name: torch.cat(results)}
