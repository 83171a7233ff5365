"""What the tests of searches share: a folder for their results."""

import pytest

from lc_triton.tiles import paths, store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where results go; the user's folder is another, and empty."""
    monkeypatch.setattr(paths, "user_configs", lambda: tmp_path / "user")
    store.read_or_warn.cache_clear()
    yield tmp_path / "out"
    store.read_or_warn.cache_clear()
