"""`python -m lc_triton.cli`: the same commands as `lc-triton`."""

import sys

from lc_triton.cli import main

if __name__ == "__main__":
    sys.exit(main())
