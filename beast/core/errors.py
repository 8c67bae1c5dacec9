"""Errors that end in one line for the user, and the exit status that goes with each."""

from __future__ import annotations


class BeastError(Exception):
    """An error that says all there is to say: its message is one line, which tells the user what to do."""

    exit_status = 2
    """Of the command that it ends: 2 for bad input, 1 for a run that failed."""
    details = ""
    """What is printed before the message: the traceback of the process that failed."""


class ConfigError(BeastError, ValueError):
    """A setting is wrong. The message is one line: what is wrong, what is allowed."""


class EnvError(BeastError, ValueError):
    """An environment cannot be made, or breaks its contract. The message is one line that says what to do."""


class ModelError(BeastError, ValueError):
    """A model cannot be found or built. The message is one line that says what to do."""


class CheckpointError(BeastError, ValueError):
    """There is no usable checkpoint. The message is one line that says what to do."""


class WorkerError(BeastError, RuntimeError):
    """A worker failed for good. `details` holds its own traceback, or is empty."""

    exit_status = 1

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class RankLost(BeastError, RuntimeError):
    """Another learner of the same run is gone, or gave no answer in time."""

    exit_status = 1


class FailedElsewhere(BeastError, RuntimeError):
    """Another learner of the same run could not start, and tells its own user why."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class StoreClosed(BeastError, EOFError):
    """The parent has closed the store: the end of a run for the worker that sees it."""

    exit_status = 0
