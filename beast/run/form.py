"""The form of a checkpoint's content: a file may be undamaged and still not what this program writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_number(value: Any) -> bool:
    """Return whether it is a finite number small enough for sums."""
    return type(value) in (int, float) and abs(value) < 1e100


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized or value.is_nested)
        and value.nbytes <= value.untyped_storage().nbytes()  # otherwise it claims more than was read
    )


def _is_weights(value: Any) -> bool:
    return _is_dense(value) and (not value.is_floating_point() or bool(value.isfinite().all()))


def _is_random_state(value: Any) -> bool:
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError):
        return False
    return True


def _is_actions(value: Any) -> bool:
    return value is None or (_is_dense(value) and value.ndim >= 3)


Form = Callable[[Any], bool]


def _each(form: Form) -> Form:
    """Return the form of lists and tuples of this form."""
    return lambda value: isinstance(value, list | tuple) and all(map(form, value))


def _is_level(value: Any) -> bool:
    """Return whether it is what `Stall` keeps of a report: mean, deviation and count of games; empty for none."""
    return _each(_is_number)(value) and len(value) in (0, 3)


def _named(form: Form) -> Form:
    """Return the form of dictionaries from names to this form."""
    return lambda value: (
        isinstance(value, dict) and all(isinstance(name, str) for name in value) and all(map(form, value.values()))
    )


def _is_plain(value: Any, depth: int = 20, tensors: bool = False) -> bool:
    """Return whether a value is as in JSON (or with tensors), with limited nesting."""
    if isinstance(value, list | tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(part, depth - 1, tensors) for part in inner)
    return value is None or isinstance(value, bool | int | float | str) or (tensors and _is_dense(value))


def _is_tree(value: Any) -> bool:
    """Return whether a value is plain data with tensors."""
    return _is_plain(value, tensors=True)


FORM: dict[str, Any] = {
    "config": _named(_is_plain),
    "learner": {
        "model": _named(_is_weights),
        "algorithm": {"module": _named(_is_weights), "state": _named(_is_tree)},
        "optimiser": {"name": lambda value: isinstance(value, str), "moments": _named(_is_weights)},
        "steps": _is_count,
        "updates": _is_count,
    },
    "reports": {
        "games": _each(lambda game: _each(_is_number)(game) and len(game) == 2),
        "env": _named(_each(_is_number)),
        "episodes": _is_count,
        "elapsed": lambda value: _is_number(value) and value >= 0,
        "history": _each(lambda point: _each(_is_number)(point) and len(point) == 2),
        # Kept only where actions are choices, and since there is a watch over runs that stop learning.
        "stall?": {"start": _is_level, "mark": _is_level, "looks": _is_count, "told": _is_count},
    },
    "torch_rng": _is_random_state,
    "resumes": lambda value: _is_count(value) and value < 1_000_000,
    "restarts": _is_count,
    "skipped_updates": _is_count,
    # Not in all of them: of serial actors, and not in those of the first format.
    "spaces?": {"observation": _named(_is_tree), "action": _named(_is_tree)},
    "past?": {
        "metrics": lambda value: value is None or _is_count(value),
        "incarnation": _is_count,
        "actions": _is_actions,
        "checks": lambda value: _is_dense(value) and value.ndim == 1 and value.dtype == torch.int64,
        "core_state": lambda value: value is None or _each(_is_weights)(value),
    },
    "source?": {"unlearned?": _each(_is_dense)},
    # Only of runs with a policy lag.
    "weights?": {
        "versions": lambda value: _is_dense(value) and value.ndim == 1 and value.dtype == torch.int64,
        "parameters": lambda value: _is_weights(value) and value.ndim == 2,
        "statistics": lambda value: _is_weights(value) and value.ndim == 2,
    },
}


def misfit(value: Any, form: Any = FORM, name: str = "") -> str | None:
    """Return the name of the first part that is missing or wrong (`learner.steps`); None if all parts fit."""
    if not isinstance(form, dict):
        return None if form(value) else name
    if not isinstance(value, dict):
        return name or "all of it"
    for key, inner in form.items():
        part = key.removesuffix("?")
        where = f"{name}.{part}".lstrip(".")
        if part not in value:
            if part == key:
                return where
        elif (found := misfit(value[part], inner, where)) is not None:
            return found
    return None
