"""`lc-triton precompile`: compile all kernels of some layers into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from lc_triton.cli.options import Commands, need_triton, select_layers


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "precompile", help="compile all kernels of some layers into a folder, for a GPU that need not be here"
    )
    parser.add_argument(
        "--workloads", type=Path, nargs="+", metavar="FILE", help="layers (default: published networks)"
    )
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="only these of them")
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help="layers such as 63x63x16,k9,f16 instead")
    parser.add_argument("--batches", nargs="+", type=int, metavar="B", help="samples (default: each workload's own)")
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16"], metavar="DTYPE", help="as of tune; bfloat16/float32 is autocast"
    )
    parser.add_argument("--activations", nargs="+", default=["linear"], metavar="NAME", help="(default: linear)")
    parser.add_argument("--inference", action="store_true", help="no gradients")
    parser.add_argument("--device", default="h100", help="a100, h100 (default), h200, b200, rtx4090 or mi300x")
    parser.add_argument("--out", type=Path, metavar="DIR", help="Triton's cache folder to compile into")
    parser.add_argument("--check", type=Path, metavar="DIR", help="say why Triton here would not use a folder; 1 if so")
    parser.add_argument("--relocate", type=Path, metavar="DIR", help="make a folder that was moved usable where it is")
    parser.set_defaults(call=run, after_interrupt="; what was compiled is found again by the next run")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from lc_triton.errors import ArgumentValueError

    need_triton("precompile")
    if sum(value is not None for value in (options.out, options.check, options.relocate)) != 1:
        raise ArgumentValueError(name="--out", value=options.out, allowed="given, or else --check or --relocate")
    if options.check is not None:
        from lc_triton.ahead import manifest

        reasons = manifest.differences(options.check)
        print("\n".join(reasons) or f"{options.check}: Triton here will use its kernels")
        return int(bool(reasons))
    if options.relocate is not None:
        from lc_triton.ahead import manifest

        print(f"{manifest.relocate(options.relocate)} kernels in {options.relocate} can be used there")
        return 0
    _compile_layers(options)
    return 0


def _compile_layers(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from lc_triton.ahead.models import compile_model
    from lc_triton.ahead.session import collecting
    from lc_triton.layers import LocalConv1d, LocalConv2d, LocalConv3d
    from lc_triton.tiles.device import by_name
    from lc_triton.tiles.task import types_of

    device = by_name(options.device)
    batches, layers = select_layers(options)
    for dtype in options.dtypes:
        types_of(dtype)
    calls = [
        (layer, batch, *types_of(dtype), activation)
        for layer in layers
        for batch in batches or layer.batches
        for dtype in options.dtypes
        for activation in options.activations
    ]
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        with collecting(device, options.out) as made:
            for layer, batch, dtype, weight_dtype, precision, activation in tqdm(calls, unit="layer", disable=None):
                setting.fp32_precision = precision
                geo = layer.geometry
                module = (LocalConv1d, LocalConv2d, LocalConv3d)[geo.ndim - 1](
                    geo.in_channels,
                    geo.out_channels,
                    geo.kernel,
                    input_size=geo.in_spatial,
                    stride=geo.stride,
                    padding=list(geo.padding),
                    dilation=geo.dilation,
                    groups=geo.groups,
                    activation=activation,
                    device="meta",
                    dtype=getattr(torch, weight_dtype),
                )
                shape = batch, geo.in_channels, *geo.in_spatial
                compile_model(module, [shape], getattr(torch, dtype), None, training=not options.inference)
    finally:
        setting.fp32_precision = before
    print(made.to_text())
