"""`lc-triton inspect`: compile the chosen kernels for a GPU that need not be here."""

from __future__ import annotations

import argparse
import json

from lc_triton.cli.options import (
    Commands,
    add_kernels,
    add_update,
    need_triton,
    select_device,
    select_kernels,
    tasks_of,
)


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser("inspect", help="compile the chosen kernels for a GPU that need not be here")
    add_kernels(parser, "h200", "h200")
    add_update(parser)
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output, nothing else")
    parser.set_defaults(call=run, after_interrupt="")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from tqdm import tqdm

    kernels, device = select_kernels(options), select_device(options)
    tasks_of(options, kernels)  # refuses one before another is compiled
    need_triton("inspect")
    from lc_triton.launch.inspection import inspect

    reports = []
    for kernel in tqdm(kernels, desc="compiling", unit="kernel", disable=None):
        report = inspect(*kernel, device, options.update, options.states)
        reports.append(report.to_json())
        if not options.json:
            tqdm.write(report.to_text() + "\n")
    if options.json:
        print(json.dumps(reports, indent=1))
