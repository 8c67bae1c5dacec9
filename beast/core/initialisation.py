"""Whether a model under construction needs initial weights: drawing orthogonal ones takes most of the time to make it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_wanted = ContextVar("initial weights are wanted", default=True)


def wanted() -> bool:
    """Return False if other weights are read into the model before it is used."""
    return _wanted.get()


@contextmanager
def unwanted() -> Iterator[None]:
    """Construct models without initial weights, in this thread."""
    token = _wanted.set(False)
    try:
        yield
    finally:
        _wanted.reset(token)
