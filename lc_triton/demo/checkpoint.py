"""The demonstration's checkpoint: one file, replaced as a whole after every epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lc_triton.core.files import load_torch, save_torch
from lc_triton.errors import CheckpointError

KIND = "lc_triton demo"
VERSION = 1


def save(path: Path, settings: dict[str, int | str], runs: dict[str, dict[str, Any]]) -> None:
    """Write the states of all networks, and the settings they belong to."""
    save_torch(path, {"kind": KIND, "version": VERSION, "settings": settings, "runs": runs})


def load(path: Path, settings: dict[str, int | str]) -> dict[str, dict[str, Any]]:
    """The states in a checkpoint that belongs to `settings`.

    Raises:
        CheckpointError: a file that is corrupt, something else, of another version, or made with other settings; it is
            left as it is.
    """
    try:
        content = load_torch(path)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = f"it is damaged or no checkpoint ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
        raise CheckpointError(path=path, reason=reason) from error
    is_ours = isinstance(content, dict) and content.get("kind") == KIND and isinstance(content.get("settings"), dict)
    if not is_ours:
        raise CheckpointError(path=path, reason="it is no checkpoint of this demonstration")
    if content.get("version") != VERSION:
        reason = f"it has version {content.get('version')}, this lc_triton reads version {VERSION}"
        raise CheckpointError(path=path, reason=reason)
    if content["settings"] != settings:
        other = {k: v for k, v in content["settings"].items() if settings.get(k) != v}
        reason = "it was made with " + ", ".join(f"{k}={v}" for k, v in other.items())
        raise CheckpointError(
            path=path, reason=f"{reason}: resume with the same settings, or start anew in another --out"
        )
    runs: dict[str, dict[str, Any]] = content["runs"]
    return runs
