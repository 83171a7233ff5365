"""Measure a tile for each launch whose kernel has none measured."""

from __future__ import annotations

import warnings
from functools import partial
from threading import Lock

import torch

from lc_triton.core.backend import interpreting
from lc_triton.errors import ConfigFileError, TuningError
from lc_triton.search.agreement import agree
from lc_triton.search.run import check_seconds, tune_one
from lc_triton.search.strategy import Bench, Outcome
from lc_triton.tiles import paths, store
from lc_triton.tiles.config import PASSES, TileConfig
from lc_triton.tiles.device import Device, of_gpu
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task


def check_gpu() -> None:
    """Make sure that kernels can be timed here.

    Raises:
        TuningError: with what is missing.
    """
    if interpreting():
        raise TuningError(reason="TRITON_INTERPRET=1 interprets the kernels on the CPU: unset it")
    if not torch.cuda.is_available():
        raise TuningError(reason="kernels are timed on a GPU, and torch sees none: use a machine and a torch with one")


def gpu_bench(task: Task, gpu: int) -> Bench:
    """The bench of a task on a GPU; imports triton."""
    from lc_triton.search.bench import GpuBench

    return GpuBench(task, gpu)


class Tuner:
    """Measures tiles on buffers of its own and files them in the user's folder.

    Args:
        seconds: for each kernel.

    Raises:
        TuningError: there is no GPU.
        ArgumentValueError: `seconds` is not above 0.
        ConfigFileError: the user's folder cannot be written.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = check_seconds("seconds", seconds)
        check_gpu()
        self._one_at_a_time = Lock()  # the threads of several GPUs would disturb each other's times
        device = of_gpu(torch.cuda.current_device())
        for pass_name in PASSES:
            store.check_writable(store.file_of(paths.user_configs(), device.arch_name, device.folder, pass_name))

    def __call__(self, task: Task, gpu: int) -> TileConfig:
        """The tile for a launch on the GPU with this index."""
        device = of_gpu(gpu)
        if task.weight_itemsize == 1:  # a search draws weights as floats, and knows no quantized ones
            return select(task, device).config
        if torch.cuda.is_current_stream_capturing():
            before = "run the model once before the capture"
            _warn(f"a CUDA graph is being captured, so {task.pass_name} is not tuned: {before}")
            return select(task, device).config
        with self._one_at_a_time:
            return agree(
                task,
                device,
                decide=partial(self._decide, task, device, gpu),
                otherwise=lambda: select(task, device).config,
                patience=600 + 10 * self._seconds,
            )

    def _decide(self, task: Task, device: Device, gpu: int) -> TileConfig:
        """The tile on file, if it was measured for the same problem and kernel; else the fastest of a search."""
        choice = select(task, device)
        if choice.source in ("user", "shipped") and choice.key == task.key and not choice.stale:
            return choice.config
        path = store.file_of(paths.user_configs(), device.arch_name, device.folder, task.pass_name)
        outcome = Outcome()
        try:
            tune_one(task, device, lambda task: gpu_bench(task, gpu), path, self._seconds, outcome)
        except ConfigFileError as error:
            _warn(str(error))
        if outcome.times:
            return outcome.ranking[0]
        reason = next(iter([*outcome.failed.values(), *outcome.wrong.values()]), "no candidate was tried")
        _warn(f"no tile of {task.pass_name} could be measured ({reason}), so the one before stays in use")
        return choice.config


def _warn(message: str) -> None:
    warnings.warn(f"lc_triton: {message}", RuntimeWarning, stacklevel=4)
