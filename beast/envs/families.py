"""Names of environments: what a name stands for, which code it imports, and the well-known suites that need a package."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium

from beast.core.errors import EnvError
from beast.core.names import NoSuchModule, import_named
from beast.envs.old_style import OldStyle
from beast.envs.spaces import Codes

for _name in ("Catch", "Synthetic"):
    if f"{_name}-v0" not in gymnasium.registry:
        gymnasium.register(f"{_name}-v0", f"beast.envs.{_name.lower()}:{_name}", disable_env_checker=True)


@dataclass(frozen=True)
class Family:
    """A suite of environments that comes in a package of its own."""

    name: str
    extra: str
    """Name of its extra in setup.cfg."""
    module: str
    """Module whose import registers its ids."""
    ids: str
    """Regular expression for the beginning of its ids, or of their entry points in Gymnasium's registry."""
    package: str
    """Name of its package for pip."""
    preset: str | None = None
    """Preset of its tasks; None if their observation spaces decide."""
    register: Callable[[Any], None] = lambda module: None
    """Function called with the imported module."""
    prepare: Callable[[], None] = lambda: None
    """Function called before the import."""
    prepare_pictures: Callable[[], None] = lambda: None
    """Function called before an environment that renders is made."""


def _register_crafter(module: Any) -> None:
    for name, reward in (("CrafterReward-v1", True), ("CrafterNoReward-v1", False)):
        if name not in gymnasium.registry:
            gymnasium.register(name, _crafter, kwargs={"reward": reward}, disable_env_checker=True)


