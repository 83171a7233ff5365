"""`precompile`: the kernels that it compiles, and the use of its folder in another process."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

import lc_triton
from lc_triton import cli
from lc_triton.ahead import manifest, models, report
from lc_triton.errors import ArgumentTypeError, ArgumentValueError, ChannelError, PrecompileError, UnknownNameError
from lc_triton.tiles import paths, store
from lc_triton.tiles.config import PASSES
from lc_triton.tiles.device import by_name, of_gpu


@pytest.fixture(autouse=True)
def _empty_user_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path / "tiles")
    store.read_or_warn.cache_clear()
    yield
    store.read_or_warn.cache_clear()


def network():
    """A network with one locally connected layer among layers of torch."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        lc_triton.LocalConv2d(16, 16, 3, input_size=8, activation="silu"),
        nn.BatchNorm2d(16),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    )


STEP = """
import json, sys
import torch
from triton import knobs
from tests.ahead.test_precompile import network
from lc_triton.ahead.models import compile_model
from lc_triton.ahead.session import collecting
from lc_triton.tiles.device import by_name

with collecting(by_name("h100"), sys.argv[1]) as session:
    compile_model(network(), [(int(sys.argv[2]), 3, 8, 8)], None, None, training=True)
print(json.dumps([session.compiled, session.on_file]))
"""


