"""Errors that are reported in one line, and the exit status of each."""

from __future__ import annotations


class BeastError(Exception):
    """An error whose message is complete: one line that tells the user what to do."""

    exit_status = 2
    """Exit status of the command: 2 for bad input, 1 for a run that failed."""
    details = ""
    """Text printed before the message: the traceback of the process that failed."""


class ConfigError(BeastError, ValueError):
    """A setting is wrong. The message is one line: what is wrong, what is allowed."""


class EnvError(BeastError, ValueError):
    """An environment cannot be made or breaks its contract. The message is one line that says what to do."""


class ModelError(BeastError, ValueError):
    """A model cannot be found or built. The message is one line that says what to do."""


class CheckpointError(BeastError, ValueError):
    """There is no usable checkpoint. The message is one line that says what to do."""


class WorkerError(BeastError, RuntimeError):
    """A worker failed for good. `details` is its traceback, or empty."""

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
    """The parent has closed the store, which ends the run for a worker."""

    exit_status = 0
