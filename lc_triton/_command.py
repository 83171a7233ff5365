"""One line instead of a traceback when Ctrl-C arrives while the command line imports torch.

Other programs are not changed. `cli.main` handles Ctrl-C after the imports.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import TracebackType


def _is_command_line() -> bool:
    """Whether this process was started as `lc-triton`, `python -m lc_triton` or `python -m lc_triton.cli`."""
    arguments = sys.orig_argv
    modules = {name for option, name in itertools.pairwise(arguments) if option == "-m"}
    return bool({"lc_triton", "lc_triton.cli"} & modules) or Path(sys.argv[0]).stem == "lc-triton"


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):  # Python then ends as a shell expects of what Ctrl-C ended
        print("\nlc-triton: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if _is_command_line():
    sys.excepthook = _report
