"""Memory of large results: in large pages, and given to the next result of the same size when torch lets go of it."""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import Parameter

# glibc returns blocks of this size to the system when they are freed, and each new one is paid for page by page as it
# is first written to: 30 ms for 115 MB in pages of 4 KB, 7 ms in pages of 2 MB, and 3 ms once it is there (two cores of
# an AMD EPYC, Linux 6.18). A training step frees its weight gradients and makes them anew.
LEAST_BYTES = 32 << 20
PAGE_BYTES = 2 << 20
# Of what is kept for later results. The oldest goes first.
MOST_KEPT_BYTES = 1 << 30

_SUPPORTED = hasattr(mmap, "MADV_HUGEPAGE")

_kept: list[mmap.mmap] = []  # append, pop and remove are atomic: tensors die in any thread, in the midst of anything


def empty(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """A new tensor on another's device: if it is a large one on the CPU of Linux, in memory that is there already.

    A tensor of a class of its own (one that only stands for memory, say) makes a new one by torch's own rules.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < LEAST_BYTES or like.device.type != "cpu" or type(like) not in (Tensor, Parameter) or not _SUPPORTED:
        return torch.empty(shape, dtype=dtype, device=like.device)
    try:
        region = _take(-(-nbytes // PAGE_BYTES) * PAGE_BYTES + PAGE_BYTES)
    except OSError:  # no memory: what is kept may be what is missing, and torch says it best if it is not
        forget()
        return torch.empty(shape, dtype=dtype, device=like.device)
    lent = memoryview(region)  # torch keeps it alive as long as a tensor uses the memory
    weakref.finalize(lent, _give_back, region).atexit = False
    address = torch.frombuffer(lent, dtype=torch.uint8).data_ptr()
    start = -address % PAGE_BYTES
    result = torch.frombuffer(lent, dtype=dtype, count=math.prod(shape), offset=start)
    return result.resize_(shape)  # no view: autograd refuses to let one be changed in place that it has not seen made


def enlarge(fresh: Tensor) -> None:
    """Ask for large pages where a tensor lies that nobody has written to yet, if it is a large one on Linux's CPU.

    What reads all weights once, a forward of few samples, then takes the same time wherever they came to lie.
    """
    if fresh.device.type != "cpu" or fresh.nbytes < LEAST_BYTES or not _SUPPORTED:
        return
    address = fresh.data_ptr()
    first = -(-address // PAGE_BYTES) * PAGE_BYTES
    whole = (address + fresh.nbytes - first) // PAGE_BYTES * PAGE_BYTES
    # A hint: where the system does not take it, the memory is as good as before.
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_HUGEPAGE)


def forget() -> None:
    """Give all that is kept back to the system."""
    _kept.clear()


def _take(size: int) -> mmap.mmap:
    """A region of a size: the newest that is kept, or a new one."""
    for region in reversed(_kept):
        if len(region) == size:
            try:
                _kept.remove(region)
            except ValueError:  # another thread was faster
                continue
            return region
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    return region


def _give_back(region: mmap.mmap) -> None:
    """Keep a region that no tensor uses any more, unless it is larger than all that may be kept."""
    if len(region) > MOST_KEPT_BYTES:
        return
    _kept.append(region)
    with suppress(IndexError):  # another thread let go of what is kept
        while sum(map(len, _kept)) > MOST_KEPT_BYTES:
            _kept.pop(0)
