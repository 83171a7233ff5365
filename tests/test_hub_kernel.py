"""The layout of Hugging Face's `kernels`, built from this tree, and loaded beside the installed package."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lc_triton
from tests.cases import assert_close

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "kernel"
    command = [sys.executable, ROOT / "tools" / "hub_kernel.py", out]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(command, check=True, capture_output=True)  # over an earlier build
    return out / "build" / "torch-cpu"


def load(folder):
    """Import a folder under the name in its metadata, as `kernels` does."""
    name = json.loads((folder / "metadata.json").read_text())["id"]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def assert_agrees(kernel):
    """Values, gradients and compiled results equal those of the installed package."""
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    options = {"input_size": (7, 6), "padding": 1, "activation": "gelu", "dtype": torch.float64}
    layers = [package.LocalConv2d(4, 3, 3, **options) for package in (lc_triton, kernel)]
    layers[1].load_state_dict(layers[0].state_dict())
    results = []
    for layer in layers:
        y = layer(x)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
        results.append([y, compiled, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    for got, want in zip(*reversed(results), strict=True):
        assert_close(got, want, 0.0)
    with pytest.raises(kernel.LocalConvError, match="'rleu' is not known"):
        kernel.LocalConv2d(4, 3, 3, 7, activation="rleu")
    assert kernel.parallel.cost.__module__.startswith(kernel.__name__)


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_kernel_computes_what_the_installed_package_does(built):
    kernel = load(built)
    assert_agrees(kernel)
    assert kernel.LocalConv2d is not lc_triton.LocalConv2d
    assert getattr(torch.ops, kernel.__name__).forward.default is not torch.ops.lc_triton.forward.default


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_kernels_package_loads_the_kernel(built, monkeypatch):
    kernels = pytest.importorskip("kernels", reason="of the extra ecosystem")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_agrees(kernels.get_local_kernel(built.parents[1]))


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_kernel_does_not_import_the_installed_package(built):
    found = 0
    for path in built.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert "lc_triton" not in {name.split(".")[0] for name in names}, path
            found += isinstance(node, ast.ImportFrom) and node.level > 0
        assert "torch.ops.lc_triton" not in path.read_text()
        assert '"lc_triton::' not in path.read_text()
    assert found > 300
    assert not (built / "cli").exists()
    assert (built / "workloads.json").is_file()


@pytest.mark.subprocess
def test_an_unrelated_folder_is_not_overwritten(tmp_path):
    (tmp_path / "mine").write_text("")
    command = [sys.executable, ROOT / "tools" / "hub_kernel.py", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is no folder of an earlier build, and not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
