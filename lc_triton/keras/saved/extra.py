"""What files of Keras need beyond PyTorch: the packages of the extra `keras`."""

from __future__ import annotations

import importlib.util

from lc_triton.errors import MissingPackageError

_PACKAGES = ("h5py", "pydantic")


def check_extra(what: str) -> None:
    """Refuse to begin what cannot be done.

    Raises:
        MissingPackageError: naming the packages that are not installed, and the extra that brings them.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(what=what, package=" and ".join(missing), extra="keras")
