"""One line instead of a traceback when Ctrl-C arrives while the command line imports torch; SIGTERM like Ctrl-C.

Other programs are not changed. `cli.main` handles Ctrl-C after the imports.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it kills."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end what runs inside this block as Ctrl-C does, so that what was measured is written."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in no other
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def restart(*more: str) -> NoReturn:
    """Replace this process by a fresh one of the same command and more arguments; the last one of an option counts."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else ():
        if int(number) > 2:
            with suppress(OSError):  # listdir's own descriptor is closed already
                os.set_inheritable(int(number), False)  # a driver's file that stayed open would keep the GPU's memory
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *more])


def _is_command_line() -> bool:
    """Whether this process was started as `lc-triton`, `python -m lc_triton` or `python -m lc_triton.cli`."""
    arguments = sys.orig_argv
    modules = {name for option, name in itertools.pairwise(arguments) if option == "-m"}
    return bool({"lc_triton", "lc_triton.cli"} & modules) or Path(sys.argv[0]).stem == "lc-triton"


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):  # Python then exits as shells expect after Ctrl-C
        print("\nlc-triton: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if _is_command_line():
    sys.excepthook = _report
