"""Files that are wrong, damaged or malicious: each raises one clear error, runs no code and writes nothing."""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lc_triton.errors import KerasFileError, LocalConvError
from lc_triton.keras import load_model
from lc_triton.keras.saved import hdf5

pytestmark = pytest.mark.subprocess

h5py = pytest.importorskip("h5py")
index = pytest.importorskip("lc_triton.keras.saved.index")

HERE = Path(__file__).parent / "saved"
ROOT = Path(__file__).parents[2]


def assert_refused(path, match):
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(KerasFileError, match=match) as raised:
        load_model(path)
    assert str(path) in str(raised.value)
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "No such file"), (b"", "neither HDF5"), (b"hello", "neither HDF5"), (hdf5.MAGIC, "damaged")],
)
def test_other_files(content, match, tmp_path):
    path = tmp_path / "model.h5"
    if content is not None:
        path.write_bytes(content)
    assert_refused(path, match)


def test_a_folder(tmp_path):
    with pytest.raises(KerasFileError, match="directory"):
        load_model(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "keras"])
def test_a_cut_file(kind, tmp_path):
    content = (HERE / f"local_1_channels_last.{kind}").read_bytes()
    path = tmp_path / f"model.{kind}"
    for part in range(12):
        path.write_bytes(content[: len(content) * part // 12])
        assert_refused(path, "damaged|neither")


def edited(tmp_path, edit):
    """A copy of a saved model, changed by the function `edit` of the open file."""
    path = tmp_path / "model.h5"
    path.write_bytes((HERE / "local_1_channels_last.h5").read_bytes())
    with h5py.File(path, "a") as file:
        edit(file)
    return path


KERNEL = "model_weights/image/image/kernel:0"


def replace(make):
    def edit(file):
        old = file[KERNEL]
        group, name = old.parent, KERNEL.rpartition("/")[2]
        shape = old.shape
        del group[name]
        make(group, name, shape)

    return edit


def virtual(group, name, shape):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape)
    group.create_virtual_dataset(name, layout)


REPLACEMENTS = {
    "text": (lambda g, n, s: g.create_dataset(n, data=["a"] * 4), "of type object"),
    "complex": (lambda g, n, s: g.create_dataset(n, s, "c8"), "of type complex64"),
    "fields": (lambda g, n, s: g.create_dataset(n, s, [("a", "f4")]), "no numbers"),
    "a field": (lambda g, n, s: g.create_dataset(n, s, [("a", "f2")]), "no numbers"),
    "three bytes": (lambda g, n, s: g.create_dataset(n, s, "V3"), "no numbers"),
    "references": (lambda g, n, s: g.create_dataset(n, s, h5py.ref_dtype), "of type object"),
    "lists": (lambda g, n, s: g.create_dataset(n, s, h5py.vlen_dtype("f4")), "of type object"),
    "empty": (lambda g, n, s: g.create_dataset(n, data=h5py.Empty("f4")), "no shape"),
    "a claim": (lambda g, n, s: g.create_dataset(n, (1 << 20, 1 << 20), "f4", chunks=(64, 64)), "claims 4398046511104"),
    "a bomb": (
        lambda g, n, s: g.create_dataset(n, (1 << 14, 1 << 10), "f4", chunks=(1024, 1024), compression="gzip"),
        "claims",
    ),
    "a group": (lambda g, n, s: g.create_group(n), "is named but not there"),
    "a soft link": (lambda g, n, s: g.__setitem__(n, h5py.SoftLink("/model_weights/image/image/bias:0")), "a link"),
    "an external link": (lambda g, n, s: g.__setitem__(n, h5py.ExternalLink("/etc/passwd", "/x")), "a link"),
    "external storage": (
        lambda g, n, s: g.create_dataset(n, s, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]),
        "lies in another file",
    ),
    "a virtual array": (virtual, "lies in another file"),
    "nothing": (lambda g, n, s: None, "is named but not there"),
    "another shape": (lambda g, n, s: g.create_dataset(n, data=np.zeros((2, 2), "f4")), "kernel of layer 'image' has"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REPLACEMENTS)
def test_datasets_that_are_no_arrays(what, tmp_path):
    make, match = REPLACEMENTS[what]
    assert_refused(edited(tmp_path, replace(make)), match)


def test_float64_numbers_are_read(tmp_path):
    def edit(file):
        values = file[KERNEL][()]
        replace(lambda g, n, s: g.create_dataset(n, data=values.astype(">f8")))(file)

    got, want = load_model(edited(tmp_path, edit)), load_model(HERE / "local_1_channels_last.h5")
    assert torch.equal(got.image.weight, want.image.weight)


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_bfloat16_numbers_are_read(compression, tmp_path):
    def edit(file):  # HDF5 has no bfloat16: ml_dtypes are written as two bytes a number
        bits = torch.from_numpy(file[KERNEL][()]).bfloat16().view(torch.int16).numpy().view("V2")
        replace(lambda g, n, s: g.create_dataset(n, data=bits, compression=compression))(file)

    got, want = load_model(edited(tmp_path, edit)), load_model(HERE / "local_1_channels_last.h5")
    assert torch.equal(got.image.weight, want.image.weight.bfloat16().float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda f: f["model_weights"].attrs.__setitem__("backend", "theano"), "'theano' backend"),
        (lambda f: f["model_weights"].attrs.__setitem__("layer_names", [b"gone"]), "'gone' is named but not there"),
        (lambda f: f["model_weights"].attrs.__setitem__("layer_names", [b"no/where"]), "'no/where' is named but not"),
        (lambda f: f["model_weights"].attrs.__setitem__("layer_names", 7), "no list of names"),
        (lambda f: f["model_weights"].attrs.__setitem__("layer_names", [b".."]), "is named but not there"),
        (lambda f: f["model_weights"].attrs.__setitem__("layer_names", [b"\xff"]), "damaged|is named but not there"),
        (lambda f: f["model_weights"].attrs.__delitem__("layer_names"), "it has no layers"),
        (lambda f: f.__delitem__("model_weights"), "a model but no weights"),
        (lambda f: f.attrs.__setitem__("model_config", "{"), "its configuration is not understood"),
        (lambda f: f.attrs.__setitem__("model_config", "[" * 60_000), "nested too deeply"),
        (lambda f: f.attrs.__setitem__("model_config", 7), "attribute 'model_config' is no text"),
        (
            lambda f: f.attrs.__setitem__("model_config", "{}"),
            "a model of the class None",
        ),
    ],
)
def test_wrong_attributes(edit, match, tmp_path):
    assert_refused(edited(tmp_path, edit), match)


