"""The command line's door: `beast`, `python -m beast` and `run.py` all come in here. `commands.py` has what is behind it."""

from __future__ import annotations

import os
import sys

# Nothing else is imported before `main` has put the path in order: a `signal.py` in the current folder may be anybody's.


def main(arguments: list[str] | None = None, program: str = "beast") -> int:
    """Run a command; without one it trains.

    Args:
        arguments: of the command line; None: this process's own, which then is this program's and nobody else's.
        program: what was typed, for messages.

    Returns:
        The process's exit status (0 done, 1 failed, 2 bad input, 128 + n ended by signal n).
    """
    if arguments is None:
        from beast.processes import paths

        paths.set_search_path(sys.path)
        from beast.processes.launch import launch

        if rank := launch().rank:
            program = f"rank {rank}: {program}"
        _take_signals(program)
        if not paths.current_folder():  # MKL would end this process on the spot
            os.write(2, f"{program}: error: the current folder does not exist any more: go to another one\n".encode())
            return 2
        arguments = sys.argv[1:]
        from beast.processes.machine import keep_freed_memory

        keep_freed_memory()  # before there is any thread but this one: see there
    from beast import commands
    from beast.core import names

    names.typed = program
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
    return commands.run(command, arguments[1:] if arguments[:1] == [command] else arguments)


def _take_signals(program: str) -> None:
    """Until a run has something to save."""
    import signal

    def leave(number: int, _: object) -> None:
        """A KeyboardInterrupt would end in a traceback, or get lost in a C extension."""
        os.write(2, f"{program}: error: interrupted\n".encode())
        os._exit(128 + number)

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # "checkpoint now": there is nothing yet, and it must not kill
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else it is under nohup
            signal.signal(number, leave)
