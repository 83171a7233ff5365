"""Names and types for type checkers of users' code."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import lc_triton
from lc_triton.core import activations, backend, geometry, names, padding, padding_mode, share
from lc_triton.keras.activations import ACTIVATIONS
from lc_triton.ops import quantized

ROOT = Path(__file__).parents[2]
SAMPLE = "tests/typing/user_code.py"


@pytest.mark.nightly
@pytest.mark.subprocess
@pytest.mark.slow
def test_user_code_passes_mypy():
    """Each line marked `type: ignore` must have an error: mypy reports unused marks."""
    command = [sys.executable, "-m", "mypy", SAMPLE]  # with the options, and so the cache, of `make types`
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_sample_marks_errors_for_both_checkers():
    lines = (ROOT / SAMPLE).read_text().splitlines()
    marked = [line for line in lines if "# type: ignore" in line]
    assert len(marked) >= 8
    assert marked == [line for line in lines if "# pyright: ignore" in line]


@pytest.mark.parametrize(
    ("alias", "known"),
    [
        (names.ActivationName, activations.NAMES),
        (names.KerasActivationName, ACTIVATIONS),
        (names.PaddingName, padding.PADDING_NAMES),
        (names.PaddingModeName, padding_mode.PADDING_MODES),
        (names.DataFormat, geometry.DATA_FORMATS),
        (names.ShareName, share.SHARE_NAMES),
        (names.BackendName, backend.BACKENDS),
        (names.QuantizedName, quantized.KINDS),
    ],
)
def test_types_have_the_names_that_the_library_accepts(alias, known):
    assert set(get_args(alias)) == set(known)


def test_types_of_pairs_have_the_activations_with_a_constant():
    for name, entry in activations._TABLE.items():
        assert (f"'{name}'" in names.ActivationPair.partition("float")[0]) == (entry.constant is not None)
    for kind in ("none", "tanh"):
        activations.parse_activation(("gelu", kind))


@pytest.mark.subprocess
@pytest.mark.slow
def test_submodules_need_no_import_of_their_own():
    code = (
        "import sys, lc_triton; assert 'lc_triton.parallel' not in sys.modules; lc_triton.keras.load_model; "
        "lc_triton.init.zeros_; print(lc_triton.parallel.cost.__module__, 'parallel' in dir(lc_triton))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "lc_triton.parallel.cost True\n"


def test_an_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="module 'lc_triton' has no attribute 'LocalConv4d'"):
        lc_triton.LocalConv4d  # noqa: B018


def test_reexports_are_explicit():
    """Type checkers take an import as public if it is `from x import y as y`, or in `__all__`."""
    for package in ("lc_triton", "lc_triton.keras", "lc_triton.parallel"):
        module = importlib.import_module(package)
        text = Path(module.__file__).read_text()
        explicit = set(re.findall(r"import (\w+) as \1\b", text)) | set(module.__all__)
        imported = set(re.findall(r"^    (\w+),$", text, re.MULTILINE)) | set(
            re.findall(r"^(?:    )?from \S+ import (\w+)$", text, re.MULTILINE)
        )
        assert imported - explicit <= {"annotations", "TYPE_CHECKING", "Any", "check_extra"}
