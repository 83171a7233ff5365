"""The command line: `lc-triton demo | tune | fit | precompile | inspect | configs | convert | env | completion`.

Each command is a module: `add` declares its options, `run` does its work and imports what that needs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lc_triton._command import Terminated
from lc_triton._version import __version__
from lc_triton.cli import completion, configs, convert, demo, env, fit, inspect, precompile, tune
from lc_triton.cli.options import Commands, check_words
from lc_triton.errors import LocalConvError, LostGPUError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    That is 0; 1 where something could not be done, as the output says; 2 for wrong input, with one line on stderr; 130
    for an interruption, 143 for SIGTERM; 141 where nothing reads the output any more.
    """
    parser, commands = make_parser()
    options = argparse.Namespace(after_interrupt="", parser=parser)
    try:
        check_words(sys.argv[1:] if arguments is None else arguments, commands.choices)
        parser.parse_args(arguments, options)
        options.is_process = arguments is None  # and so can be started once more, with what it was started with
        status = options.call(options) or 0
        sys.stdout.flush()  # here, where a closed pipe is expected
        return status
    except LocalConvError as error:
        print(f"lc-triton: {error}", file=sys.stderr)
        return 1 if isinstance(error, LostGPUError) else 2
    except BrokenPipeError:  # whoever read the output has enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 141
    except OSError as error:  # a disk that is full, a folder that may not be written: nothing half-written is left
        print(f"lc-triton: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\nlc-triton: interrupted{options.after_interrupt}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


def make_parser() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser of all commands, and the action that holds theirs."""
    parser = argparse.ArgumentParser(
        prog="lc-triton", description="Locally connected layers for PyTorch, fused in Triton."
    )
    parser.add_argument("--version", action="version", version=f"lc-triton {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (demo, tune, fit, precompile, inspect, configs, convert, env, completion):
        command.add(commands)
    return parser, commands
