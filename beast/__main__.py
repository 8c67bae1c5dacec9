"""The command `python -m beast`, the same as `beast`."""

from __future__ import annotations

import sys

from beast.cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m beast"))