def second_process(folder, batch=32):
    """The numbers of kernels that a new process compiles, and that it finds in the folder."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(folder), str(batch)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.subprocess
def test_a_second_process_compiles_nothing(tmp_path):
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    result = lc_triton.precompile(model, [(32, 3, 8, 8)], "h100", out=tmp_path / "kernels")
    assert result.compiled >= 3
    assert {task.pass_name for task in result.tiles} == set(PASSES)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert second_process(tmp_path / "kernels") == [0, result.compiled + result.on_file]
    assert second_process(tmp_path / "kernels", batch=1)[0] > 0  # another pitch, and tiles without tl.dot

    moved = tmp_path / "moved"
    shutil.move(tmp_path / "kernels", moved)
    (reason,) = [r for r in manifest.differences(moved) if "built as" in r]
    assert "--relocate" in reason
    assert cli.main(["precompile", "--relocate", str(moved)]) == 0
    assert not [r for r in manifest.differences(moved) if "built as" in r]
    assert second_process(moved)[0] == 0


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize(
    "faces",
    [
        pytest.param(["forward"], marks=pytest.mark.nightly),
        pytest.param(["forward", "input_grad"], marks=pytest.mark.nightly),
        ["forward", "weight_grad"],
    ],
    ids=" ".join,
)
def test_the_option_faces(faces, tmp_path):
    layer = ["--shapes", "8x4,k3,f4", "--batches", "32", "--dtypes", "float32"]
    assert cli.main(["precompile", *layer, "--faces", *faces, "--out", str(tmp_path)]) == 0
    (device,) = manifest.read(tmp_path)["devices"].values()
    assert {task["face"] for task, _ in device["tiles"]} == set(faces)


def test_a_folder_for_several_gpus_is_compared_with_the_nearest(monkeypatch):
    """The nearest device has the same name, else the same architecture, else it is the first of the folder."""
    devices = {name: {"device": asdict(by_name(name))} for name in ("a100", "h100")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for found, nearest in (("a100", "a100"), ("h200", "h100"), ("b200", "a100")):
        monkeypatch.setattr(manifest, "of_gpu", lambda index, found=found: by_name(found))
        assert manifest._gpu_of({"devices": devices}) == nearest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one compiled kernel. Tests change its manifest and restore it."""
    out = tmp_path_factory.mktemp("kernels") / "out"
    result = lc_triton.precompile(lc_triton.LocalConv1d(4, 4, 3, input_size=8), [(32, 4, 8)], out=out, training=False)
    assert (result.compiled, result.on_file) == (1, 0)
    return out


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.subprocess
def test_check_names_the_reasons_against_a_folder(folder, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    assert cli.main(["precompile", "--check", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: Triton here will use its kernels\n"
    path = folder / manifest.NAME
    manifest_text = path.read_text()

    def reasons(change):
        content = json.loads(manifest_text)
        change(content)
        path.write_text(json.dumps(content))
        assert cli.main(["precompile", "--check", str(folder)]) == 1
        path.write_text(manifest_text)
        return capsys.readouterr().out

    output = reasons(lambda c: c["versions"].update(triton="3.5.0"))
    assert "triton is 3." in output
    assert "and was 3.5.0 there: install that version, or build the folder anew" in output
    assert "use that version of Python" in reasons(lambda c: c["versions"].update(python="3.9.0 (cpython-39)"))
    assert "kernels is " in reasons(lambda c: c["versions"].update(kernels="0" * 16))
    assert "other tiles are chosen here for 1 of 1 kernels" in reasons(
        lambda c: c["devices"]["h100"]["tiles"][0][1].update(num_stages=5)
    )
    monkeypatch.setenv("TRITON_ALWAYS_COMPILE", "1")
    assert "TRITON_ALWAYS_COMPILE is set" in reasons(lambda c: None)
    monkeypatch.delenv("TRITON_ALWAYS_COMPILE")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    assert f"Triton's cache is /elsewhere: set TRITON_CACHE_DIR={folder}" in reasons(lambda c: None)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.subprocess
def test_another_gpu_has_other_tiles(folder, monkeypatch):
    from dataclasses import replace

    smaller = replace(of_gpu(0), multiprocessors=114, full_name="NVIDIA H100 PCIe")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(manifest, "of_gpu", lambda index: smaller)
    found = [r for r in manifest.differences(folder) if "multiprocessors" in r]
    assert found == [
        "the GPU here, NVIDIA H100 PCIe, has multiprocessors 114, and the folder is for NVIDIA H100 80GB HBM3 "
        "with 132: other tiles are chosen, so their kernels are not in it"
    ]


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.subprocess
def test_the_command(tmp_path, capsys):
    shape = ["--shapes", "14x14x16,k3,f16", "--batches", "32"]
    out = tmp_path / "out"
    assert cli.main(["precompile", *shape, "--dtypes", "bfloat16/float32", "--inference", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("1 kernels compiled, 0 on file already, for NVIDIA H100 80GB HBM3 (sm_90)")
    assert f"TRITON_CACHE_DIR={out}" in output
    (task, _), *rest = manifest.read(out)["devices"]["h100"]["tiles"]
    assert (task["face"], task["dtype"], task["weight_dtype"], rest) == ("forward", "bfloat16", "float32", [])


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.subprocess
def test_autocast_compiles_for_16_bit_inputs(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), lc_triton.LocalConv1d(4, 4, 3, input_size=8), nn.Linear(6, 2))
    result = lc_triton.precompile(model, [(32, 4, 8)], out=tmp_path / "out", autocast=torch.bfloat16, training=False)
    assert [(t.dtype, t.weight_dtype) for t in result.tiles] == [("bfloat16", "float32")]
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.compile
def test_quantized_weights_keep_their_dtype_under_autocast(tmp_path):
    model = lc_triton.quantize_weights(
        nn.Sequential(nn.Linear(8, 8), lc_triton.LocalConv1d(4, 4, 3, input_size=8)), "int8"
    )
    result = lc_triton.precompile(model, [(32, 4, 8)], out=tmp_path / "out", autocast=torch.bfloat16)
    assert {(t.pass_name, t.dtype, t.weight_dtype) for t in result.tiles} == {
        ("forward", "bfloat16", "int8"),
        ("input_grad", "bfloat16", "int8"),
    }


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize(("batch", "autocast"), [(32, torch.bfloat16), (128, None)])
def test_kernels_of_other_layers(autocast, batch, tmp_path, monkeypatch):
    """The low-rank kernel mixes the basis; for a large batch, the layer computes the weight first."""
    launched = []
    monkeypatch.setattr(
        "lc_triton.launch.launcher.Launch.__init__", lambda self, kernel, *_: launched.append(kernel.__name__)
    )
    monkeypatch.setattr("lc_triton.launch.launcher.Launch.__call__", lambda *args: None)
    layers = {
        (64, 130): lc_triton.LowRankLocalConv1d(64, 64, 3, 130, rank=2, activation="relu"),
        (40, 5): lc_triton.LocalGather(40, torch.randint(-1, 40, (50, 7)), 5, 9),
        (8, 10): lc_triton.quantize_weights(lc_triton.LocalConv1d(8, 16, 3, input_size=10), "int4"),
    }
    for sizes, layer in layers.items():
        lc_triton.precompile(layer, [(batch, *sizes)], out=tmp_path, autocast=autocast)
    low_rank = {"low_rank_forward_kernel"}
    low_rank = low_rank if batch == 32 else {"forward_kernel", "input_grad_kernel", "weight_grad_kernel"}
    gather = {"gather_forward_kernel", "gather_input_grad_kernel", "gather_weight_grad_kernel"}
    assert set(launched) == low_rank | gather | {"four_bits_forward_kernel", "four_bits_input_grad_kernel"}


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("kind", ["gather", "int4", "low rank"])
def test_kernels_of_their_own_are_compiled_for_each_gpu(kind, tmp_path):
    """The same layer for a second GPU: what was compiled for the first one is of another architecture."""
    layer, shape = {
        "gather": lambda: (lc_triton.LocalGather(3, torch.tensor([[0, 1], [1, 2]]), 16, 16), (4, 3, 16)),
        "int4": lambda: (lc_triton.quantize_weights(lc_triton.LocalConv1d(8, 16, 3, input_size=6), "int4"), (4, 8, 6)),
        "low rank": lambda: (lc_triton.LowRankLocalConv1d(16, 16, 1, 128, rank=1), (32, 16, 128)),
    }[kind]()
    for device in ("a100", "h100"):
        made = lc_triton.precompile(layer, [shape], device, out=tmp_path / device, training=False)
        assert (made.compiled, made.on_file) == (1, 0)


class ReadsValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = lc_triton.LocalConv1d(4, 4, 3, input_size=8)

    def forward(self, x):
        return self.layer(x) * float(x.sum())


LAYER = lc_triton.LocalConv1d(4, 4, 3, input_size=8)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((LAYER, [(2, 4, 8)], "h300"), UnknownNameError, "device 'h300' is not known"),
        ((LAYER, []), ArgumentValueError, "input_shapes must be one shape or more"),
        ((LAYER, [8]), ArgumentTypeError, "input_shapes must be a list of shapes, batch included"),
        ((LAYER, [(2, 4, 0)]), ArgumentValueError, "input_shapes must be an integer >= 1, got 0"),
        ((lc_triton.LazyLocalConv1d(4, 3), [(2, 4, 8)]), PrecompileError, "its weight has no shape yet: call the"),
        ((LAYER, [(2, 5, 8)]), ChannelError, "x has 5 channels but the weight is for 4"),
        ((ReadsValues(), [(2, 4, 8)]), PrecompileError, "ReadsValues: it does not run on tensors without memory"),
    ],
)
def test_wrong_arguments(arguments, kind, message, tmp_path, monkeypatch):
    monkeypatch.setattr("lc_triton.launch.launcher.Launch.__init__", lambda *args: None)  # nothing is compiled
    monkeypatch.setattr("lc_triton.launch.launcher.Launch.__call__", lambda *args: None)
    with pytest.raises(kind, match=message.split(":")[0]) as caught:
        lc_triton.precompile(*arguments, out=tmp_path)
    assert message in str(caught.value)


def test_shapes_of_several_inputs():
    assert models._shapes([(2, 4, 8), (2, 3)]) == ((2, 4, 8), (2, 3))


def test_what_a_c_compiler_would_have_added_is_said():
    text = report.Precompiled(Path("kernels"), by_name("h200"), 3).to_text()
    assert "Triton's own launcher is not among them: its first launch needs a C compiler" in text
    assert "C compiler" not in report.Precompiled(Path("kernels"), by_name("h200"), 3, host_module=True).to_text()


def test_a_folder_that_was_moved(tmp_path, capsys):
    """Its list of kernels and Triton's own lists, without the kernels themselves."""
    folder, kernel = tmp_path / "moved", tmp_path / "moved" / "ABC"
    kernel.mkdir(parents=True)
    group = kernel / "__grp__kernel.json"
    group.write_text(json.dumps({"child_paths": {"kernel.ptx": "/before/ABC/kernel.ptx"}}))
    content = {"kind": manifest.KIND, "schema": manifest.SCHEMA, "path": "/before"}
    (folder / manifest.NAME).write_text(json.dumps(content))
    (said, *_) = manifest._settings(folder, content)
    assert said.startswith("the folder was built as /before, and Triton's files name one another by that path")
    assert cli.main(["precompile", "--relocate", str(folder)]) == 0
    assert capsys.readouterr().out == f"1 kernels in {folder} can be used there\n"
    assert json.loads(group.read_text()) == {"child_paths": {"kernel.ptx": str(kernel / "kernel.ptx")}}
    content = manifest.read(folder)
    assert content["path"] == str(folder)
    assert "1 of its files are missing: build the folder anew" in list(manifest._settings(folder, content))


def test_wrong_autocast_and_the_interpreter_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ArgumentValueError, match="autocast must be"):
        lc_triton.precompile(LAYER, [(2, 4, 8)], autocast=torch.float64, out=tmp_path)
    monkeypatch.setattr("lc_triton.ahead.session.interpreting", lambda: True)
    with pytest.raises(PrecompileError, match="TRITON_INTERPRET=1"):
        lc_triton.precompile(LAYER, [(2, 4, 8)], out=tmp_path)


def test_wrong_options(tmp_path, capsys):
    assert cli.main(["precompile", "--shapes", "6x6x16,k3,f16", "--batches", "32"]) == 2
    assert "--out must be given, or else --check or --relocate" in capsys.readouterr().err
    for option in ("--check", "--relocate"):
        assert cli.main(["precompile", option, str(tmp_path)]) == 2
        assert f"lc-triton: {tmp_path / manifest.NAME}: it cannot be read" in capsys.readouterr().err
    (tmp_path / manifest.NAME).write_text(json.dumps({"kind": "another"}))
    assert cli.main(["precompile", "--check", str(tmp_path)]) == 2
    assert "it is not of schema 1" in capsys.readouterr().err
