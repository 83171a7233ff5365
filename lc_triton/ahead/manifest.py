"""What a folder of precompiled kernels was made with: a file beside them, and why Triton would not use them here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from lc_triton._version import __version__
from lc_triton.ahead.report import Precompiled
from lc_triton.core.files import write_atomically
from lc_triton.errors import PrecompileError, first_line
from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import DEVICES, Device, of_gpu
from lc_triton.tiles.select import select
from lc_triton.tiles.task import Task

NAME = "lc_triton.json"
KIND = "lc_triton precompiled kernels"
SCHEMA = 1
# The numbers of a GPU that its driver tells, and that a tile depends on.
TOLD_BY_DRIVER = ("arch", "multiprocessors", "shared_bytes", "warps", "registers")
# Settings of Triton's that are no part of a kernel's key, and yet keep it from using its cache.
FORCED = ("TRITON_ALWAYS_COMPILE", "TRITON_KERNEL_OVERRIDE", "TRITON_INTERPRET", "TRITON_CACHE_MANAGER")

ADVICE = {
    "python": "use that version of Python: its builds of Triton differ, and so do the keys of all kernels",
    "machine": "build the folder on a machine of this kind",
    "triton": "install that version, or build the folder anew",
    "triton_files": "install the same build of Triton, or build the folder anew",
    "compiler": "unset TRITON_PTXAS_PATH on both machines, or build the folder anew",
    "settings": "set them as they were, or build the folder anew",
    "lc_triton": "install that version, or build the folder anew",
    "kernels": "install the lc-triton that the folder was built with, or build it anew",
}


def write(made: Precompiled) -> None:
    """Write down what kernels were made with, beside them; GPUs of earlier calls with the same versions are kept."""
    path = made.folder / NAME
    here = versions(made.device)
    content: dict[str, Any] = {
        "kind": KIND,
        "schema": SCHEMA,
        "path": str(made.folder),
        "versions": here,
        "devices": {},
    }
    try:
        before = read(made.folder)
    except PrecompileError:
        before = content
    if _without_compiler(before["versions"]) == _without_compiler(here):
        content["devices"] = before["devices"]
    known = content["devices"].get(made.device.name, {"tiles": []})["tiles"]
    tiles = [[task.to_json(), asdict(config)] for task, config in made.tiles.items()]
    content["devices"][made.device.name] = {
        "device": asdict(made.device),
        "compiler": here["compiler"],
        "host_module": made.host_module,
        "tiles": tiles + [pair for pair in known if pair[0] not in [task for task, _ in tiles]],
    }
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _without_compiler(known: dict[str, Any]) -> dict[str, Any]:
    """The versions that do not depend on the GPU."""
    return {name: value for name, value in known.items() if name != "compiler"}


def read(folder: Path) -> dict[str, Any]:
    """What `write` wrote into a folder.

    Raises:
        PrecompileError: there is no such file, or it is something else.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrecompileError(name=str(path), reason=f"it cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND or content.get("schema") != SCHEMA:
        raise PrecompileError(name=str(path), reason=f"it is not of schema {SCHEMA} of {KIND}: build the folder anew")
    return content


def versions(device: Device) -> dict[str, Any]:
    """Everything that the keys of Triton's cache depend on beside kernels and their arguments."""
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import triton_key

    kind = "hip" if isinstance(device.arch, str) else "cuda"
    backend = make_backend(GPUTarget(kind, device.arch, device.lanes))
    return {
        "python": f"{platform.python_version()} ({sysconfig.get_config_var('SOABI')})",
        "machine": f"{platform.system()} {platform.machine()}",
        "triton": metadata.version("triton"),
        "triton_files": hashlib.sha256(triton_key().encode()).hexdigest()[:16],
        "compiler": " ".join(str(backend.hash()).split()),
        "settings": dict(sorted(get_cache_invalidating_env_vars().items())),
        "lc_triton": __version__,
        "kernels": _kernels(),
    }


@cache
def _kernels() -> str:
    """Sixteen hexadecimal digits of the hash of the kernels' source."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parents[1] / "kernels").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def differences(folder: Path) -> list[str]:
    """Why Triton would compile here although a folder has the kernels, each with what to do; nothing if it would not.

    Args:
        folder: of the kernels.

    Raises:
        PrecompileError: there is no `lc_triton.json` in it that can be read.
    """
    folder = folder.expanduser().absolute()
    content = read(folder)
    found = list(_settings(folder, content))
    name = _gpu_of(content)
    device = Device(**content["devices"][name]["device"])
    here = versions(device)
    there = content["versions"] | {"compiler": content["devices"][name]["compiler"]}
    for key, advice in ADVICE.items():
        if there[key] != here[key] and not (key == "python" and _abi(there[key]) == _abi(here[key])):
            found.append(f"{key.replace('_', ' ')} is {here[key]} here and was {there[key]} there: {advice}")
    return found + list(_tiles(content, name))


def _abi(python: str) -> str:
    """The part of a Python's version that its compiled modules depend on."""
    return re.sub(r".*\((.*)\)", r"\1", python)


def _settings(folder: Path, content: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the place, and with settings of Triton's."""
    import triton

    if Path(content["path"]) != folder:
        yield (
            f"the folder was built as {content['path']}, and Triton's files name one another by that path: move it "
            f"there, or run `lc-triton precompile --relocate {folder}`"
        )
    used = Path(triton.knobs.cache.dir).expanduser().absolute()
    if used != folder:
        yield f"Triton's cache is {used}: set TRITON_CACHE_DIR={folder}"
    for name in FORCED:
        if os.environ.get(name, "0") not in ("", "0"):
            yield f"{name} is set, which keeps Triton from using its cache: unset it"
    missing = sum(not Path(part).exists() for _, parts in _groups(folder) for part in parts.values())
    if missing and Path(content["path"]) == folder:
        yield f"{missing} of its files are missing: build the folder anew"


def _gpu_of(content: dict[str, Any]) -> str:
    """Which of the manifest's GPUs is the one here; the first where there is none."""
    import torch

    names: list[str] = list(content["devices"])
    if not torch.cuda.is_available():
        return names[0]
    here = of_gpu(0)
    alike = (name for name in names if content["devices"][name]["device"]["arch"] == here.arch)
    return here.name if here.name in names else next(alike, names[0])


def _tiles(content: dict[str, Any], name: str) -> Iterator[str]:
    """How the GPU here, and the tiles that are chosen for it, differ from what was compiled."""
    import torch

    entry = content["devices"][name]
    built_for = Device(**entry["device"])
    device = DEVICES.get(name, built_for)
    if torch.cuda.is_available():
        device = of_gpu(0)
        for field in TOLD_BY_DRIVER:
            here, there = getattr(device, field), getattr(built_for, field)
            if here != there:
                yield (
                    f"the GPU here, {device.full_name}, has {field} {here}, and the folder is for "
                    f"{built_for.full_name} with {there}: other tiles are chosen, so their kernels are not in it"
                )
    pairs = [(Task.from_json(task), TileConfig.from_json(config)) for task, config in entry["tiles"]]
    others = [task for task, config in pairs if select(task, device).config != config]
    if others:
        yield (
            f"other tiles are chosen here for {len(others)} of {len(pairs)} kernels, as of measured tiles that one of "
            "the two machines lacks: build the folder with the same LC_TRITON_CONFIG_DIR"
        )


def _groups(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The files that list a kernel's files by their paths, and these lists."""
    for path in sorted(folder.glob("*/__grp__*.json")):
        yield path, json.loads(path.read_text(encoding="utf-8"))["child_paths"]


def relocate(folder: Path) -> int:
    """Make a folder of precompiled kernels that was moved or copied usable where it is; how many kernels it has.

    Args:
        folder: where it lies now.

    Raises:
        PrecompileError: there is no `lc_triton.json` in it that can be read.
        OSError: it cannot be written.
    """
    folder = folder.expanduser().absolute()
    content = read(folder)
    count = 0
    for path, parts in _groups(folder):
        here = {name: str(path.parent / Path(part).name) for name, part in parts.items()}
        write_atomically(path, json.dumps({"child_paths": here}).encode())
        count += 1
    content["path"] = str(folder)
    write_atomically(folder / NAME, (json.dumps(content, indent=1) + "\n").encode())
    return count
