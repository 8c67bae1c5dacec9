"""Trust in checkpoints: one that somebody else made may not name code to run, unless its reader agrees.

A checkpoint holds tensors and settings, and some settings name code: an environment of the user's own, say. Built-in names
do no harm. The others are followed if the reader typed the same, typed --trust, or made the file: checkpoints carry a
signature of these settings, by a key that lies in the user's state folder and never leaves this machine. What the signature
says is who chose the names, not what the modules hold that they lead to.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from beast.core.errors import CheckpointError
from beast.core.names import TRAINERS

_KEY_SIZE = 32  # bytes


class KeyRefused(ValueError):
    """The key may be known to others. The message is one line."""


def _is_built_in_module(name: Any) -> bool:
    return name is None or (isinstance(name, str) and (not name or name.isidentifier()))


def _holds_numbers_only(value: Any) -> bool:
    """Return whether a value holds only numbers; strings may be ids or files that an environment opens."""
    if isinstance(value, list | tuple):
        return all(not isinstance(part, list | tuple) and _holds_numbers_only(part) for part in value)
    return value is None or isinstance(value, bool | int | float)


NAMES_CODE: dict[str, Callable[[Any], bool]] = {
    "env": lambda value: not isinstance(value, str) or ":" in value,  # an id without a colon must be registered already
    "env_kwargs": lambda value: not isinstance(value, dict) or not all(map(_holds_numbers_only, value.values())),
    "model": lambda value: not _is_built_in_module(value),
    "algorithm": lambda value: not _is_built_in_module(value),
    "trainer": lambda value: value not in TRAINERS,
    "wrapper": bool,
    "callback": bool,
}
"""Every setting that may lead to code, and whether a value leads to any but the built-in. A new one goes here alone."""


def code_in(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that name code which is not built in."""
    return {
        name: config[name] for name, names_code in NAMES_CODE.items() if name in config and names_code(config[name])
    }


def sign(config: dict[str, Any]) -> str | None:
    """HMAC-SHA256, in hexadecimal digits, of the settings that may name code; None where there can be no key."""
    try:
        return _signature(config, _key(make=True))
    except (OSError, KeyRefused, TypeError, ValueError, RecursionError):
        return None  # a run does not need it


def is_own(config: dict[str, Any], signature: Any) -> bool:
    """Return whether this user signed these settings on this machine.

    Raises:
        KeyRefused: if the key may be known to others.
    """
    try:
        expected = _signature(config, _key(make=False))
    except KeyRefused:
        raise
    except (OSError, TypeError, ValueError, RecursionError):
        return False
    return isinstance(signature, str) and hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))


def _signature(config: dict[str, Any], key: bytes) -> str:
    named = {name: config[name] for name in NAMES_CODE if name in config}  # so that older files stay valid
    text = json.dumps(named, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, b"beast settings that name code\n" + text.encode(), hashlib.sha256).hexdigest()


def _key_file() -> Path:
    """Return the key's path; raise OSError if this user has no place for it."""
    state_home = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state_home):
        return Path(state_home) / "beast" / "key"
    home = Path(os.path.expanduser("~"))
    if not home.is_dir():
        raise FileNotFoundError(f"no home folder {home}")
    return home / ".local" / "state" / "beast" / "key"


def _key(make: bool) -> bytes:
    """Return the key, which is made if there is none and `make` is True.

    Raises:
        KeyRefused: if others may know it, or it is not a key.
        OSError: if there is none.
    """
    path = _key_file()
    if make and not os.path.lexists(path):
        _make_key(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeyRefused(f"{path} is refused ({error.strerror}): remove it") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise KeyRefused(f"{path} is refused (it must be a file of yours that nobody else can read): remove it")
        key = os.read(fd, _KEY_SIZE + 1)
    finally:
        os.close(fd)
    if len(key) != _KEY_SIZE:
        raise KeyRefused(f"{path} is refused (it is no key): remove it")
    return key


def _make_key(path: Path) -> None:
    """Write a new key atomically; if several processes do so at once, the first one's key stays."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f".key.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(_KEY_SIZE))
            file.flush()
            os.fsync(fd)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def settings_of(
    path: Path, state: dict[str, Any], given: dict[str, Any] | None, trusted: bool, replaced: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the settings in a checkpoint, after checking that they run no code that the reader did not agree to.

    Args:
        path: the file that `state` was read from.
        state: the checkpoint's content.
        given: settings that the reader typed: an equal setting needs no trust; None if nothing can be typed.
        trusted: whether the reader trusts the file.
        replaced: settings of the file that are not used, because the reader typed others or only wants to act.

    Raises:
        CheckpointError: if it names code that neither this user made nor the reader named or trusted.
    """
    config: dict[str, Any] = state["config"]
    named = {
        name: value
        for name, value in code_in(config).items()
        if name not in replaced and (not given or name not in given or given[name] != value)
    }
    if not named or trusted:
        return config
    hint = ""
    try:
        if is_own(config, state.get("signature")):
            return config
    except KeyRefused as error:
        hint = f" (the key {error})"
    flags = ", ".join(
        f"--{name} {value if isinstance(value, str) else repr(value)}"[:80] for name, value in named.items()
    )
    consent = "" if given is None else f", or give the same {' and '.join(f'--{name}' for name in named)}"
    raise CheckpointError(
        f"{path} names code ({flags}) and was not made by you on this machine{hint}: add --trust (from Python: trust=True) "
        f"if you trust it{consent}"
    )
