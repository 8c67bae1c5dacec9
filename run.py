"""The command line: `python run.py [train|evaluate|profile] [flags]`. Without a command it trains."""

from __future__ import annotations

import sys

COMMANDS = ("train", "evaluate", "profile")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the process's exit status (0 done, 1 failed, 2 bad input, 128 + n ended by signal n)."""
    from beast import commands  # here, because child processes import this file too, and need none of it

    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
    return commands.run(command, arguments[1:] if arguments[:1] == [command] else arguments)


if __name__ == "__main__":
    sys.exit(main())
