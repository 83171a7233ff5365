"""Faults outside the library: killed processes, full disks, read-only folders, threads, forks and signals."""

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lc_triton
from lc_triton import errors
from lc_triton.core import files as _files
from lc_triton.demo import checkpoint
from lc_triton.tiles import store
from tests.faults import KEY, MEASURED
from tests.keras.test_saved import HERE as MODELS

ROOT = Path(__file__).parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.mark.subprocess
@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.nightly)])
def test_killed_writers_leave_readable_files(kills):
    """A killed training resumes from its last checkpoint, and ends with the bits of one that was not killed."""
    command = [sys.executable, "-m", "tests.faults", "--kills", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{kills} kills, readable each time") == 3
    assert f"training: {kills // 3} kills" in done.stdout


SMALL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from lc_triton.cli import main
import torch, h5py
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.subprocess
@pytest.mark.slow
@needs_fork
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    out = tmp_path / "model.pt"
    command = [sys.executable, "-c", SMALL_DISK, "convert", str(MODELS / "deepface.h5"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("lc-triton: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.subprocess
def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    from lc_triton.cli import main

    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "model.pt"
    assert main(["convert", str(MODELS / "deepface.h5"), "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert os.strerror(errno.ENOTDIR) in message or os.strerror(errno.EEXIST) in message


def step(layer, x):
    """A forward and backward of a layer that others use at the same time, on gradients of its own."""
    y = layer(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), list(layer.parameters()))


@pytest.mark.parametrize("size", [6, 40])
def test_threads_that_call_one_layer_at_once(size):
    layer = lc_triton.LocalConv2d(3, 4, 3, input_size=size, activation="tanh")
    inputs = [torch.randn(n % 3 + 1, 3, size, size) for n in range(8)]
    wanted = [step(layer, x) for x in inputs]
    found = [[] for _ in inputs]
    start = threading.Barrier(len(inputs))

    def work(n):
        start.wait()
        for _ in range(20):
            found[n].append(step(layer, inputs[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (y, gradients), got in zip(wanted, found, strict=True):
        assert len(got) == 20
        for y_again, gradients_again in got:
            assert torch.equal(y, y_again)
            assert all(map(torch.equal, gradients, gradients_again))


@pytest.mark.subprocess
@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("size", [6, 40])
def test_a_process_that_forks_after_a_call(size):
    code = f"""
import os, torch, lc_triton
torch.set_num_threads(1)
layer, x = lc_triton.LocalConv2d(3, 4, 3, input_size={size}), torch.randn(2, 3, {size}, {size})
y = layer(x)
y.sum().backward()
want = layer.weight.grad.clone()
child = os.fork()
layer.zero_grad()
again = layer(x)
again.sum().backward()
good = torch.equal(y, again) and torch.equal(want, layer.weight.grad)
if not child:
    os._exit(not good)
assert good and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("size", [6, 40])
def test_a_call_enters_no_mode_that_a_signal_could_leave_behind(size, monkeypatch):
    layer, x = lc_triton.LocalConv2d(3, 4, 3, input_size=size), torch.randn(4, 3, size, size)
    monkeypatch.setattr(torch, "inference_mode", None)
    done = []
    thread = threading.Thread(target=lambda: done.append(layer(x).sum().backward()))  # a new thread has no buffers yet
    thread.start()
    thread.join()
    assert done


@pytest.mark.subprocess
@pytest.mark.slow
@needs_fork
def test_a_signal_during_a_step_ends_it_cleanly():
    code = """
import signal, torch, lc_triton
layer, x = lc_triton.LocalConv2d(3, 4, 3, input_size=40), torch.randn(4, 3, 40, 40)
layer(x).sum().backward()
want = layer.weight.grad.clone()
class Rang(Exception): pass
def ring(*_): raise Rang
signal.signal(signal.SIGALRM, ring)
rang = 0
for n in range(400):
    layer.zero_grad()
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 + n % 40 * 5e-5)
        layer(x).sum().backward()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Rang:
        rang += 1
    assert torch.is_grad_enabled()
layer.zero_grad()
layer(x).sum().backward()
assert rang and torch.equal(want, layer.weight.grad), rang
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


TUNE = ["tune", "--dry-run", "--shapes", "8x8x4,k3,f4", "--batches", "4"]
WITHOUT_HOME = """
import os, pwd, sys
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
import torch, lc_triton
lc_triton.LocalConv2d(1, 1, 3, input_size=4)(torch.zeros(1, 1, 4, 4))
from lc_triton.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["configs", "--workload", "keras_doc_1d"], 0, ""),
        (["env"], 0, "none: this user has no home folder, so LC_TRITON_CONFIG_DIR must name one for your tiles"),
        (TUNE, 2, "this user has no home folder, so LC_TRITON_CONFIG_DIR"),
        ([*TUNE, "--out", "tiles"], 0, "tiles"),
    ],
    ids=["configs", "env", "tune", "tune_out"],
)
def test_no_home(command, status, message, tmp_path):
    """Neither the environment nor the system names a home, as in a container with an arbitrary user number."""
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "LC_TRITON_CONFIG_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME, *command],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert message in done.stdout + done.stderr
    assert done.stderr.count("\n") == (status > 0)


def temporary_files(folder):
    return {p.name for p in folder.iterdir() if p.name.startswith(".")}


@needs_fork
def test_the_next_write_removes_the_file_of_a_killed_writer(tmp_path):
    path = tmp_path / "file.json"
    child = os.fork()
    if not child:
        with _files.replaced(path) as temporary:
            temporary.write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    (leftover,) = temporary_files(tmp_path)
    assert f"-{child}-" in leftover
    unrelated = {".file.json.swp", ".file.json.0123456789abcdef0123456789abcdef", f".other{leftover}"}
    for name in unrelated:
        (tmp_path / name).write_text("not ours")
    with _files.replaced(path) as own:  # the file of a living writer is kept
        own.write_text("whole")
        _files.write_atomically(path, b"faster")
        assert temporary_files(tmp_path) == unrelated | {own.name}
    assert path.read_text() == "whole"
    assert temporary_files(tmp_path) == unrelated


@pytest.mark.parametrize(("age", "stays"), [(8, False), (6, True), (-400, True)], ids=["old", "young", "of_tomorrow"])
def test_files_of_writers_on_other_machines_are_removed_after_a_week(age, stays, tmp_path):
    """Processes of other machines are not visible, so the age decides. A file that is newer than the clock is kept."""
    leftover = tmp_path / f".file.00000000-{os.getpid()}-0123456789abcdef"
    leftover.write_text("half")
    modified = time.time() - age * 24 * 3600
    os.utime(leftover, (modified, modified))
    _files.write_atomically(tmp_path / "file", b"whole")
    assert leftover.exists() == stays


def test_a_clock_that_goes_backwards(tmp_path, monkeypatch):
    """The last content is read, whatever modification times the files have."""
    now = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    for i in range(3):
        checkpoint.save(tmp_path / "checkpoint.pt", {"seed": 0}, {"local": {"step": i}})
        store.merge(tmp_path / "forward.json", "test", "forward", {KEY.at(1): replace(MEASURED, median_us=float(i))})
        for path in tmp_path.iterdir():
            os.utime(path, (4e9 - i * 1e8, 4e9 - i * 1e8))
        assert checkpoint.load(tmp_path / "checkpoint.pt", {"seed": 0}) == {"local": {"step": i}}
        assert store.read_or_warn(tmp_path / "forward.json")[KEY.at(1)].median_us == i
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock") == [".json", ".pt"]


def write_as_other_version(path, change):
    """Write a file of tiles and change it as another version of the library would."""
    store.merge(path, "test", "forward", {KEY.at(1): MEASURED})
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(schema=2), "it has schema 2, this lc_triton reads schema 1"),
        (
            lambda c: c["entries"][0].update(energy_mj=1.0),
            "entry 0 is wrong (ArgumentTypeError: entry must be an object",
        ),
    ],
    ids=["schema", "field"],
)
def test_a_file_of_tiles_of_a_newer_version_is_left_alone(change, reason, tmp_path):
    """This version names the file in one warning, and neither uses nor overwrites it."""
    path = tmp_path / "forward.json"
    write_as_other_version(path, change)
    before = path.read_bytes()
    with pytest.warns(RuntimeWarning) as caught:
        assert store.read_or_warn(path) == store.read_or_warn(path) == {}
    (warning,) = caught
    assert f"file {path} is not used: {reason}" in str(warning.message)
    for write in (
        lambda: store.merge(path, "test", "forward", {KEY.at(2): MEASURED}),
        lambda: store.check_writable(path),
    ):
        with pytest.raises(errors.ConfigFileError, match=re.escape(reason)):
            write()
    assert path.read_bytes() == before
    assert not temporary_files(tmp_path)


def test_versions_with_other_kernels_keep_each_others_tiles(tmp_path):
    """A tile of another kernel source computes right results, but may be slower."""
    path = tmp_path / "forward.json"
    write_as_other_version(path, lambda c: c["entries"][0].update(kernel_hash="0" * 12, torch="9.9", triton="9.9"))
    store.merge(path, "test", "forward", {KEY.at(2): MEASURED})
    found = store.read(path)
    assert found.keys() == {KEY.at(1), KEY.at(2)}
    assert found[KEY.at(1)].kernel_hash != store.kernel_hash("forward")


READ_ONLY = """
import os, sys
from pathlib import Path
import torch, lc_triton
from lc_triton import errors
from lc_triton.demo import checkpoint
from tests.test_faults import KEY, MEASURED, store
folder = Path(sys.argv[1])
entries = {KEY.at(1): MEASURED}
store.merge(folder / "forward.json", "test", "forward", entries)
folder.chmod(0o555)
if os.geteuid() == 0:
    os.setuid(65534)
assert store.read(folder / "forward.json") == entries
for write in (lambda p: store.merge(p, "test", "forward", entries), store.check_writable):
    for name in ("forward.json", "new.json"):
        try:
            write(folder / name)
        except errors.ConfigFileError as error:
            print(error)
try:
    checkpoint.save(folder / "checkpoint.pt", {}, {})
except OSError as error:
    print(error)
"""


@pytest.mark.subprocess
@pytest.mark.slow
@needs_fork
def test_a_read_only_folder():
    """Files are read, and a write raises an error of one line. Root could write, so the process becomes nobody."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Path(folder) / "tiles"
        place.mkdir(mode=0o755)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(place)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if "Operation not permitted" in done.stderr:
            pytest.skip("root may not become another user here")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 5
        for line, name in zip(lines, ["forward.json", "new.json"] * 2 + ["checkpoint.pt"], strict=True):
            assert name.split(".")[0] in line
            assert "ermission" in line or "not writable" in line
        assert {p.name for p in place.iterdir()} <= {"forward.json", "forward.lock"}


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def save(content, path):
        path.write_text("half")
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", save)
    path = tmp_path / "model.pt"
    path.write_text("before")
    with pytest.raises(OSError, match=r"model\.pt cannot be written \(RuntimeError: unexpected pos 64 vs 0\)"):
        _files.save_torch(path, {})
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_another_users_writer_is_writing_stays(tmp_path, monkeypatch):
    def kill(process, number):
        raise PermissionError

    left = tmp_path / f".file.json.{_files._machine()}-1-0123456789abcdef"
    left.write_text("half")
    monkeypatch.setattr(_files.os, "kill", kill)
    _files.write_atomically(tmp_path / "file.json", b"whole")
    assert left.exists()
