"""Flags from dataclasses: one flag for each field, one section of the help for each class, field docstrings as help texts."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import sys
import textwrap
import types
import typing
from collections.abc import Container
from typing import Any, NoReturn

from beast.core import names
from beast.settings.presets import PRESETS

MOST_USED = ("env", "model", "num_actors", "total_steps", "seed", "xpid", "resume")
_BRIEF_END = """[48; classic: 16] means 48 by default and 16 with the preset classic (--help-all says when it is chosen).
All flags and presets: --help-all"""


class Parser(argparse.ArgumentParser):
    """An argparse parser with one-line errors, `--some-flag` for `--some_flag`, and the nearest flag named after a typo.

    Args:
        brief: whether `--help` shows only MOST_USED and the command's own flags, and `--help-all` the rest and the presets.
        settings: arguments of argparse.ArgumentParser.
    """

    def __init__(self, brief: bool = False, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **settings)
        self._rest: list[Any] = []  # argparse's groups of flags that only --help-all shows
        self._most_used = self.add_argument_group("Most used") if brief else None
        if brief:
            self.usage = "%(prog)s [flags]"
            self.add_argument("--help_all", action=_HelpAll, help="Show all flags and presets.")

    def parse(self, arguments: list[str]) -> dict[str, Any]:
        """Return the values of the flags that were given, and no others; exit with status 2 if one is wrong."""
        arguments = [_with_underscores(argument) for argument in arguments]
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            wrong = unknown[0].split("=")[0]
            near = difflib.get_close_matches(wrong, flags, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near and wrong.startswith("-") else "see --help"
            self.error(f"unknown argument {wrong}; {hint}")
        return vars(values)

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit with status 2."""
        print(f"{names.typed}: error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        """Return the short help, if the parser is brief: the command's own flags and the most used ones."""
        return self._format(all_flags=self._most_used is None)

    def format_help_all(self) -> str:
        """Return the help with all flags and the presets."""
        return self._format(all_flags=True)

    def _format(self, all_flags: bool) -> str:
        groups, epilog = self._action_groups, self.epilog
        if self._most_used is not None:
            self._most_used._group_actions.sort(key=lambda action: MOST_USED.index(action.dest))
            usual = [self._optionals, self._most_used, *self._rest]
            own = [group for group in groups if group not in usual]
            self._action_groups = [*own, self._most_used, *(self._rest if all_flags else []), self._optionals]
            self.epilog = preset_help() if all_flags else _BRIEF_END
        try:
            return super().format_help()
        finally:
            self._action_groups, self.epilog = groups, epilog

    def add_dataclass(self, section: type, only: Container[str] | None = None) -> None:
        """Add one flag for each field of a section, or only for the fields in `only`."""
        group = self.add_argument_group((section.__doc__ or section.__name__).splitlines()[0])
        self._rest.append(group)
        hints, helps = typing.get_type_hints(section), field_docs(section)
        for field in dataclasses.fields(section):
            if only is not None and field.name not in only:
                continue
            settings: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
            text = helps.get(field.name, "")
            default = field.default if field.default is not dataclasses.MISSING else None
            if hints[field.name] is bool:
                settings["action"] = _OnOff
            else:
                settings["type"], settings["metavar"] = _parser_of(hints[field.name])
            text += _defaults_text(field.name, default)
            where = self._most_used if self._most_used is not None and field.name in MOST_USED else group
            where.add_argument(f"--{field.name}", help=text.replace("%", "%%"), **settings)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, _OnOff | _HelpAll):
            return ", ".join(action.option_strings).replace("help_", "help-")
        return super()._format_action_invocation(action)


class _HelpAll(argparse.Action):
    """The action of `--help-all`: print the long help and exit."""

    def __init__(self, option_strings: list[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **settings)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser._print_message(parser.format_help_all(), sys.stdout)
        parser.exit()


class _OnOff(argparse.Action):
    """The action of a switch: `--flag`, `--no_flag`, `--flag=false`."""

    def __init__(self, option_strings: list[str], dest: str, **settings: Any) -> None:
        no = [flag.replace("--", "--no_", 1) for flag in option_strings]
        super().__init__([*option_strings, *no], dest, nargs="?", metavar="true|false", **settings)

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        words = {None: True, "true": True, "1": True, "false": False, "0": False}
        key = value.lower() if value is not None else None
        if key not in words:
            parser.error(f"{option_string} takes true or false, got {value!r}")
        setattr(namespace, self.dest, words[key] != (option_string or "").startswith("--no_"))


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _parser_of(hint: Any) -> tuple[Any, str]:
    """Return the function that parses a value of this type, and the name of such a value in the help."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        if hint is float:
            return _number_or_none, "X"
    if hint is int:
        return _whole, "N"
    if hint is float:
        return _number, "X"
    if typing.get_origin(hint) is dict:
        return json_object, "JSON"
    return str, "NAME"


def _whole(text: str) -> int:
    """Parse an integer; 50_000_000, 50000000 and 5e7 are the same."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(text) from None
        return int(number)


_whole.__name__ = "whole number"


def _number(text: str) -> float:
    """Parse a number, but not NaN, which would pass every check of a range."""
    number = float(text)
    if math.isnan(number):
        raise ValueError(text)
    return number


_number.__name__ = "number"


def _number_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else _number(text)


_number_or_none.__name__ = "number (or none)"


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; raise ValueError for anything else."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


json_object.__name__ = "JSON object"


def to_arguments(values: dict[str, Any]) -> list[str]:
    """Return command line arguments from which `Parser.parse` reads these values."""
    return [part for name, value in values.items() for part in (f"--{name}", _as_typed(value))]


def _as_typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def field_docs(section: type) -> dict[str, str]:
    """Return the docstring under each field of a section, inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= _own_field_docs(base)
    return docs


def _own_field_docs(section: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for statement, after in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(after.value.value).split())  # type: ignore[union-attr]
    return docs


def _defaults_text(name: str, default: Any) -> str:
    """Return ` [48; classic: 16]`: a flag's default and its values in presets; empty if there is neither."""
    texts = [] if default is None or default is False or default in ("", {}) else [_value_text(default)]
    others = ", ".join(f"{preset}: {_value_text(values[name])}" for preset, values in PRESETS.items() if name in values)
    texts += [others] if others else []
    return f" [{'; '.join(texts)}]" if texts else ""


def _value_text(value: Any) -> str:
    return f"{value:,}" if type(value) is int and value > 9999 else _as_typed(value)


def preset_help() -> str:
    """Return a description of what each preset sets, for the end of the help."""
    lines = [
        "presets, sets of defaults that --preset auto chooses by the environment, all but paper (flags that you give have"
        " priority):"
    ]
    for name, values in PRESETS.items():
        text = (
            "  ".join(f"{key}={_as_typed(value)}" for key, value in values.items())
            or "the defaults: the paper's Atari settings; network and RMSProp differ (docs/paper.md)"
        )
        lines += textwrap.wrap(text, 100, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)
    return "\n".join(lines)
