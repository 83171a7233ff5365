"""Where tile choices lie on disk."""

from __future__ import annotations

from pathlib import Path

from lc_triton.core.backend import environment
from lc_triton.errors import ConfigFileError

_NAME = "autotune_configs"


def user_configs() -> Path:
    """The folder of a user's own tiles: $LC_TRITON_CONFIG_DIR, else lc_triton in the user's cache folder.

    Raises:
        ConfigFileError: neither is known, as for a user without a home folder.

    Example:
        >>> user_configs().is_absolute()
        True
    """
    chosen, cache = environment("LC_TRITON_CONFIG_DIR", ""), environment("XDG_CACHE_HOME", "")
    if not Path(cache).is_absolute():  # the XDG Base Directory Specification: a relative path is to be ignored
        cache = "~/.cache"
    folder = Path(chosen or Path(cache) / "lc_triton" / _NAME)
    try:
        return folder.expanduser().absolute()
    except RuntimeError as error:
        reason = "this user has no home folder, so LC_TRITON_CONFIG_DIR must name one for your tiles"
        raise ConfigFileError(path=folder, reason=reason) from error


def known_user_configs() -> Path | None:
    """As `user_configs`; None where there is no such folder, and so nothing in it."""
    try:
        return user_configs()
    except ConfigFileError:
        return None


def shipped_workloads() -> Path:
    """The file of published workloads.

    Example:
        >>> shipped_workloads().name
        'workloads.json'
    """
    return Path(__file__).parents[1] / "workloads.json"


def shipped_configs() -> Path:
    """The folder of shipped tiles.

    Example:
        >>> shipped_configs().name
        'autotune_configs'
    """
    return Path(__file__).parents[1] / _NAME
