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
    chosen = environment("LC_TRITON_CONFIG_DIR", "")
    try:
        return (Path(chosen).expanduser() if chosen else _cache() / _NAME).absolute()
    except RuntimeError as error:
        reason = "this user has no home folder, so LC_TRITON_CONFIG_DIR must name one for your tiles"
        raise ConfigFileError(path=chosen or f"lc_triton/{_NAME}", reason=reason) from error


def _cache() -> Path:
    try:
        import platformdirs  # not above: only what chooses tiles needs it
    except ImportError as error:  # of a copy that was not installed, as Hugging Face's kernels loads them
        reason = "platformdirs is not installed, so LC_TRITON_CONFIG_DIR must name a folder for your tiles"
        raise ConfigFileError(path=f"lc_triton/{_NAME}", reason=reason) from error
    return platformdirs.user_cache_path("lc_triton", False)


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
