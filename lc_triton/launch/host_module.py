"""The C modules that Triton compiles at the first launch, compiled ahead without a GPU."""

from __future__ import annotations

import sysconfig
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

LIBCUDA = "libcuda.so.1"


class HostModules:
    """The C modules that Triton's CUDA driver would compile for some kernels.

    One, `cuda_utils`, is for all. Up to Triton 3.6 there is another for each signature of a kernel.
    """

    def __init__(self) -> None:
        self._sources: dict[str, str] = {}

    def add_launcher(self, source: Any, metadata: Any) -> None:
        """Remember the launcher of a compiled kernel, as Triton's `CudaLauncher` would make it."""
        from triton.backends.nvidia import driver

        make = getattr(driver, "make_launcher", None)
        if make is None:
            return
        names = source.fn.arg_names
        constants = {(names.index(i),) if isinstance(i, str) else i: value for i, value in source.constants.items()}
        self._sources[make(constants, dict(source.signature), getattr(metadata, "tensordesc_meta", None))] = (
            "__triton_launcher"
        )

    def build(self) -> bool:
        """Compile the modules that Triton's cache lacks; whether it then has all.

        It is linked against `libcuda.so.1`, which comes with a GPU: an empty library of that name stands in for it, and
        the real one takes its place when a module is loaded. Where there is no C compiler, or a Triton that builds its
        modules in another way, the first launch does it.
        """
        try:
            from triton.backends.nvidia import driver

            self._sources[(Path(driver.__file__).parent / "driver.c").read_text()] = "cuda_utils"
            with tempfile.TemporaryDirectory() as scratch:
                for source, name in self._sources.items():
                    _build(name, source, Path(scratch))
        except Exception:  # no C compiler or one that fails, no headers of Python, another Triton
            return False
        return True


def _build(name: str, source: str, scratch: Path) -> None:
    """Compile a module, unless Triton's cache has it.

    Its key in the cache contains what `platform.architecture` says of linkage: "ELF", or "" where the program `file`
    is not installed. The module is kept under both keys.
    """
    from triton.backends.nvidia import driver
    from triton.runtime import build
    from triton.runtime.cache import get_cache_manager

    file = name + sysconfig.get_config_var("EXT_SUFFIX")
    platform = build.platform_key().rpartition(",")[0]
    keys = [sha256(f"{source}{platform},{linkage}".encode()).hexdigest() for linkage in ("ELF", "")]
    caches = [get_cache_manager(key) for key in keys]
    if all(cache.get_file(file) is not None for cache in caches):
        return
    if not (scratch / LIBCUDA).exists():
        (scratch / "empty.c").write_text("")
        named = [f"-Wl,-soname,{LIBCUDA}"]
        Path(build._build("empty", str(scratch / "empty.c"), str(scratch), [], [], [], named)).rename(scratch / LIBCUDA)
    folder = Path(driver.__file__).parent
    (scratch / f"{name}.c").write_text(source)
    libraries, include = [str(folder / "lib"), str(scratch)], [str(folder / "include")]
    built = build._build(name, str(scratch / f"{name}.c"), str(scratch), libraries, include, [LIBCUDA], [])
    for cache in caches:
        cache.put(Path(built).read_bytes(), file, binary=True)