def test_groups_that_contain_themselves(tmp_path):
    path = tmp_path / "circle.weights.h5"
    with h5py.File(path, "w") as file:
        layers = file.create_group("layers")
        for i in range(20):
            layers.create_group(f"dense_{i}")["layers"] = layers
    config = json.loads((HERE / "deepface.json").read_text())
    with pytest.raises(KerasFileError, match="found twice"):
        load_model(path, config=config)


def archive(tmp_path, **parts):
    """A copy of a .keras file with parts replaced, or left out where they are None."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(HERE / "local_1_channels_last.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = parts.pop(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in parts.items():
            new.writestr(name, content)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"config.json": None}, r"no config\.json"),
        ({"model.weights.h5": None}, r"no model\.weights\.h5"),
        ({"config.json": b"\xff"}, "not understood|damaged"),
        ({"model.weights.h5": b"hello"}, "damaged"),
    ],
)
def test_archives_without_their_parts(parts, match, tmp_path):
    assert_refused(archive(tmp_path, **parts), match)


def test_paths_of_an_archive_are_not_written(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    path = archive(folder, **{"../../evil": b"x", "/tmp/lc_triton_evil": b"x"})
    load_model(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "er", "model.keras"]
    assert not Path("/tmp/lc_triton_evil").exists()


@pytest.mark.slow
def test_an_archive_that_expands_to_many_bytes(tmp_path):
    for name in ("config.json", "model.weights.h5"):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            if name != "config.json":
                file.write(HERE / "local_1_channels_last.json", "config.json")
            with file.open(name, "w") as part:
                for _ in range(80):
                    part.write(bytes(1 << 20))
        content = bytearray(path.read_bytes())
        assert_refused(path, "claims 83886080 bytes" if name == "config.json" else "damaged")
        assert len(content) < 1 << 20


class Evil:
    def __reduce__(self):
        return (open, (str(Path("/tmp/lc_triton_evil")), "w"))


def test_a_checkpoint_runs_no_code(tmp_path):
    buffer = io.BytesIO()
    torch.save({"kind": Evil()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Evil()), b"", b"PK\x03\x04"):
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        assert_refused(path, "damaged or no checkpoint")
    assert not Path("/tmp/lc_triton_evil").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "another"}, "no model that"),
        ({"version": 9}, "version 9"),
        ({"state_dict": None}, "its parts are not"),
        ({"state_dict": {}}, "does not fit its model"),
        ({"config": "{}"}, "not understood"),
    ],
)
def test_wrong_checkpoints(change, match, tmp_path):
    from lc_triton.keras import save_model

    path = tmp_path / "model.pt"
    save_model(load_model(HERE / "local_1_channels_last.h5"), path)
    content = torch.load(path, weights_only=True)
    torch.save({**content, **change}, path)
    assert_refused(path, match)


def test_a_library_that_hangs_or_crashes_is_named(monkeypatch):
    path = HERE / "local_1_channels_last.h5"
    monkeypatch.setattr(hdf5, "SECONDS", -path.stat().st_size / hdf5.BYTES_A_SECOND)
    assert_refused(path, "the HDF5 library has not come to an end of it in 0 s")
    monkeypatch.undo()
    monkeypatch.setattr(hdf5.sys, "executable", "/bin/false")
    assert_refused(path, r"the HDF5 library did not survive it \(exit status 1\)")


def test_weights_that_claim_more_than_their_archive_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "MOST_EXPANSION", 0.01)
    assert_refused(archive(tmp_path), r"model\.weights\.h5 claims [0-9]+ bytes, more than the archive can hold")


def test_a_checkpoint_that_is_not_there(tmp_path):
    assert_refused(tmp_path / "model.pt", "No such file or directory")


def test_configurations_that_cannot_be_read(tmp_path):
    weights = HERE / "local_1_channels_last.weights.h5"
    with pytest.raises(KerasFileError, match=f"{re.escape(str(weights))}.*its configuration is not understood"):
        load_model(weights, config="{")
    with pytest.raises(KerasFileError, match=r"none\.json.*No such file"):
        load_model(weights, config=tmp_path / "none.json")


def test_names_that_keras_cuts_in_pieces():
    group = SimpleNamespace(attrs={"weight_names0": np.array([b"a", b"b"]), "weight_names1": np.array(["c"])})
    assert index.names(group, "weight_names") == ["a", "b", "c"]


def test_without_h5py(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(LocalConvError, match=r"reading Keras.s files needs h5py.*lc-triton\[keras\]"):
        load_model(HERE / "local_1_channels_last.h5")


@pytest.mark.slow
def test_mutated_files():
    done = subprocess.run(
        [sys.executable, "-m", "tests.keras.fuzz", "--cases", "6"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused" in done.stdout
