"""What tf_keras computed, in the archives of saved/, and the comparison with it."""

import zipfile
from pathlib import Path

import numpy as np
import torch

SAVED = Path(__file__).parent / "saved"


def unpacked(name, where):
    """The folder of an archive's models and outputs."""
    with zipfile.ZipFile(SAVED / f"{name}.zip") as archive:
        archive.extractall(where)
    return where


def golden(folder, name, letter):
    """A model's inputs "x" or outputs "y"."""
    data, found = np.load(folder / "outputs.npz"), []
    while f"{name}/{letter}{len(found)}" in data:
        found.append(torch.from_numpy(data[f"{name}/{letter}{len(found)}"]))
    return found


def check(outputs, wanted):
    """Compare outputs with Keras's."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(wanted) > 0
    for i, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
        assert (got.shape, got.dtype) == (want.shape, want.dtype), i
        error = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert error <= 1e-6, (i, f"{error:.1e}")
