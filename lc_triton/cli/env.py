"""`lc-triton env`: print what a bug report needs."""

from __future__ import annotations

import argparse
import platform

from lc_triton._version import __version__
from lc_triton.cli.options import Commands


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser("env", help="print what a bug report needs: versions, devices, what runs where")
    parser.add_argument(
        "--devices", action="store_true", help="only the GPUs, as a file that the other commands' --devices reads"
    )
    parser.set_defaults(call=run, after_interrupt="")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from importlib import metadata

    import torch

    from lc_triton.core import backend
    from lc_triton.errors import ArgumentValueError, ConfigFileError
    from lc_triton.tiles import device_file, paths
    from lc_triton.tiles.device import of_gpu

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    try:
        own = str(paths.user_configs())
    except ConfigFileError as error:
        own = f"none: {error.fields['reason']}"
    gpus = [of_gpu(i) for i in range(torch.cuda.device_count())]
    if options.devices:
        if not gpus:
            raise ArgumentValueError(
                name="--devices", value=True, allowed="given where torch sees a GPU, and it sees none"
            )
        print(device_file.to_text({gpu.name: gpu for gpu in gpus}))
        return
    facts = {
        "lc-triton": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "triton": version("triton"),
        "numpy": version("numpy"),
        "GPUs": "; ".join(f"{gpu.full_name}: {gpu.rates}" for gpu in gpus) or "none that torch sees",
        "CPU tensors take": backend.resolve("cpu"),
        "CUDA tensors take": backend.resolve("cuda"),
        "shipped tiles": str(paths.shipped_configs()),
        "your tiles": own,
    }
    for name, value in facts.items():
        print(f"{name + ':':20}{value}")
