"""The promises of SECURITY.md: no use of the network, and no data file runs code."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lc_triton
from lc_triton import errors
from lc_triton.demo import checkpoint
from lc_triton.tiles import store, workloads

PACKAGE = Path(lc_triton.__file__).parent
ROOT = PACKAGE.parent
# Modules that reach the network, or turn data into objects of any class.
FORBIDDEN = {
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "xmlrpc", "requests", "aiohttp", "asyncio"),
    *("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "ctypes.util"),
}
# They run Triton's disassemblers by their full path, and Python itself, to read an HDF5 file.
RUNS_PROGRAMS = {"launch/disassembly.py", "keras/saved/hdf5.py"}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_module_reaches_the_network_or_runs_data(path):
    tree = ast.parse(path.read_text())
    for name in imported(tree):
        assert not {name, name.split(".")[0]} & FORBIDDEN, name
        assert name.split(".")[0] != "subprocess" or path.relative_to(PACKAGE).as_posix() in RUNS_PROGRAMS
    for name, keywords in calls(tree):
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), name
        if name == "torch.load":
            assert keywords.get("weights_only") == "True"
        if name.endswith(("np.load", "numpy.load")):
            assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("shell", "False") == "False"


# Uses the library on the CPU under an audit hook, which records sockets, started programs and pickles.
WATCHED = """
import json, sys, tempfile
from pathlib import Path

heard, quiet = [], True
RUNS = ("exec", "compile", "pickle.find_class", "os.exec", "os.fork")

def hook(event, args):
    if event.startswith(("socket.", "urllib.", "http.", "ftplib.", "smtplib.")):
        heard.append(event)
    elif not quiet and (event in RUNS or "subprocess" in event):
        heard.append(f"{event} {args}")

sys.addaudithook(hook)
import torch
import lc_triton
from lc_triton import cli
from lc_triton.demo import checkpoint
from lc_triton.tiles import paths, store, workloads

def use(folder):
    layer = lc_triton.LocalConv2d(2, 3, 3, input_size=5, activation="silu")
    layer(torch.randn(2, 2, 5, 5)).sum().backward()
    lc_triton.LocallyConnected2D(2, 3)(torch.randn(2, 5, 5, 2)).sum().backward()
    torch.save(layer.state_dict(), folder / "layer.pt")
    layer.load_state_dict(torch.load(folder / "layer.pt", weights_only=True))
    checkpoint.save(folder / "checkpoint.pt", {"seed": 0}, {"run": layer.state_dict()})
    checkpoint.load(folder / "checkpoint.pt", {"seed": 0})
    workloads.read(paths.shipped_workloads())
    (folder / "tiles.json").write_text(json.dumps({"kind": store.KIND, "schema": store.SCHEMA, "entries": []}))
    store.read(folder / "tiles.json")
    store.merge(folder / "tiles.json", "GPU", "forward", {})
    assert cli.main(["env"]) == 0

with tempfile.TemporaryDirectory() as folder:
    use(Path(folder))  # imports what it needs
    quiet = False
    use(Path(folder))
    quiet = True
print("HEARD", heard)
"""


@pytest.mark.subprocess
@pytest.mark.slow
def test_using_the_library_opens_no_socket_and_runs_nothing():
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEARD []"


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_audit_hook_records_events():
    bad = "import socket; socket.socket().close(); quiet = False; eval('1'); __import__('pickle').loads(TEXT)\n"
    text = pickle.dumps(Path("a"))
    code = (
        WATCHED.split("import torch\n")[0]
        + bad.replace("TEXT", repr(text))
        + "print(sorted({h.split()[0] for h in heard}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"socket.__new__", "exec", "compile", "pickle.find_class"} <= set(ast.literal_eval(done.stdout))


class Bomb:
    """An object that runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def bombs(marker):
    content = {"kind": checkpoint.KIND, "version": checkpoint.VERSION, "settings": {}, "runs": {"a": Bomb(marker)}}
    return {"checkpoint": content, "bare": Bomb(marker)}


@pytest.mark.parametrize("kind", ["checkpoint", "bare"])
def test_a_checkpoint_that_would_run_something_is_refused(kind, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "checkpoint.pt"
    torch.save(bombs(marker)[kind], path)
    with pytest.raises(errors.CheckpointError, match="damaged or no checkpoint"):
        checkpoint.load(path, {})
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # unpickling does run it


@pytest.mark.parametrize("read", [store.read, workloads.read], ids=["tiles", "workloads"])
def test_a_pickle_in_place_of_json_is_refused(read, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "data.json"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(errors.LocalConvError, match=r"cannot be read|no JSON"):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"kind": store.KIND, "schema": 1, "entries": [{"problem": "__import__('os').mkdir('ran')"}]}),
        "[" * 100_000,
        json.dumps({"kind": store.KIND, "schema": 1, "entries": [{"problem": {"kernel": [10**400] * 4}}]}),
    ],
    ids=["code", "deep", "huge numbers"],
)
def test_hostile_json_is_refused_in_one_line(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiles.json"
    path.write_text(text)
    with pytest.raises(errors.ConfigFileError):
        store.read(path)
    with pytest.raises(errors.WorkloadError):
        workloads.read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tiles.json"]


def test_the_page_names_each_kind_of_file():
    text = (ROOT / "SECURITY.md").read_text()
    for name in ("tile", "workloads", "Keras", "checkpoint", "weights_only=True"):
        assert name in text, name
