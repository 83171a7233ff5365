"""Measured tiles on disk: `<folder>/<arch>/<device>/<pass>.json`, replaced atomically, merged under a lock."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lc_triton.core.files import write_atomically
from lc_triton.errors import ArgumentTypeError, ConfigFileError, LocalConvError, first_line
from lc_triton.tiles.config import Pass, TileConfig
from lc_triton.tiles.key import ProblemKey

SCHEMA = 1
KIND = "lc_triton tiles"
LOCK_SECONDS = 60


@dataclass(frozen=True)
class Measured:
    """The fastest tile of a search, and its measurement.

    Args:
        config: the tile.
        median_us, p20_us, p80_us: time of a launch, in microseconds.
        gbytes_per_s: unavoidable bytes over the median.
        tflops: unavoidable work over the median.
        roofline: share of the device's limit, 1 at the limit.
        runner_up: the second best tile, or None.
        runner_up_us: its median.
        finished: whether the search was complete; `--resume` continues one that was cut short.
        date: of the measurement, ISO.
        torch, triton: versions.
        kernel_hash: of the kernel's source, see `kernel_hash`.
    """

    config: TileConfig
    median_us: float
    p20_us: float
    p80_us: float
    gbytes_per_s: float
    tflops: float
    roofline: float
    runner_up: TileConfig | None
    runner_up_us: float | None
    finished: bool
    date: str
    torch: str
    triton: str
    kernel_hash: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """What a JSON object holds.

        Raises:
            LocalConvError: a field that is missing, unknown or of a wrong type.
        """
        known = {f.name for f in fields(cls)}
        if value.keys() != known:
            raise ArgumentTypeError(name="entry", value=value, allowed=f"an object of {', '.join(sorted(known))}")
        for name in ("median_us", "p20_us", "p80_us", "gbytes_per_s", "tflops", "roofline"):
            if isinstance(value[name], bool) or not isinstance(value[name], (int, float)) or not value[name] >= 0:
                raise ArgumentTypeError(name=name, value=value[name], allowed="a number >= 0")
        for name in ("date", "torch", "triton", "kernel_hash"):
            if not isinstance(value[name], str):
                raise ArgumentTypeError(name=name, value=value[name], allowed="a string")
        if not isinstance(value["finished"], bool):
            raise ArgumentTypeError(name="finished", value=value["finished"], allowed="true or false")
        second = value["runner_up"]
        return cls(
            **{
                **value,
                "config": TileConfig.from_json(value["config"]),
                "runner_up": None if second is None else TileConfig.from_json(second),
            }
        )


Entries = dict[ProblemKey, Measured]


def file_of(folder: Path, arch: str, device: str, pass_name: Pass) -> Path:
    """Where a device's measurements of a pass lie in a folder."""
    return folder / arch / device / f"{pass_name}.json"


def read(path: Path) -> Entries:
    """All entries of a file; none if there is no file.

    Raises:
        ConfigFileError: a file that is damaged, something else, or of another schema; it is left as it is.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigFileError(path=path, reason=f"it cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ConfigFileError(path=path, reason="it holds no tiles of lc_triton")
    if content.get("schema") != SCHEMA:
        reason = f"it has schema {content.get('schema')!r}, this lc_triton reads schema {SCHEMA}"
        raise ConfigFileError(path=path, reason=reason)
    entries: Entries = {}
    try:
        for item in content["entries"]:
            measured = {name: v for name, v in item.items() if name != "problem"}
            entries[ProblemKey.from_json(item["problem"])] = Measured.from_json(measured)
    except (LocalConvError, KeyError, TypeError, AttributeError) as error:
        raise ConfigFileError(path=path, reason=f"entry {len(entries)} is wrong ({first_line(error)})") from error
    return entries


@cache
def read_or_warn(path: Path) -> Entries:
    """As `read`, once a process; a file that cannot be used causes one warning and counts as empty."""
    try:
        return read(path)
    except ConfigFileError as error:
        warnings.warn(f"lc_triton: {error}", RuntimeWarning, stacklevel=2)
        return {}


def merge(path: Path, device: str, pass_name: Pass, entries: Entries) -> None:
    """Add entries to a file, replacing those of the same problem; other processes may do so at the same time.

    Raises:
        ConfigFileError: a file there that cannot be used (it is left as it is), or a folder that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            merged = {**read(path), **entries}
            content = {
                "kind": KIND,
                "schema": SCHEMA,
                "device": device,
                "face": pass_name,
                "entries": [
                    {"problem": key.to_json(), **asdict(merged[key])}
                    for key in sorted(merged, key=lambda k: tuple(map(str, vars(k).values())))
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
    """Check that `merge` can write a file, before hours are spent on measurements.

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


@cache
def kernel_hash(pass_name: Pass) -> str:
    """Twelve hexadecimal digits of the hash of a pass's kernel source: a measurement of another source is stale."""
    folder = Path(__file__).parents[1] / "kernels"
    digest = hashlib.sha256()
    for name in ("common.py", f"{pass_name}.py"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:12]
