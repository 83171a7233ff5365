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
    import platformdirs  # not above: only what chooses tiles needs it

    chosen = environment("LC_TRITON_CONFIG_DIR", "")
    try:
        folder = Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("lc_triton", False) / _NAME
    except RuntimeError as error:
        reason = "this user has no home folder, so LC_TRITON_CONFIG_DIR must name one for your tiles"
        raise ConfigFileError(path=chosen or f"lc_triton/{_NAME}", reason=reason) from error
    return folder.absolute()


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
