"""`lc-triton precompile`: compile all kernels of some layers into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lc_triton.cli.options import (
    Commands,
    add_kernels,
    need_triton,
    select_device,
    select_dtypes,
    select_layers,
    select_passes,
)

if TYPE_CHECKING:
    from lc_triton.tiles.config import Pass


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "precompile", help="compile all kernels of some layers into a folder, for a GPU that need not be here"
    )
    add_kernels(parser, "h100", "h100")
    parser.add_argument("--activations", nargs="+", default=["linear"], metavar="NAME", help="(default: linear)")
    parser.add_argument("--inference", action="store_true", help="no gradients, as --faces forward")
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
    from lc_triton.tiles.task import types_of

    device, passes = select_device(options), _passes(options)
    layers = select_layers(options, all_by_default=True)
    calls = [
        (layer, batch, *types_of(dtype), activation)
        for layer in layers
        for batch in layer.batches
        for dtype in select_dtypes(options)
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
                module.requires_grad_("weight_grad" in passes)
                shape = batch, geo.in_channels, *geo.in_spatial
                compile_model(
                    module,
                    [shape],
                    getattr(torch, dtype),
                    None,
                    training=len(passes) > 1,
                    input_grad="input_grad" in passes,
                )
    finally:
        setting.fp32_precision = before
    print(made.to_text())


def _passes(options: argparse.Namespace) -> tuple[Pass, ...]:
    """The passes to compile; a training step begins with the forward."""
    from lc_triton.errors import ArgumentValueError

    passes = select_passes(options)
    if "forward" not in passes:
        allowed = "forward and what is wanted beside it: the gradients are those of a forward that keeps what they need"
        raise ArgumentValueError(name="--faces", value=list(passes), allowed=allowed)
    if not options.inference:
        return passes
    if "all" not in options.passes and len(passes) > 1:
        raise ArgumentValueError(name="--faces", value=list(passes), allowed="forward only, beside --inference")
    return ("forward",)
