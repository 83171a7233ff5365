"""`lc-triton inspect`: compile the chosen kernels for a GPU that need not be here."""

from __future__ import annotations

import argparse
import json

from lc_triton.cli.options import Commands, add_problem, need_triton, select_problems


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser("inspect", help="compile the chosen kernels for a GPU that need not be here")
    add_problem(parser)
    parser.set_defaults(call=run, after_interrupt="")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from tqdm import tqdm

    problems, device = select_problems(options)
    need_triton("inspect")
    from lc_triton.launch.inspection import inspect

    reports = []
    for workload, batch, pass_name in tqdm(problems, desc="compiling", unit="kernel", disable=None):
        report = inspect(workload, batch, options.dtype, pass_name, device)
        reports.append(report.to_json())
        if not options.json:
            tqdm.write(report.to_text() + "\n")
    if options.json:
        print(json.dumps(reports, indent=1))
