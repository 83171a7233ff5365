"""`lc-triton completion`: print what makes a shell complete the commands and their options."""

from __future__ import annotations

import argparse
from pathlib import Path

from lc_triton.cli.options import Commands

SHELLS = ("bash", "zsh", "tcsh")
DESCRIPTION = """print a script that completes commands, options and file names in a shell. For bash:
lc-triton completion bash > ~/.local/share/bash-completion/completions/lc-triton"""


def add(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser("completion", help="print a shell's completion script", description=DESCRIPTION)
    parser.add_argument("shell", metavar="SHELL", help=f"of {', '.join(SHELLS)}")
    parser.set_defaults(call=run, after_interrupt="")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from lc_triton.core.arguments import check_name
    from lc_triton.errors import MissingPackageError

    check_name("shell", options.shell, SHELLS)
    try:
        import shtab
    except ImportError:
        raise MissingPackageError(what="completion", package="shtab", extra="cli") from None
    parser = options.parser
    for commands in parser._actions:
        for command in (commands.choices or {}).values() if isinstance(commands.choices, dict) else ():
            for action in command._actions:
                if action.type is Path:
                    action.complete = shtab.FILE
    print(shtab.complete(parser, options.shell))
