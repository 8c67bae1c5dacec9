"""The entry point of the command line: `beast`, `python -m beast` and `run.py` call `main`; `commands.py` has the commands."""

from __future__ import annotations

import os
import sys

# Nothing else is imported before `main` has set the import path: a `signal.py` in the current folder may be any file.


def main(arguments: list[str] | None = None, program: str = "beast") -> int:
    """Run a command, by default `train`.

    Args:
        arguments: of the command line; None takes this process's own and lets the program set its import path and signals.
        program: the command as typed, for messages.

    Returns:
        The exit status: 0 done, 1 failed, 2 bad input, 128 + n ended by signal n.
    """
    if arguments is None:
        from beast.processes import paths

        paths.set_search_path(sys.path)
        from beast.processes.launch import launch

        if rank := launch().rank:
            program = f"rank {rank}: {program}"
        _take_signals(program)
        if not paths.current_folder():  # MKL would abort this process
            os.write(2, f"{program}: error: the current folder does not exist any more: go to another one\n".encode())
            return 2
        arguments = sys.argv[1:]
        from beast.processes.machine import keep_freed_memory

        keep_freed_memory()  # before any other thread starts (see its docstring)
    from beast import commands
    from beast.core import names

    names.typed = program
    command = arguments[0] if arguments and not arguments[0].startswith("-") else "train"
    return commands.run(command, arguments[1:] if arguments[:1] == [command] else arguments)


def _take_signals(program: str) -> None:
    """Handle signals until a run has something to save."""
    import signal

    def leave(number: int, _: object) -> None:
        """Exit at once: KeyboardInterrupt would print a traceback or get lost in a C extension."""
        os.write(2, f"{program}: error: interrupted\n".encode())
        os._exit(128 + number)

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it asks for a checkpoint, and there is nothing to save yet
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # an ignored SIGHUP means nohup
            signal.signal(number, leave)
