"""The command line from the source tree: `python run.py [train|evaluate|profile|plot] [flags]`. Without a command it trains."""

from __future__ import annotations

import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """As `beast.cli.main`, which see: it may import nothing before that has put the path in order."""
    if arguments is None:  # this process is ours, not a test's or a notebook's
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # there already, but under -I and -P
    from beast.cli import main

    return main(arguments, "run.py")


if __name__ == "__main__":
    sys.exit(main())
