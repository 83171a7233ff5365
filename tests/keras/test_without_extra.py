"""Files of Keras without the extra `keras`, without triton and on other systems."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.subprocess, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "golden" / "saved_seq_impl1.h5"
INSTALL = 'which is not installed: pip install "lc-triton[keras]"'


def run(code, *blocked, platform="linux"):
    """Run Python with some packages blocked, and with another `sys.platform`."""
    # These libraries load files for the real system, so they are imported before `sys.platform` is changed.
    lines = [
        "import sys, subprocess, tempfile, filelock, numpy, pydantic, torch",
        "pydantic.BaseModel",
        *(f"sys.modules[{name!r}] = None" for name in blocked),
        f"sys.platform = {platform!r}",
        code,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, env=env, timeout=300, check=False
    )


def convert(arguments):
    return f"from lc_triton.cli import main; sys.exit(main({['convert', *arguments]!r}))"


@pytest.mark.parametrize("blocked", [("h5py",), pytest.param(("pydantic",), marks=pytest.mark.nightly)])
def test_convert_names_the_missing_extra_first(blocked):
    done = run(convert(["absent.h5", "--out", "model.pt"]), *blocked)
    assert done.returncode == 2
    assert done.stderr == f"lc-triton: lc-triton convert needs {' and '.join(blocked)}, {INSTALL}\n"
    assert done.stdout == ""


def test_functions_name_the_missing_extra_first():
    code = "\n".join(
        [
            "import lc_triton",
            "from lc_triton.errors import MissingPackageError",
            "for name in ('load_model', 'load_weights', 'save_model', 'save_weights'):",
            "    try:",
            "        getattr(lc_triton.keras, name)('absent.h5')",
            "    except MissingPackageError as error:",
            "        print(error)",
            "print(lc_triton.LocallyConnected1D(2, 3, input_shape=(5, 1)).count_params())",
        ]
    )
    done = run(code, "h5py", "pydantic", "triton")
    assert done.stdout.splitlines() == [
        *(f"lc_triton.keras.{name} needs h5py and pydantic, {INSTALL}" for name in _NAMES),
        "24",
    ], done.stderr


_NAMES = ("load_model", "load_weights", "save_model", "save_weights")


@pytest.mark.parametrize("platform", ["win32", pytest.param("darwin", marks=pytest.mark.nightly)])
def test_a_model_is_converted_without_triton_on_another_system(platform, tmp_path):
    code = convert([str(MODEL), "--out", str(tmp_path / "model.pt")])
    done = run(code, "triton", "resource", "fcntl", platform=platform)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "model.pt").is_file()
