"""The command line: `lc-triton demo | env`."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from lc_triton._version import __version__
from lc_triton.errors import LocalConvError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for wrong input (one line on stderr), 130 for an interruption."""
    parser = argparse.ArgumentParser(
        prog="lc-triton", description="Locally connected layers for PyTorch, fused in Triton."
    )
    parser.add_argument("--version", action="version", version=f"lc-triton {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_env(commands)
    options = parser.parse_args(arguments)
    try:
        options.call(options)
    except LocalConvError as error:
        print(f"lc-triton: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nlc-triton: interrupted{options.after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="train a locally connected network on handwritten digits, beside a convolution and a dense layer",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", help="float32, float64, or by autocast float16, bfloat16")
    parser.add_argument("--out", type=Path, default=Path("lc-triton-demo"), help="folder for what it writes")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batch order and dropout")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.set_defaults(call=_demo, after_interrupt="; the same command with --resume goes on")


def _demo(options: argparse.Namespace) -> None:
    from lc_triton.demo import Settings, run

    names = ("epochs", "batch_size", "device", "dtype", "out", "seed", "resume")
    run(Settings(**{name: getattr(options, name) for name in names}))


def _add_env(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("env", help="print what a bug report needs: versions, devices, what runs where")
    parser.set_defaults(call=_env, after_interrupt="")


def _env(_: argparse.Namespace) -> None:
    from importlib import metadata

    import torch

    from lc_triton import _backend
    from lc_triton.tuning import paths

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "lc-triton": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "triton": version("triton"),
        "numpy": version("numpy"),
        "GPUs": ", ".join(gpus) or "none that torch sees",
        "CPU tensors take": _backend.resolve("cpu"),
        "CUDA tensors take": _backend.resolve("cuda"),
        "configurations": str(paths.shipped_configs()),
    }
    for name, value in facts.items():
        print(f"{name + ':':20}{value}")


if __name__ == "__main__":
    sys.exit(main())
