"""The layers for Keras 3 without Keras, and with another backend."""

import importlib.util
import os
import subprocess
import sys

import pytest

from lc_triton import errors
from tests.keras.keras3.common import QUIET, keras, layers

pytestmark = QUIET


def test_keras_runs_on_torch():
    assert keras.config.backend() == "torch"  # tests/conftest.py sets it before any module imports Keras


def python(code, **environment):
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


REFUSED = "these layers compute in torch: set KERAS_BACKEND=torch in the environment before keras is imported"


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    with pytest.raises(errors.BackendError, match="backend 'tensorflow' cannot be used: " + REFUSED):
        layers.LocallyConnected2D(4, 3)


# May go when an extra that the tests are run with has JAX: Keras's numpy backend needs it too.
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="needs JAX, or Keras has no backend but torch")
def test_another_backend_of_a_process_is_refused():
    code = "from lc_triton.keras.layers import LocallyConnected1D; LocallyConnected1D(2, 3)"
    done = python(code, KERAS_BACKEND="numpy")
    assert done.returncode == 1
    assert "BackendError: backend 'numpy' cannot be used: " + REFUSED in done.stderr


HIDDEN = """
import importlib, sys
class Hidden:
    def __init__(self, hidden):
        self.hidden = hidden
    def find_spec(self, name, path=None, target=None):
        if name == self.hidden:
            raise ModuleNotFoundError("No module named " + name, name=name)
def attempt(hidden):
    sys.meta_path.insert(0, Hidden(hidden))
    try:
        importlib.import_module("lc_triton.keras.layers")
    except lc_triton.LocalConvError as error:
        print(type(error).__name__, error)
    del sys.meta_path[0]
import lc_triton
assert "keras" not in sys.modules
attempt("keras")
attempt("jax")
"""


@pytest.mark.subprocess
@pytest.mark.slow
def test_keras_is_imported_late_and_named_if_it_is_missing():
    done = python(HIDDEN, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "MissingPackageError lc_triton.keras.layers needs keras, which is not installed: "
        'pip install "lc-triton[keras3]"',
        "BackendError backend 'jax' cannot be used: Keras cannot import it: set KERAS_BACKEND=torch in the environment "
        "before keras is first imported",
    ]
