"""The part of Triton's launcher that a C compiler makes at the first launch, made without a GPU."""

from __future__ import annotations

import subprocess
import sysconfig
import tempfile
from hashlib import sha256
from pathlib import Path

NAME = "cuda_utils"


def build_host_module() -> bool:
    """Put the module that Triton's CUDA driver compiles for itself into Triton's cache; whether it is there.

    It is linked against `libcuda.so.1`, which comes with a GPU: an empty library of that name stands in for it, and the
    real one takes its place when the module is loaded. Where there is no C compiler, or a Triton that builds the module
    in another way, nothing is built, and the first launch does it.

    The module's key has a word that Python learns from the program `file`, or not where there is none: the module is
    kept under both keys.
    """
    try:
        from triton.backends.nvidia import driver
        from triton.runtime.build import _build, platform_key
        from triton.runtime.cache import get_cache_manager

        folder = Path(driver.__file__).parent
        source = (folder / "driver.c").read_text()
        name = NAME + sysconfig.get_config_var("EXT_SUFFIX")
        platform = platform_key().rpartition(",")[0]
        keys = [sha256(f"{source}{platform},{linkage}".encode()).hexdigest() for linkage in ("ELF", "")]
        caches = [get_cache_manager(key) for key in keys]
        if all(cache.get_file(name) is not None for cache in caches):
            return True
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "empty.c").write_text("")
            (Path(scratch) / f"{NAME}.c").write_text(source)
            stand_in = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", "empty.c"]
            subprocess.run(["cc", *stand_in], cwd=scratch, check=True, capture_output=True)
            built = _build(
                NAME,
                str(Path(scratch) / f"{NAME}.c"),
                scratch,
                [str(folder / "lib"), scratch],
                [str(folder / "include")],
                ["libcuda.so.1"],
                [],
            )
            for cache in caches:
                cache.put(Path(built).read_bytes(), name, binary=True)
    except (ImportError, AttributeError, TypeError, OSError, RuntimeError, subprocess.SubprocessError):
        return False
    return True
