"""The examples run, and compute what they say."""

import importlib
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_has_a_test_and_a_place_in_the_guide():
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names == ["convert_keras", "genome", "low_rank", "share", "train"]
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
            assert cell["outputs"] == []  # results are made by `make docs`, not kept
            exec(compile("".join(cell["source"]), "first_layer.ipynb", "exec"), names)
    pyplot.close("all")
    assert names["errors"]["locally connected"] < 0.05 < 0.5 < names["errors"]["convolution"]
