"""Where tile choices lie on disk."""

from __future__ import annotations

from pathlib import Path

_NAME = "autotune_configs"


def shipped_configs() -> Path:
    """The folder of measured tile choices: inside an installed package, at the repository's top level in a checkout.

    Raises:
        FileNotFoundError: neither is there, so the installation is not whole.

    Example:
        >>> shipped_configs().name
        'autotune_configs'
    """
    package = Path(__file__).parents[1]
    for folder in (package / _NAME, package.parent / _NAME):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no {_NAME} folder in {package} or beside it: install lc-triton again")
