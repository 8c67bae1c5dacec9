"""How a section of settings is made from values of flags and checked: wrong ones raise a ConfigError that names the flag."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from beast.core.errors import ConfigError


def at_least(config: Any, least: int, *names: str) -> None:
    """Check that settings which are not None are so large."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")


def one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Check that a setting is one of a few words."""
    if getattr(config, name) not in allowed:
        raise ConfigError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")


def _is_number(value: Any) -> bool:
    """Return whether it is a number other than NaN (which passes every check of a range), and no integer beyond any tensor."""
    return (type(value) is float and not math.isnan(value)) or (type(value) is int and abs(value) < 2**62)


_KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number below 2^62", lambda value: type(value) is int and abs(value) < 2**62),
    float: ("a number", _is_number),
    str: ("text", lambda value: isinstance(value, str)),
    dict: ("a JSON object", lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value)),
}


def check_types(section: type, values: dict[str, Any]) -> None:
    """Check the types of values, which may come from a file. A type that is not in _KINDS is checked by its own section."""
    hints = typing.get_type_hints(section)
    for name, value in values.items():
        parts = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        kinds = [_KINDS.get(typing.get_origin(part) or part) for part in parts if part is not type(None)]
        if (value is None and type(None) in parts) or None in kinds or any(kind and kind[1](value) for kind in kinds):
            continue
        raise ConfigError(f"--{name} must be {' or '.join(kind[0] for kind in kinds if kind)}, got {value!r:.80}")


def section(kind: type, values: dict[str, Any]) -> Any:
    """Make one section of settings from flag values, which may include those of other sections.

    Raises:
        ConfigError: if a setting is wrong; the message names it.
    """
    own = {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}
    check_types(kind, own)
    try:
        return kind(**own)
    except ValueError as error:
        raise ConfigError(str(error)) from error
