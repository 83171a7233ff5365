"""What goes wrong around a library: killed processes, full disks, closed folders, many threads, forks."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import lc_triton
from tests.keras.test_saved import HERE as MODELS

ROOT = Path(__file__).parents[1]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
def test_killed_writers_leave_what_can_be_read():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--kills", "10"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 kills, readable each time") == 3


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from lc_triton.cli import main
import torch, h5py
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(sys.argv[1:]))
"""


@needs_fork
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    out = tmp_path / "model.pt"
    command = [sys.executable, "-c", LIMITED, "convert", str(MODELS / "deepface.h5"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("lc-triton: ")
    assert not list(tmp_path.iterdir())


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
for n in range(40):
    layer.zero_grad()
    signal.setitimer(signal.ITIMER_REAL, 1e-4 + n * 5e-5)
    try:
        layer(x).sum().backward()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Rang:
        rang += 1
layer.zero_grad()
layer(x).sum().backward()
assert rang and torch.equal(want, layer.weight.grad), rang
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_home(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "LC_TRITON_CONFIG_DIR")}
    code = """
import torch, lc_triton
lc_triton.LocalConv2d(1, 1, 3, input_size=4)(torch.zeros(1, 1, 4, 4))
from lc_triton.cli import main
main(["configs", "--workload", "keras_doc_1d"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, timeout=60)
