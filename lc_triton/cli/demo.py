"""`lc-triton demo`: train a locally connected network on handwritten digits."""

from __future__ import annotations

import argparse
from pathlib import Path

from lc_triton.cli.options import Commands


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "demo",
        help="train a locally connected network on handwritten digits, beside a convolution and a dense layer",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="float32", help="float32, float64, or by autocast float16, bfloat16")
    parser.add_argument("--optimizer", default="torch", help="torch (torch.optim.AdamW) or fused (FusedAdamW)")
    parser.add_argument("--out", type=Path, default=Path("lc-triton-demo"), help="folder for what it writes")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batch order and dropout")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--nproc", type=int, default=1, help="processes that share the locally connected layers")
    parser.set_defaults(call=run, after_interrupt="; the same command with --resume goes on")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from functools import partial

    from lc_triton.demo import Settings, ranks, run

    names = ("epochs", "batch_size", "device", "dtype", "optimizer", "out", "seed", "resume", "nproc")
    settings = Settings(**{name: getattr(options, name) for name in names})
    if settings.nproc > 1:
        return ranks.launch(partial(run, settings), settings.nproc)
    run(settings)
    return 0
