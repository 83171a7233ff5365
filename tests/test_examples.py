"""The examples run, and compute what they say."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lc_triton.errors import LocalConvError

KERAS = Path(__file__).parent / "keras" / "saved"
EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_has_a_test_and_a_place_in_the_guide():
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names == ["convert_keras", "deepface", "genome", "low_rank", "share", "train"]
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    for name in names:
        assert f"examples/{name}.py" in page
        assert callable(importlib.import_module(f"examples.{name}").main)


def test_training_a_layer(capsys):
    errors = importlib.import_module("examples.train").main(steps=60)
    assert errors["locally connected"] < 0.02 < errors["convolution"]
    assert "convolution:" in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_of_a_genome(capsys):
    found = importlib.import_module("examples.genome").main(steps=80)
    assert found["genome"] > found["perceptron"]
    assert found["causal genes found"] == 2
    assert "the genes that matter most: [" in capsys.readouterr().out


@pytest.mark.slow
def test_low_rank_on_digits(capsys):
    pytest.importorskip("sklearn")
    found = importlib.import_module("examples.low_rank").main(steps=60, seeds=(0,))
    parameters = [found[name][0] for name in ("nn.Conv2d", "rank 2", "rank 4", "LocalConv2d")]
    assert parameters == sorted(parameters)
    assert min(accuracy for _, accuracy in found.values()) > 0.7
    assert f"| LocalConv2d | {parameters[-1]:,} |" in capsys.readouterr().out


@pytest.mark.subprocess
def test_converting_a_keras_model(capsys):
    pytest.importorskip("h5py")
    assert importlib.import_module("examples.convert_keras").main() < 1e-6
    assert "(local): LocallyConnected2D(4" in capsys.readouterr().out


@pytest.fixture
def face_weights(tmp_path):
    """A file of weights alone, as `model.save_weights("faces.h5")` of Keras 2 writes one, of a small DeepFace."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "faces.h5"
    with h5py.File(KERAS / "deepface.h5") as whole, h5py.File(path, "w") as alone:
        for name, value in whole["model_weights"].attrs.items():
            alone.attrs[name] = value
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", alone)
    return path


SMALL_FACES = {"classes": 8, "size": 52, "channels": (4,) * 5, "kernels": (11, 9, 5, 3, 3), "units": 16}


@pytest.mark.subprocess
def test_faces_are_described_with_published_weights(face_weights, tmp_path, monkeypatch, capsys):
    deepface = importlib.import_module("examples.deepface")
    model = deepface.load(face_weights, deepface.DeepFace(**SMALL_FACES))
    assert "7 layer(s) matched" in capsys.readouterr().out
    data = np.load(KERAS / "outputs.npz")
    x, want = (torch.from_numpy(data[f"deepface/{letter}0"]) for letter in "xy")
    with torch.no_grad():
        got = model(x.movedim(-1, 1)).softmax(-1)
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()
    monkeypatch.setattr(deepface, "DeepFace", lambda classes: type(model)(**{**SMALL_FACES, "classes": classes}))
    deepface.main([str(face_weights), "--classes", "8", "--out", str(tmp_path / "faces.pt")])
    assert "descriptions of two images: (2, 16)" in capsys.readouterr().out
    model.load_state_dict(torch.load(tmp_path / "faces.pt", weights_only=True))


@pytest.mark.subprocess
def test_weights_of_other_faces_are_refused(face_weights):
    deepface = importlib.import_module("examples.deepface")
    with pytest.raises(LocalConvError, match=r"kernel of layer 'F8' has shape \(16, 8\) in the file, not \(16, 9\)"):
        deepface.load(face_weights, deepface.DeepFace(**{**SMALL_FACES, "classes": 9}))


@pytest.mark.parametrize("size", [7, 8])
def test_the_pooling_of_the_face_example_is_tensorflows(size):
    deepface = importlib.import_module("examples.deepface")
    model = deepface.DeepFace(classes=2, size=size, channels=(1,) * 5, kernels=(1,) * 5, units=2)
    x = torch.randn(1, 1, size, size)
    low, high = (1, 1) if size % 2 else (0, 1)
    padded = nn.functional.pad(x, (low, high, low, high), value=-torch.inf)
    assert torch.equal(model.M2(x), nn.functional.max_pool2d(padded, 3, 2))


@pytest.mark.slow
@pytest.mark.subprocess
def test_sharing_a_layer_over_two_processes():
    shared, alone = importlib.import_module("examples.share").main()
    assert shared == pytest.approx(alone, rel=1e-6)
    assert alone[2] < alone[0]


def test_the_notebook_runs(monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    names = {}
    content = json.loads((EXAMPLES / "first_layer.ipynb").read_text())
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # `make docs` makes the results; the file has none
            exec(compile("".join(cell["source"]), "first_layer.ipynb", "exec"), names)
    pyplot.close("all")
    assert names["errors"]["locally connected"] < 0.05 < 0.5 < names["errors"]["convolution"]
