"""What a call of `precompile` compiled."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lc_triton.tiles.config import TileConfig
from lc_triton.tiles.device import Device
from lc_triton.tiles.task import Task


@dataclass
class Precompiled:
    """What was compiled ahead.

    Args:
        folder: Triton's cache, which the environment variable TRITON_CACHE_DIR must name where the kernels are used.
        device: the GPU that they are for.
        compiled: how many kernels were compiled.
        on_file: how many were in the folder already.
        seconds: that it took.
        tiles: the tile of each kernel that has one of its own.
        host_module: whether the part of Triton's launcher that a C compiler makes is in the folder too.
    """

    folder: Path
    device: Device
    compiled: int = 0
    on_file: int = 0
    seconds: float = 0.0
    tiles: dict[Task, TileConfig] = field(default_factory=dict)
    host_module: bool = False

    def to_text(self) -> str:
        """A summary in words."""
        lines = [
            f"{self.compiled} kernels compiled, {self.on_file} on file already, for {self.device.full_name} "
            f"({self.device.arch_name}), in {self.seconds:.0f} s"
        ]
        if not self.host_module:
            lines.append("Triton's own launcher is not among them: its first launch needs a C compiler")
        lines.append(f"To use them: TRITON_CACHE_DIR={self.folder}")
        lines.append(f"To see there whether they will be used: lc-triton precompile --check {self.folder}")
        return "\n".join(lines)
