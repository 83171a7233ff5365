import pytest


@pytest.fixture(scope="session")
def ptx_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("ptx")


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch, ptx_cache):
    """Kernels are compiled to PTX only here, which Triton's cache must not give to a GPU, or take from one."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(ptx_cache))
