import pytest


@pytest.fixture(scope="session")
def ptx_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("ptx")


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch, ptx_cache):
    """These tests compile kernels to PTX only, so they must not share Triton's cache with a GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(ptx_cache))
