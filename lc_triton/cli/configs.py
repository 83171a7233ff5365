"""`lc-triton configs`: list the tiles that would be used, and where they come from."""

from __future__ import annotations

import argparse
import json

from lc_triton.cli.options import Commands, add_kernels, add_update, select_device, select_kernels, tasks_of


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser("configs", help="list the tiles that would be used, and where they come from")
    add_kernels(parser, "h200", "h200")
    add_update(parser)
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output, nothing else")
    parser.set_defaults(call=run, after_interrupt="")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from dataclasses import asdict

    from lc_triton.tiles.select import select

    kernels, device = select_kernels(options), select_device(options)
    rows = []
    for (workload, batch, dtype, pass_name), task in zip(kernels, tasks_of(options, kernels), strict=True):
        choice = select(task, device)
        rows.append(
            {
                "workload": workload.name,
                "batch": batch,
                "dtype": dtype,
                "face": pass_name,
                **({} if task.update is None else {"update": task.update, "states": options.states}),
                "device": device.full_name,
                "config": asdict(choice.config),
                "source": choice.source,
                "path": None if choice.path is None else str(choice.path),
                "median_us": None if choice.measured is None else choice.measured.median_us,
                "simulated_us": None if choice.simulated is None else choice.simulated.simulated_us,
                "stale": choice.stale,
            }
        )
        if not options.json:
            c = choice.config
            tile = f"{c.rows}x{c.cols} f{c.block_f} b{c.block_b} k{c.block_k} w{c.num_warps} s{c.num_stages}"
            tile += " swapped" if c.swap else "" if c.dot else " reduced"
            tile += (
                (f" split {c.split}" if c.split > 1 else "")
                + (" boxes" if c.descriptor else "")
                + (" padded" if c.pad_channels else "")
            )
            where = f"{choice.path}{', stale: the kernel has changed since' if choice.stale else ''}"
            kernel = pass_name if task.update is None else f"{pass_name}+{task.update}"
            width = 12 if options.update is None else 24
            print(
                f"{workload.name:22}{batch:>6}  {dtype:18}{kernel:{width}}{tile:34}{choice.source}"
                + (f" ({where})" if choice.path else "")
            )
    if options.json:
        print(json.dumps(rows, indent=1))
