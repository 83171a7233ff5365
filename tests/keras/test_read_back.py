"""tf_keras loads the weights that lc_triton writes, and predicts the same."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# May go when an extra that the tests are run with has tf_keras; that of the benchmarks does.
@pytest.mark.skipif(not importlib.util.find_spec("tf_keras"), reason="needs tf_keras, of the extra bench")
def test_tf_keras_loads_the_weights_of_every_model():
    done = subprocess.run(
        [sys.executable, "-m", "tests.keras.saved.read_back"],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    # The float16 model is not trained, and a model of the user has one line.
    assert len(done.stdout.splitlines()) == 3 * 13 - 1 + 1
