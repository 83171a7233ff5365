"""Memory of large results: large pages, given on from one result to the next, never while anyone can see it."""

import copy
import gc
import io
import mmap
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lc_triton
from lc_triton._cpu import pages, small

pytestmark = pytest.mark.skipif(not pages._SUPPORTED, reason="this system has no large pages to ask for")

LIKE = torch.empty(0)
SHAPE = (300, 1024)  # of float32: 1.2 MB, more than what counts as large here


@pytest.fixture(autouse=True)
def large_is_small(monkeypatch):
    monkeypatch.setattr(pages, "LEAST_BYTES", 1 << 20)
    for most in ("MOST_NUMBERS", "MOST_FLAT_NUMBERS"):
        monkeypatch.setattr(small, most, 0)
    pages._kept.clear()
    yield
    pages._kept.clear()


def empty(shape=SHAPE, dtype=torch.float32, like=LIKE):
    return pages.empty(shape, dtype, like)


def test_it_is_an_ordinary_tensor():
    t = empty()
    assert (t.shape, t.dtype, t.stride(), t.storage_offset()) == (SHAPE, torch.float32, (1024, 1), 0)
    assert t.untyped_storage().nbytes() == t.nbytes
    assert t.data_ptr() % pages.PAGE_BYTES == 0
    assert not t.requires_grad
    assert not t._is_view()
    t.fill_(2.0)
    assert torch.equal(copy.deepcopy(t), t)
    assert torch.equal(pickle.loads(pickle.dumps(t)), t)
    file = io.BytesIO()
    torch.save(t, file)
    assert len(file.getvalue()) < t.nbytes + 10_000
    shared = empty().fill_(3.0).share_memory_()
    assert shared.is_shared()
    assert shared.sum() == 3 * shared.numel()


def test_an_output_in_it_may_be_changed_in_place():
    layer = lc_triton.LocalConv2d(4, 32, 3, input_size=34)
    x = torch.randn(16, 4, 34, 34)
    want = torch.autograd.grad(layer(x).relu().sum(), layer.weight)[0]
    for _ in range(2):
        y = layer(x)
        assert y.nbytes >= pages.LEAST_BYTES
        assert torch.equal(torch.autograd.grad(y.relu_().sum(), layer.weight)[0], want)


def test_the_next_of_its_size_gets_its_memory_and_no_other():
    first = empty()
    place = first.data_ptr()
    second = empty()
    assert second.data_ptr() != place
    del first
    smaller = empty((200, 3000))
    assert smaller.data_ptr() != place
    assert empty((300, 2048), torch.float16).data_ptr() == place


@pytest.mark.parametrize(
    "keep", [lambda t: t[1:3], lambda t: t.view(-1), lambda t: t.numpy(), lambda t: t.untyped_storage()]
)
def test_not_while_anything_of_it_is_in_use(keep):
    first = empty()
    place, kept = first.data_ptr(), keep(first)
    del first
    gc.collect()
    assert empty().data_ptr() != place
    del kept
    assert empty().data_ptr() == place


def test_a_step_finds_the_memory_of_the_step_before():
    layer = lc_triton.LocalConv1d(64, 64, 3, input_size=34)
    x, places, values = torch.randn(1, 64, 34), set(), []
    for _ in range(3):
        layer.zero_grad(set_to_none=True)
        layer(x).sum().backward()
        places.add(layer.weight.grad.data_ptr())
        values.append(layer.weight.grad.clone())
    assert len(places) == 1
    assert torch.equal(values[0], values[2])


def test_a_gradient_that_is_kept_is_not_overwritten():
    layer, x = lc_triton.LocalConv1d(64, 64, 3, input_size=34), torch.randn(2, 64, 34)
    (first,) = torch.autograd.grad(layer(x[:1]).sum(), layer.weight)
    before = first.clone()
    (second,) = torch.autograd.grad(layer(x[1:]).sum(), layer.weight)
    assert torch.equal(first, before)
    assert not torch.equal(first, second)
    layer(x[:1]).sum().backward()
    layer(x[1:]).sum().backward()  # accumulates
    torch.testing.assert_close(layer.weight.grad, first + second)


def test_what_is_kept_has_a_bound(monkeypatch):
    monkeypatch.setattr(pages, "MOST_KEPT_BYTES", 2 * (4 << 20))
    held = [empty() for _ in range(5)]
    del held
    assert sum(map(len, pages._kept)) <= 2 * (4 << 20)
    before = list(pages._kept)
    assert before
    del [empty((3000, 1024))][:]  # too large to keep, and no reason to let go of what is kept
    assert pages._kept == before


def test_threads_never_share():
    wrong = []

    def work(number):
        for _ in range(200):
            t = empty()
            t[0, 0] = number
            t[-1, -1] = number
            if t[0, 0] != number or t[-1, -1] != number:
                wrong.append(number)
            del t

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(pages._kept) <= 8


def test_without_memory_torch_says_so(monkeypatch):
    def none(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    del [empty()][:]
    assert pages._kept
    monkeypatch.setattr(pages.mmap, "mmap", none)
    assert empty((900, 1024)).shape == (900, 1024)  # what was kept is let go of
    assert not pages._kept


def test_tensors_that_only_stand_for_memory_take_none():
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(LIKE)
        assert type(empty(like=fake)) is type(fake)
    assert empty(like=torch.empty(0, device="meta")).device.type == "meta"
    assert type(empty(like=nn.Parameter(LIKE))) is torch.Tensor


def test_a_process_that_holds_some_ends_well():
    code = f"""
import torch
from lc_triton._cpu import pages, small
pages.LEAST_BYTES = 1 << 20
held = pages.empty({SHAPE}, torch.float32, torch.empty(0)).fill_(1.0)
held.grad = pages.empty({SHAPE}, torch.float32, torch.empty(0))
torch.held = held
freed = pages.empty({SHAPE}, torch.float32, torch.empty(0))
del freed
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_region_is_asked_to_be_of_large_pages(monkeypatch):
    asked = []

    class Region(mmap.mmap):
        def madvise(self, advice, *args):
            asked.append(advice)

    monkeypatch.setattr(pages.mmap, "mmap", Region)
    empty()
    assert asked == [mmap.MADV_HUGEPAGE]


def flags(address):
    """The kernel's flags of the mapping an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    pytest.fail("no such mapping")


@pytest.mark.parametrize("lazy", [False, True])
def test_large_weights_of_a_layer_lie_in_large_pages(lazy):
    size = {"in_channels": 64, "input_size": 18} if not lazy else {}
    maker = lc_triton.LazyLocalConv2d if lazy else lc_triton.LocalConv2d
    layer = maker(out_channels=64, kernel_size=3, **size)
    layer(torch.zeros(1, 64, 18, 18))
    weight = layer.weight
    assert "hg" in flags(weight.data_ptr() + weight.nbytes // 2)
    assert type(weight) is nn.Parameter
    assert weight.std() > 0.01
    weight.untyped_storage().resize_(0)  # as engines do that shard parameters: it is torch's own memory


def test_small_and_absent_weights_are_left_alone(monkeypatch):
    monkeypatch.setattr(pages, "LEAST_BYTES", 64 << 20)
    monkeypatch.setattr(pages.ctypes, "CDLL", lambda name: pytest.fail("asked"))
    lc_triton.LocalConv2d(64, 64, 3, input_size=18)
    monkeypatch.setattr(pages, "LEAST_BYTES", 1 << 20)
    lc_triton.LocalConv2d(64, 64, 3, input_size=18, device="meta")
