"""The command line in the source tree: `python run.py [train|evaluate|profile|plot] [flags]`; the default command is train."""

from __future__ import annotations

import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Call `beast.cli.main`, which sets the import path before anything else is imported."""
    if arguments is None:  # called as a program, not by a test or a notebook
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # missing under `python -I` and `-P`
    from beast.cli import main

    return main(arguments, "run.py")


if __name__ == "__main__":
    sys.exit(main())
