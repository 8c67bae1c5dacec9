"""Whether a model that is being made needs weights of its own: drawing orthogonal ones takes most of the time to make it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_wanted = ContextVar("initial weights are wanted", default=True)


def wanted() -> bool:
    """Whether they are; False where others are read into the model before it is used."""
    return _wanted.get()


@contextmanager
def unwanted() -> Iterator[None]:
    """Make models without them, in this thread."""
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)
