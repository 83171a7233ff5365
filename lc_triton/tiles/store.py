"""Tiles on disk: `<folder>/<arch>/<device>/<pass>.json`, replaced atomically, merged under a lock."""

from __future__ import annotations

import hashlib
import json
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from lc_triton.core.files import write_atomically
from lc_triton.errors import ConfigFileError, LocalConvError, first_line
from lc_triton.tiles.config import Pass
from lc_triton.tiles.entries import Measured, Simulated, is_simulated
from lc_triton.tiles.key import ProblemKey
from lc_triton.tiles.task import Task

SCHEMA = 1
KIND = "lc_triton tiles"
KERNELS = Path(__file__).parents[1] / "kernels"
LOCK_SECONDS = 60


class Entries(dict[ProblemKey, Measured]):
    """The measured tiles of a file by their problems; `simulated` has those that were simulated."""

    simulated: dict[ProblemKey, Simulated]

    def __init__(self, measured: Mapping[ProblemKey, Measured] | None = None) -> None:
        super().__init__(measured or {})
        self.simulated = {}

    def add(self, key: ProblemKey, entry: Measured | Simulated) -> None:
        """Put a tile in the place of one of the same problem and kind."""
        if isinstance(entry, Measured):
            self[key] = entry
        else:
            self.simulated[key] = entry


def file_of(folder: Path, arch: str, device: str, pass_name: Pass) -> Path:
    """Where the tiles of a pass on a device lie in a folder."""
    return folder / arch / device / f"{pass_name}.json"


def read(path: Path) -> Entries:
    """All entries of a file; none if there is no file.

    Raises:
        ConfigFileError: a file that is damaged, something else, or of another schema; it is left as it is.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Entries()
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigFileError(path=path, reason=f"it cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ConfigFileError(path=path, reason="it holds no tiles of lc_triton")
    if content.get("schema") != SCHEMA:
        reason = f"it has schema {content.get('schema')!r}, this lc_triton reads schema {SCHEMA}"
        raise ConfigFileError(path=path, reason=reason)
    entries = Entries()
    try:
        for item in content["entries"]:
            value = {name: v for name, v in item.items() if name != "problem"}
            entry = Simulated.from_json(value) if is_simulated(value) else Measured.from_json(value)
            entries.add(ProblemKey.from_json(item["problem"]), entry)
    except (LocalConvError, KeyError, TypeError, AttributeError) as error:
        number = len(entries) + len(entries.simulated)
        raise ConfigFileError(path=path, reason=f"entry {number} is wrong ({first_line(error)})") from error
    return entries


@cache
def read_or_warn(path: Path) -> Entries:
    """As `read`, once a process; a file that cannot be used causes one warning and counts as empty."""
    try:
        return read(path)
    except ConfigFileError as error:
        warnings.warn(f"lc_triton: {error}", RuntimeWarning, stacklevel=2)
        return Entries()


def merge(path: Path, device: str, pass_name: Pass, entries: Mapping[ProblemKey, Measured | Simulated]) -> None:
    """Add entries to a file, each in place of one of the same problem and kind.

    A simulated tile takes no measured one's place, and stays beside it. Other processes may write at the same time.

    Raises:
        ConfigFileError: a file there that cannot be used (it is left as it is), or a folder that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            merged = read(path)
            for key, entry in entries.items():
                merged.add(key, entry)
            content = {
                "kind": KIND,
                "schema": SCHEMA,
                "device": device,
                "face": pass_name,  # as files call the pass
                "entries": [
                    {"problem": key.to_json(), **asdict(kind[key])}
                    for kind in (merged, merged.simulated)
                    for key in sorted(kind, key=lambda k: tuple(map(str, vars(k).values())))
                ],
            }
            write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    except Timeout as error:
        reason = f"another process has held its lock for {LOCK_SECONDS} s"
        raise ConfigFileError(path=path, reason=reason) from error
    except OSError as error:
        raise ConfigFileError(path=path, reason=f"it cannot be written ({first_line(error)})") from error
    read_or_warn.cache_clear()


def check_writable(path: Path) -> None:
    """Check that `merge` can write a file, before hours are spent on a search.

    Raises:
        ConfigFileError: a file there that cannot be used, or a folder that cannot be written.
    """
    try:
        probe = path.with_suffix(".probe")
        write_atomically(probe, b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigFileError(path=path, reason=f"it cannot be written ({first_line(error)})") from error
    read(path)


def kernel_hash_of(task: Task) -> str:
    """The hash of the code of a task's kernel."""
    return kernel_hash(task.pass_name, updates=task.update is not None)


@cache
def kernel_hash(pass_name: Pass, *, updates: bool = False) -> str:
    """Twelve hexadecimal digits of the hash of a pass's code: a tile of other code is stale.

    The code is that of the pass's kernel, the second launch of a split loop, and the functions that both call. That of
    the update counts only where the weight gradient makes one: it changes no other kernel.

    Args:
        pass_name: of the kernel.
        updates: whether the weight gradient updates the weight.
    """
    digest = hashlib.sha256()
    own = [f"{pass_name}.py"]
    if pass_name == "forward":
        own += ["pad_channels.py"]
    if pass_name == "weight_grad":
        own += ["weight_block.py", "shared_weight_grad.py"]
    if updates:
        own += ["update.py"]
    for name in ("common.py", "combine.py", *own):
        for token in _code_of(KERNELS / name):
            digest.update(token.encode())
    return digest.hexdigest()[:12]


def _code_of(path: Path) -> Iterator[str]:
    """The tokens of a module, one a line, without comments, docstrings and empty lines: no kernel depends on them."""
    starts = {tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    previous = tokenize.ENCODING
    with path.open("rb") as file:
        for kind, text, *_ in tokenize.tokenize(file.readline):
            is_comment = kind in {tokenize.COMMENT, tokenize.NL}
            is_docstring = previous in starts and kind in {tokenize.STRING, tokenize.NEWLINE}
            if not is_comment and not is_docstring:
                # The names of kinds are the same in all versions of Python; their numbers are not.
                yield f"{tokenize.tok_name[kind]} {text.strip()}\n"
                previous = kind
