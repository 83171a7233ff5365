"""`lc_triton.tuning()`: measure tiles for the kernels that run inside a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tuning(seconds: float = 20.0) -> Iterator[None]:
    """Measure a tile for each kernel that runs inside the `with` block and has none measured on this GPU.

    Args:
        seconds: for each kernel; a layer's training step has three.

    Raises:
        TuningError: there is no GPU, or the kernels are interpreted.
        ArgumentValueError: `seconds` is not above 0.
        ConfigFileError: the folder for your measurements cannot be written.
        LostGPUError: inside the block, where a tile's kernel ended this process's use of the GPU. The tile is noted and
            left out from then on: start the program again.

    The tensors of the layers are not touched: tiles are timed on buffers of their own. What was measured is used at
    once, and filed in the folder that later runs look into first ($LC_TRITON_CONFIG_DIR, else lc_triton in the
    user's cache folder). It holds for the whole process, for a backward runs in a thread of its own. Under
    torch.distributed rank 0 measures, and every rank runs what it found.

    Source: as `triton.autotune` measures at a first call, but only where it is asked to.

    Example:
        >>> import torch, lc_triton
        >>> layer = lc_triton.LocalConv2d(16, 16, 3, input_size=32, device="cuda")  # doctest: +SKIP
        >>> with lc_triton.tuning():  # doctest: +SKIP
        ...     layer(torch.randn(64, 16, 32, 32, device="cuda")).sum().backward()
    """
    # Imported here: a training run that never tunes needs none of it.
    from lc_triton.search.tuner import Tuner
    from lc_triton.tiles.chooser import chooser

    with chooser.asking(Tuner(seconds)):
        yield
