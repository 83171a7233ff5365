"""Outputs of tf_keras in the archives of saved/, and the comparison with them."""

import zipfile
from pathlib import Path

import numpy as np
import torch

SAVED = Path(__file__).parent / "saved"


def extract_archive(name, where):
    """Extract an archive of models and outputs, and return the folder."""
    with zipfile.ZipFile(SAVED / f"{name}.zip") as archive:
        archive.extractall(where)
    return where


def load_arrays(folder, name, letter):
    """Load the inputs of a model (letter "x") or its outputs (letter "y")."""
    data, found = np.load(folder / "outputs.npz"), []
    while f"{name}/{letter}{len(found)}" in data:
        found.append(torch.from_numpy(data[f"{name}/{letter}{len(found)}"]))
    return found


def assert_outputs_close(outputs, wanted):
    """Check that outputs are those of Keras."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(wanted) > 0
    for i, (got, want) in enumerate(zip(outputs, wanted, strict=True)):
        assert (got.shape, got.dtype) == (want.shape, want.dtype), i
        error = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert error <= 1e-6, (i, f"{error:.1e}")
