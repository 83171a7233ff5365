"""`lc-triton convert`: turn a model that Keras saved into a torch module."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from lc_triton.cli.options import Commands


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "convert", help="turn a model that Keras saved into a torch module, without Keras or TensorFlow"
    )
    parser.add_argument("model", type=Path, metavar="FILE", help="a .h5, .keras or (with --config) .weights.h5 file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pt", help="what to write, for load_model")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the model's to_json(), for a file of weights alone"
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE.npz",
        help="arrays x and y, inputs and what Keras made of them (x0, x1, ... for several): written only if they agree",
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="REL", help="how far, over the largest y (default: by the model's dtype)"
    )
    parser.add_argument(
        "--modules",
        type=Path,
        metavar="FILE.py",
        help='Python of yours with modules = {"layer name or class name": factory}, for Lambda and custom layers',
    )
    parser.set_defaults(call=run, after_interrupt="; nothing was written")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from lc_triton.keras.saved.extra import check_extra

    check_extra("lc-triton convert")
    from lc_triton.keras.saved.convert import convert

    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        report = convert(options.model, options.out, options.config, options.check, options.tolerance, options.modules)
    print(report.to_text())
    return 0 if report.agrees else 1


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print what a warning says, without the place in the code that it is from."""
    print(f"lc-triton: warning: {str(message).removeprefix('lc_triton: ')}", file=sys.stderr)
