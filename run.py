"""The command line: `python run.py [train|evaluate|profile] [flags]`. Without a command it trains."""

from __future__ import annotations

import os
import sys

# Nothing else is imported before `main` has put the path in order: a `signal.py` in the current folder may be anybody's.


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the process's exit status (0 done, 1 failed, 2 bad input, 128 + n ended by signal n)."""
    if arguments is None:  # this process is ours, not a test's or a notebook's
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # there already, but under -I and -P
        from beast import paths

        paths.settle(sys.path)
        _take_signals()
        if not paths.current_folder():  # MKL would end this process on the spot
            os.write(2, b"run.py: error: the current folder does not exist any more: go to another one\n")
            return 2
        arguments = sys.argv[1:]
        from beast.system import keep_freed_memory

        keep_freed_memory()  # before there is any thread but this one: see there
    from beast import commands

    command = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
    return commands.run(command, arguments[1:] if arguments[:1] == [command] else arguments)


def _take_signals() -> None:
    """Until a run has something to save."""
    import signal

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # "checkpoint now": there is nothing yet, and it must not kill
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else it is under nohup
            signal.signal(number, _leave)


def _leave(number: int, _: object) -> None:
    """A KeyboardInterrupt would end in a traceback, or get lost in a C extension."""
    os.write(2, b"run.py: error: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