def _crafter(render_mode: str | None = None, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Make Crafter, which has the old `gym`'s interface, is seeded by its constructor, and says by `discount` how it ended."""
    env = importlib.import_module("crafter").Env(**kwargs)
    return OldStyle(env, seed=lambda seed: setattr(env, "_seed", seed), cut=lambda info: info["discount"] > 0)


def _without_display() -> None:
    if not os.environ.get("DISPLAY"):
        importlib.import_module("pyglet").options["headless"] = True


def _mujoco_without_display() -> None:
    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


FAMILIES = (
    Family("MiniGrid", "minigrid", "minigrid", r"MiniGrid-|BabyAI-", "minigrid", preset="minigrid"),
    Family(
        "MinAtar", "minatar", "minatar.gym", r"MinAtar/", "minatar",
        register=lambda module: None if "MinAtar/Breakout-v1" in gymnasium.registry else module.register_envs(),
    ),
    Family("ViZDoom", "vizdoom", "vizdoom.gymnasium_wrapper", r"Vizdoom", "vizdoom"),
    Family("MiniWorld", "miniworld", "miniworld", r"MiniWorld-", "miniworld", prepare=_without_display),
    Family("Crafter", "crafter", "crafter", r"Crafter(No)?Reward-", "crafter", register=_register_crafter),
    Family("MuJoCo", "mujoco", "mujoco", r"gymnasium\.envs\.mujoco", "mujoco", prepare_pictures=_mujoco_without_display),
    Family("Box2D", "box2d", "Box2D", r"gymnasium\.envs\.box2d", "box2d==2.3.10"),
)  # fmt: skip


def family_of(name: str) -> Family | None:
    """Return the suite that an id seems to belong to, without importing anything; `module:Id` counts as its id."""
    name = name.rpartition(":")[2]
    spec = gymnasium.registry.get(name) or gymnasium.registry.get(_newest_version(name) or "")
    entry = spec.entry_point if spec is not None and isinstance(spec.entry_point, str) else ""
    return next((family for family in FAMILIES if re.match(family.ids, name) or re.match(family.ids, entry)), None)


def code_named_by(name: str, wrappers: str = "") -> tuple[str, ...]:
    """Return the modules that making an environment would import because its name or its wrappers' names say so.

    Nothing is imported here. Ids of Gymnasium, Atari and the suites above import only what this program names itself, so
    for them the result is empty. Any other code was chosen by the author of the name, who may not be the user.
    """
    return tuple(part.partition(":")[0] for part in (name, *split_wrappers(wrappers)) if ":" in part)


def split_wrappers(wrappers: str) -> list[str]:
    """Split `a:b, c:d` into a list."""
    return [part.strip() for part in wrappers.split(",") if part.strip()]


def find(name: str) -> Callable[..., Any] | str:
    """Find what `--env` means: return an id of Gymnasium's registry, or the user's own function.

    Raises:
        EnvError: if there is no such thing, or its package is not installed.
    """
    if ":" not in name:
        return _find_id(name)
    module_name, _, wanted = name.partition(":")
    if not module_name or not wanted:
        raise EnvError(f"--env {name}: write it my_package.my_module:make_env, or my_package:MyEnv-v0")
    # An id that is not registered yet differs from a function by characters that no function's name can hold.
    suite = family_of(wanted) if re.search(r"[-/]", wanted) else None
    module = import_member(name, "--env") if suite is None else _import_family(suite, name)
    if hasattr(module, wanted):
        function: Callable[..., Any] = getattr(module, wanted)
        return function
    if re.fullmatch(r"[\w/-]+", wanted) and (found := _registered(wanted)):
        return found
    if wanted.isidentifier():
        raise EnvError(f"--env {name}: {module_name} has no {wanted!r}")
    raise EnvError(f"--env {name}: importing {module_name} registers no {wanted}{_did_you_mean(wanted)}")


def _find_id(name: str) -> str:
    family = family_of(name)
    if family is not None:
        _import_family(family, name)
    found = _registered(name)
    if found is None:
        raise EnvError(f"unknown --env {name}{_did_you_mean(name)}")
    return found


def import_member(name: str, flag: str) -> Any:
    """Return the member in `module:member`, which a user typed after a flag.

    Raises:
        EnvError: if there is none. Errors of the module's own import pass through.
    """
    module_name = name.partition(":")[0]
    if not module_name or module_name.startswith("."):
        raise EnvError(f"{flag} {name}: write it my_package.my_module:make_env")
    try:
        return import_named(module_name)
    except NoSuchModule as error:
        raise EnvError(
            f"{flag} {name}: no module {error.name!r}; run where it can be imported from, or set PYTHONPATH"
        ) from error


def _import_family(family: Family, name: str) -> Any:
    """Import a suite's module, which registers its ids.

    Raises:
        EnvError: if its package is not installed or cannot be imported.
    """
    advice = f"pip install '{family.package}', or pip install -e '.[{family.extra}]' where Beast's source is"
    if importlib.util.find_spec(family.module.partition(".")[0]) is None:
        raise EnvError(f"--env {name} needs {family.name}: {advice}")
    try:
        family.prepare()
        module = importlib.import_module(family.module)
        family.register(module)
    except Exception as error:
        raise EnvError(f"--env {name}: {family.name} cannot be imported ({one_line(error)}): {advice}") from error
    return module


def _registered(name: str) -> str | None:
    """Return the id itself, or its newest version: `CartPole` is `CartPole-v1`."""
    return name if name in gymnasium.registry else _newest_version(name)


def _newest_version(name: str) -> str | None:
    versions = [key for key in gymnasium.registry if re.fullmatch(re.escape(name) + r"-v\d+", key)]
    return max(versions, key=lambda key: int(key.rpartition("-v")[2]), default=None)


def _did_you_mean(name: str) -> str:
    known = list(gymnasium.registry)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"{hint} Use a Gymnasium id, or my_package.my_module:make_env"
        if hint
        else (": use a Gymnasium id (PongNoFrameskip-v4, CartPole-v1, Catch-v0), or my_package.my_module:make_env")
    )


def one_line(error: Exception) -> str:
    """Return an error's message in one line of bounded length, or its type if it has no message."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def codes_of(env: gymnasium.Env[Any, Any]) -> int:
    """Return how many different numbers the grids `[H, W, 3]` of an environment hold; 0 if they are pictures.

    MiniGrid's spaces say 0 to 255, while objects, colours and states have numbers up to about 10; its RGB wrappers give
    pixels.
    """
    layers = []
    while env is not None:
        layers += [base.__name__ for base in type(env).__mro__ if base.__module__.startswith("minigrid.")]
        env = getattr(env, "env", None)  # type: ignore[assignment]
    return 16 if "MiniGridEnv" in layers and not any(name.startswith("RGBImg") for name in layers) else 0


def codes_space(space: gymnasium.Space[Any], count: int) -> gymnasium.Space[Any]:
    """Return a grid's space as a space of codes, and any other space unchanged."""
    grid = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 3 and space.shape[-1] == 3
    return Codes(space.shape, count) if count and grid and space.dtype == "uint8" else space  # type: ignore[arg-type]
