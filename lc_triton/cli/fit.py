"""`lc-triton fit`: fit the constants of the analytic model to measured times."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lc_triton.cli.options import Commands


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "fit", help="fit the constants of the analytic model to times that tune --timings wrote"
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what tune --timings wrote")
    parser.add_argument(
        "--device", metavar="NAME", help="whose numbers to begin with (default: by the name in the files)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output, nothing else")
    parser.set_defaults(call=run, after_interrupt="")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from dataclasses import asdict, replace

    from lc_triton.errors import ArgumentValueError
    from lc_triton.search import timings
    from lc_triton.search.fit import fit
    from lc_triton.tiles.device import DEVICES, by_name

    given = None if options.device is None else by_name(options.device)
    known = {device.full_name: device for device in DEVICES.values()}
    groups: dict[str, list[timings.Timing]] = {}
    for path in options.files:
        for timing in timings.read(path):
            groups.setdefault(timing.device, []).append(timing)
    found = []
    for name, group in groups.items():
        if given is None and name not in known:
            raise ArgumentValueError(name="--device", value=None, allowed=f"given for times of {name!r}")
        result = fit(group, replace(given or known[name], full_name=name))
        found.append(asdict(result) | {"device": name})
        if not options.json:
            print(result.to_text())
    if options.json:
        print(json.dumps(found, indent=1))
