"""Fixtures of the tests of searches."""

import pytest

from lc_triton.tiles import paths, store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for results, which is not the user's folder; that one is empty."""
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path / "user")
    store.read_or_warn.cache_clear()
    yield tmp_path / "out"
    store.read_or_warn.cache_clear()
