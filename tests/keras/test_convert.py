"""`lc-triton convert`: modules of the user, mixed precision, and refused files."""

import json
from pathlib import Path

import pytest
import torch

from lc_triton.cli import main
from lc_triton.errors import ArgumentValueError
from lc_triton.keras import load_model
from lc_triton.keras.saved.comparison import compare
from tests.keras.outputs import extract_archive, load_arrays

pytestmark = pytest.mark.subprocess

HERE = Path(__file__).parent / "saved"
MODULES = """
import torch
from torch import nn


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("offset", torch.zeros(channels))

    def forward(self, x):
        return x * self.scale + self.offset


class Block(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.up, self.down = nn.Linear(3, units), nn.Linear(units, 3)

    def forward(self, x, factor=1.0):
        return factor * self.down(self.up(x).relu())


modules = {
    "Scale": lambda layer: Scale(layer.input_shapes[0][-1]),
    "Block": lambda layer: Block(layer.config["units"]),
    "double": lambda layer: lambda x: x * 2 + 1,
    "difference": lambda layer: torch.sub,
    "quarter": lambda layer: lambda x: x / 4,
    "sine": lambda layer: torch.sin,
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import numpy as np

    where = extract_archive("graphs", tmp_path_factory.mktemp("convert"))
    for name in ("custom", "mixed", "keyed"):
        arrays = {f"{side}{i}": a.numpy() for side in "xy" for i, a in enumerate(load_arrays(where, name, side))}
        np.savez(where / f"{name}.npz", **arrays)
    (where / "mine.py").write_text(MODULES)
    return where


def convert(capsys, *arguments):
    status = main(["convert", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_modules_of_a_file_of_the_user(folder, tmp_path, capsys):
    out = tmp_path / "model.pt"
    arguments = ("--out", out, "--check", folder / "custom.npz", "--modules", folder / "mine.py")
    status, printed, _ = convert(capsys, folder / "custom.h5", *arguments)
    assert status == 0
    assert "within 1e-05" in printed
    assert f'load_model("{out}", modules=modules) reads it, with the modules of mine.py' in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "it is no file"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("module = {}", "it assigns no modules"),
        ("modules = {'double': 3}", "modules['double'] must be a factory"),
        ("modules = {'dubble': lambda layer: abs}", "got 'dubble'"),
    ],
)
def test_a_wrong_file_of_modules_is_named(text, message, folder, tmp_path, capsys):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    status, printed, error = convert(capsys, folder / "custom.h5", "--out", tmp_path / "m.pt", "--modules", path)
    assert status == 2
    assert printed == ""
    assert message in error
    assert error.count("\n") == 1


def test_mixed_precision_is_compared_with_a_larger_tolerance(folder, tmp_path, capsys):
    status, printed, _ = convert(
        capsys, folder / "mixed.h5", "--out", tmp_path / "m.pt", "--check", folder / "mixed.npz"
    )
    assert status == 0
    assert "within 0.01" in printed
    assert "float16" in printed
    assert "mixed_float16" in printed
    with torch.no_grad():
        assert load_model(tmp_path / "m.pt")(torch.zeros(1, 5, 5, 2)).dtype == torch.float32


def test_dictionaries_are_compared_in_any_order_or_by_name(folder, tmp_path):
    import numpy as np

    model = load_model(folder / "keyed.h5")
    with np.load(folder / "keyed.npz") as file:
        data = dict(file)
    by_name = {"p": data["x0"], "q": data["x1"], "second": data["y0"], "first": data["y1"]}
    swapped = {"x0": data["x1"], "x1": data["x0"], "y0": data["y1"], "y1": data["y0"]}
    wrong = {**data, "y0": data["y0"] + 0.1}
    for arrays, agrees in ((by_name, True), (swapped, True), (wrong, False)):
        np.savez(tmp_path / "check.npz", **arrays)
        assert (compare(model, tmp_path / "check.npz").error < 1e-6) == agrees
    np.savez(tmp_path / "check.npz", **{**data, "y0": data["y0"][:, :1]})
    with pytest.raises(ArgumentValueError, match="y in --check"):
        compare(model, tmp_path / "check.npz")


def test_outputs_that_differ_are_not_written(folder, tmp_path, capsys):
    import numpy as np

    with np.load(folder / "keyed.npz") as file:
        data = dict(file)
    np.savez(tmp_path / "check.npz", **{**data, "y0": data["y0"] + 0.1})
    out = tmp_path / "m.pt"
    status, printed, _ = convert(capsys, folder / "keyed.h5", "--out", out, "--check", tmp_path / "check.npz")
    assert (status, out.exists()) == (1, False)
    assert printed.endswith("Nothing was written: the outputs are not those of Keras.\n")


def test_arrays_that_are_none_are_named(folder, tmp_path):
    import numpy as np

    model, path = load_model(folder / "keyed.h5"), tmp_path / "check.npz"
    path.write_text("no archive")
    with pytest.raises(ArgumentValueError, match=r"--check must be an \.npz file \("):
        compare(model, path)
    np.savez(path, z=np.zeros(2))
    with pytest.raises(ArgumentValueError, match=r"--check must be a file with arrays x and y, as np\.savez.* with z"):
        compare(model, path)


def test_other_files_are_refused_with_a_way_to_convert_them(folder, tmp_path, capsys):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "ckpt.index").write_bytes(b"")
    save = 'load it in Keras 2 and model.save("x.h5")'
    for path, message in (
        (tmp_path / "saved", f"it is a SavedModel of TensorFlow: {save}"),
        (tmp_path / "saved" / "saved_model.pb", f"it is a SavedModel of TensorFlow: {save}"),
        (tmp_path / "ckpt", f"it is a checkpoint of TensorFlow: {save}"),
        (tmp_path / "ckpt.index", f"it is a checkpoint of TensorFlow: {save}"),
        (folder / "nested.json", "it is a configuration in JSON, without weights"),
        (folder / "nested.weights.h5", "as config= (--config on the command line)"),
    ):
        status, printed, error = convert(capsys, path, "--out", tmp_path / "m.pt")
        assert (status, printed, error.count("\n")) == (2, "", 1)
        assert message in error


@pytest.mark.filterwarnings("default")
def test_warnings_are_printed_as_text(folder, tmp_path, capsys):
    config = json.loads((HERE / "local_1_channels_last.json").read_text())
    config["config"]["layers"][1]["config"]["kernel_regularizer"] = {"class_name": "Mine", "config": {}}
    (tmp_path / "model.json").write_text(json.dumps(config))
    arguments = ("--config", tmp_path / "model.json", "--out", tmp_path / "m.pt")
    status, _, error = convert(capsys, HERE / "local_1_channels_last.weights.h5", *arguments)
    assert status == 0
    assert error.startswith(
        "lc-triton: warning: model 'local_1_channels_last' is trained without what could not be read"
    )
    assert error.count("\n") == 1
