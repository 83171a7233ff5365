"""What a user may choose about the demonstration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lc_triton.core.arguments import check_int, check_name
from lc_triton.errors import ArgumentValueError

OPTIMIZERS = ("torch", "fused")
DTYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """The demonstration's settings, checked.

    Args:
        epochs: passes over the training images.
        batch_size: images a step.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1".
        dtype: "float32" or "float64", or "float16" or "bfloat16" by autocast with float32 weights.
        out: the folder for checkpoint, table and picture.
        seed: of weights, batch order and dropout; the test images are the same for all seeds.
        resume: go on from the checkpoint in `out`.
        nproc: processes of this machine that share the locally connected layers.
        optimizer: "torch" for `torch.optim.AdamW`, "fused" for `FusedAdamW`, which updates weights in backward.

    Raises:
        LocalConvError: a value out of range, or a device that is not here.
    """

    epochs: int = 40
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "float32"
    out: Path = Path("lc-triton-demo")
    seed: int = 0
    resume: bool = False
    nproc: int = 1
    optimizer: str = "torch"

    def __post_init__(self) -> None:
        check_int("epochs", self.epochs, 1)
        check_int("batch_size", self.batch_size, 1)
        check_int("seed", self.seed, 0)
        check_int("nproc", self.nproc, 1)
        check_name("dtype", self.dtype, DTYPES)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        object.__setattr__(self, "out", Path(self.out))
        if self.out.exists() and not self.out.is_dir():
            raise ArgumentValueError(name="out", value=str(self.out), allowed="a folder, or the name of a new one")
        _check_device(self.device)
        gpus, device = torch.cuda.device_count(), self.torch_device
        if device.type == "cuda" and self.nproc > 1 and (device.index is not None or self.nproc > gpus):
            allowed = f"1 with this device; at most {gpus} with --device cuda, one a GPU; any number with --device cpu"
            raise ArgumentValueError(name="nproc", value=self.nproc, allowed=allowed)

    @property
    def torch_device(self) -> torch.device:
        """The device that runs it."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of inputs and products."""
        return {
            "float32": torch.float32,
            "float64": torch.float64,
            "float16": torch.float16,
            "bfloat16": torch.bfloat16,
        }[self.dtype]

    @property
    def fingerprint(self) -> dict[str, int | str]:
        """The settings that decide the weights: a checkpoint belongs to one set of them."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "device": self.torch_device.type,
            "dtype": self.dtype,
            "seed": self.seed,
            "optimizer": self.optimizer,
        }


def _check_device(name: str) -> None:
    if name == "auto":
        return
    try:
        device = torch.device(name)
        here = device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())
    except (RuntimeError, TypeError):
        here = False
    if not here:
        gpus = torch.cuda.device_count()
        allowed = (
            "auto, cpu" + "".join(f", cuda:{i}" for i in range(gpus)) + ("" if gpus else " (torch sees no GPU here)")
        )
        raise ArgumentValueError(name="device", value=name, allowed=f"one of {allowed}")
