"""A run's settings: frozen groups of flags, checked where they are made. The docstring under a field is its help.

The loss's settings live with the loss (`beast/algorithms/impala.py`), a model's with the model, the
optimiser's with the optimiser.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from beast.envs import EnvChoice, EnvError, Standard
from beast.names import NoSuchModule, import_named
from beast.optimisers import OptimiserConfig
from beast.policy import model_module
from beast.system import usable_cores


class ConfigError(ValueError):
    """A setting is wrong. The message is one line: what is wrong, what is allowed."""


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")


def _one_of(config: Any, name: str, allowed: tuple[str, ...]) -> None:
    if getattr(config, name) not in allowed:
        raise ConfigError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")


def _is_number(value: Any) -> bool:
    """Not NaN, which passes every check of a range; nor a whole number that is too large for any tensor."""
    return (type(value) is float and not math.isnan(value)) or (type(value) is int and abs(value) < 2**62)


_KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number below 2^62", lambda value: type(value) is int and abs(value) < 2**62),
    float: ("a number", _is_number),
    str: ("text", lambda value: isinstance(value, str)),
    dict: ("a JSON object", lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value)),
}


def _check_types(group: type, values: dict[str, Any]) -> None:
    """Flags are parsed; values from a file may be anything. Types that are not in _KINDS are their group's own affair."""
    hints = typing.get_type_hints(group)
    for name, value in values.items():
        parts = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
        kinds = [_KINDS.get(typing.get_origin(part) or part) for part in parts if part is not type(None)]
        if (value is None and type(None) in parts) or None in kinds or any(kind and kind[1](value) for kind in kinds):
            continue
        raise ConfigError(f"--{name} must be {' or '.join(kind[0] for kind in kinds if kind)}, got {value!r:.80}")


@dataclass(frozen=True)
class EnvironmentConfig:
    """Environment"""

    env: str = "PongNoFrameskip-v4"
    """an Atari or any Gymnasium id, my_package:MyEnv-v0 (imported for its ids), or my_package.my_module:make_env"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """JSON object handed to the environment, e.g. '{"rows": 8}'"""
    full_action_set: bool = False
    """Atari: all 18 actions instead of the game's own"""
    action_repeat: int | None = None
    """frames of the environment a step, rewards added up (default: 4 on Atari, else 1)"""
    frame_stack: int | None = None
    """the newest so many frames are the observation (default: 4 on Atari, else 1)"""
    resize: str | None = None
    """pictures become 84 (both sides) or HEIGHTxWIDTH (default: 84 on Atari, else as they are)"""
    grayscale: bool = False
    """pictures become grey (Atari's are)"""
    max_episode_steps: int | None = None
    """an episode is cut after so many steps (default: as registered, 27,000 on Atari)"""
    wrapper: str = ""
    """your own, my_package.my_module:wrap, called with the environment and put on inside all others (Atari: outside); several
    with commas, the first one innermost"""
    repeat_action_probability: float | None = None
    """sticky actions: the last one is taken again with this probability (default: 0, for Atari as the id says)"""
    life_loss: bool = True
    """Atari: in training a lost life ends the return, not the game"""
    fire_on_life_loss: bool = False
    """Atari: FIRE is taken after a lost life, whatever the policy chose"""

    def __post_init__(self) -> None:
        _at_least(self, 1, "action_repeat", "frame_stack", "max_episode_steps")
        if not 0 <= (self.repeat_action_probability or 0.0) < 1:
            raise ConfigError(f"--repeat_action_probability must lie in [0, 1), got {self.repeat_action_probability}")
        try:
            _ = self.standard.size
        except EnvError as error:
            raise ConfigError(str(error)) from error

    @property
    def standard(self) -> Standard:
        return Standard(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Standard)})

    @property
    def choice(self) -> EnvChoice:
        return EnvChoice(
            self.env, self.env_kwargs, self.full_action_set, self.standard, self.life_loss, self.fire_on_life_loss
        )


@dataclass(frozen=True)
class ActorsConfig:
    """Actors"""

    num_actors: int = 48
    """environments that act at the same time, each with an unroll of its own"""
    num_actor_processes: int | None = None
    """processes that host them (default: one a core, at most num_actors); 0: serial mode, one process, reproducible"""
    unroll_length: int = 20
    """steps of an unroll (T)"""
    num_buffers: int | None = None
    """unrolls in shared memory (default: 2 * num_actors + batch_size)"""

    def __post_init__(self) -> None:
        _at_least(self, 1, "num_actors", "unroll_length", "num_buffers")
        _at_least(self, 0, "num_actor_processes")
        if (self.num_actor_processes or 0) > self.num_actors:
            raise ConfigError(
                f"--num_actor_processes ({self.num_actor_processes}) must not exceed --num_actors ({self.num_actors})"
            )

    @property
    def serial(self) -> bool:
        return self.num_actor_processes == 0

    @property
    def processes(self) -> int:
        """Processes that host the actors, at least one (in serial mode: this one)."""
        return max(
            1, min(self.num_actors, usable_cores() if self.num_actor_processes is None else self.num_actor_processes)
        )


@dataclass(frozen=True)
class LearnerConfig:
    """Learner"""

    trainer: str = "monobeast"
    """monobeast: actors run their own forwards; polybeast: one place batches the forwards of all who wait; or
    my_package.my_beast with a function crew"""
    algorithm: str = "impala"
    """a file of beast/algorithms, or my_package.my_module with Config and loss"""
    model: str | None = None
    """a file of models/ (atari_shallow, impala_shallow, impala_resnet, multi_input, mlp), or my_package.my_module with a class
    Model (default: by the observation space)"""
    use_lstm: bool = False
    """an LSTM after the features"""
    total_steps: int = 50_000_000
    """agent steps to learn from; the learning rate falls to 0 there"""
    batch_size: int = 32
    """unrolls a batch (B)"""
    num_learner_threads: int | None = None
    """one learns while the others assemble batches (default: 2 with a GPU, 1 without)"""
    device: str = "auto"
    """of the learner: auto, cpu, cuda, cuda:1, ..."""
    precision: str = "auto"
    """what models compute in: float32, bfloat16, or auto (bfloat16 where model and hardware are made for it); the
    optimiser's weights are float32 always"""

    compile_model: bool = False
    """torch.compile the learner's model: half a minute at the start, fewer launches on a GPU, slower on a CPU"""

    def __post_init__(self) -> None:
        _at_least(self, 1, "total_steps", "batch_size", "num_learner_threads")
        _one_of(self, "precision", ("auto", "float32", "bfloat16"))


@dataclass(frozen=True)
class ModelConfig:
    """Model"""


@dataclass(frozen=True)
class InferenceConfig:
    """Inference (PolyBeast)"""

    inference: str = "process"
    """process: on its own; thread: beside the learner"""
    inference_min_batch: int = 1
    """environments that must wait before a forward runs"""
    inference_max_batch: int | None = None
    """environments in a forward at most (default: num_actors)"""
    inference_timeout_ms: float = 10.0
    """milliseconds after which the longest waiting one is served in any case"""
    weights_sync: str = "unroll"
    """unroll: weights change between unrolls only; step: at any step"""

    def __post_init__(self) -> None:
        _at_least(self, 1, "inference_min_batch", "inference_max_batch")
        _at_least(self, 0, "inference_timeout_ms")
        _one_of(self, "inference", ("thread", "process"))
        _one_of(self, "weights_sync", ("unroll", "step"))


@dataclass(frozen=True)
class RunConfig:
    """Run"""

    preset: str = "auto"
    """defaults for a kind of task: atari, classic, minigrid, dmlab; auto: by the environment"""
    savedir: str = "runs"
    """folder of run folders; `latest` in it points to the newest"""
    xpid: str | None = None
    """name of the run (default: environment and time)"""
    resume: str | None = None
    """a run folder, a run's name in savedir, or a checkpoint file to go on from; its own flags hold but for those given
    here; auto: --xpid's run, started if there is nothing to go on from (for job scripts)"""
    seed: int = 1
    """of weights, environments and actions"""
    disable_checkpoint: bool = False
    """save nothing but logs"""
    checkpoint_every: float = 10.0
    """minutes between checkpoints; the first comes within a minute, and one at the end in any case"""
    keep_checkpoints: int = 3
    """newest checkpoints kept; 0: all"""
    eval_every: int = 0
    """agent steps between evaluations in a process of their own; 0: none"""
    eval_episodes: int = 10
    """episodes of each such evaluation"""
    report_every: float = 5.0
    """seconds between rows of logs.csv"""
    max_restarts: int = 5
    """of one process within 10 minutes before the run gives up"""
    actor_timeout: float = 300.0
    """seconds without a sign of life after which a process counts as hung and is replaced"""
    max_actor_memory: float | None = None
    """MB that a process of actors may hold with all that its environments started (PSS; looked at every 2 seconds); one
    that holds more is replaced between unrolls (default: no limit)"""
    max_skipped_updates: int = 10
    """in a row, for NaN or infinity in loss, gradient, observation or reward, before the run gives up"""
    stop_at_return: float | None = None
    """end the run, with a checkpoint, once the mean return of the last 100 full games has come to X; none: never"""
    max_minutes: float | None = None
    """end the run, with a checkpoint, X minutes after this start; none: never"""
    callback: str | None = None
    """my_package.my_module with functions that hear of updates, episodes and checkpoints, and may stop the run
    (beast/callbacks.py)"""

    def __post_init__(self) -> None:
        _at_least(self, 0, "keep_checkpoints", "eval_every", "max_restarts", "seed")
        _at_least(self, 1, "eval_episodes", "max_skipped_updates")
        for name in ("checkpoint_every", "report_every", "actor_timeout", "max_minutes", "max_actor_memory"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"--{name} must be positive, got {getattr(self, name)}")
        _one_of(self, "preset", ("auto", *PRESETS))
        if self.xpid is not None and not is_name(self.xpid):
            raise ConfigError(
                f"--xpid must be the name of one new folder in --savedir (no space, no slash, no leading -), got {self.xpid!r}"
            )


def is_name(xpid: Any) -> bool:
    """Whether a run may be called so: what is printed, typed and taken for a folder must not be taken for anything else."""
    if not isinstance(xpid, str):
        return False
    odd = not xpid.isprintable() or "/" in xpid or " " in xpid or xpid.startswith("-")
    return not odd and xpid not in ("", ".", "..", "latest", "auto")


PRESETS: dict[str, dict[str, Any]] = {
    # The paper's settings for Atari are the defaults.
    "atari": {},
    # Low-dimensional observations: tuned on CartPole-v1 alone (docs/log.md names what it does not learn yet).
    "classic": {
        "num_actors": 16,
        "batch_size": 8,
        "total_steps": 500_000,
        "learning_rate": 5e-3,
        # Unclipped rewards make gradients of every size: no clip, and an epsilon that damps the small ones.
        "epsilon": 1.0,
        "grad_norm_clipping": 0.0,
        "baseline_cost": 0.1,
        "reward_clipping": "none",
        "checkpoint_every": 1.0,
    },
    # Small grids with a sparse reward at the end.
    "minigrid": {
        "num_actors": 32,
        "total_steps": 10_000_000,
        "learning_rate": 1e-3,
        "reward_clipping": "none",
        "entropy_cost": 0.005,
        "use_lstm": True,
    },
    # First-person 3-D tasks, the paper's appendix D: one point inside the ranges that it searched.
    "dmlab": {
        "model": "impala_resnet",
        "use_lstm": True,
        "unroll_length": 100,
        "total_steps": 250_000_000,
        "learning_rate": 2e-4,
        "entropy_cost": 3e-3,
        "epsilon": 1e-3,
        "grad_norm_clipping": 0.0,
        "reward_clipping": "soft_asymmetric",
    },
}


@dataclass(frozen=True)
class Config:
    """All settings of a run. `flat()` and `from_flat` are how it is written down and read back."""

    environment: EnvironmentConfig
    actors: ActorsConfig
    learner: LearnerConfig
    model: Any
    """the model's own Config; ModelConfig if it has none, or is not chosen yet"""
    loss: Any
    """the algorithm's own Config"""
    optimiser: OptimiserConfig
    inference: InferenceConfig
    run: RunConfig

    def __post_init__(self) -> None:
        if self.num_buffers < self.least_buffers:
            raise ConfigError(
                f"--num_buffers {self.num_buffers} is too small: num_actors ({self.actors.num_actors}) + batch_size "
                f"({self.learner.batch_size}) = {self.least_buffers} are needed; leave it out to have it chosen"
            )

    @property
    def least_buffers(self) -> int:
        """Fewer could leave actors and learner waiting for each other."""
        return self.actors.num_actors + self.learner.batch_size

    @property
    def num_buffers(self) -> int:
        """Slots of the unroll store: actors write one set while the one before it is learned."""
        return self.actors.num_buffers or 2 * self.actors.num_actors + self.learner.batch_size

    @property
    def open_files(self) -> int:
        """That this process has open at most, about: for each worker pipes of two beasts, errors, its sentinel."""
        return 40 + (0 if self.actors.serial else 10 * self.actors.processes)

    @classmethod
    def groups(cls, algorithm: str, model: str | None) -> dict[str, type]:
        """The group classes by name, the loss's taken from its algorithm, the model's from its module.

        Raises:
            ConfigError: if there is no such algorithm.
            ModelError: if there is no such model.
        """
        return {
            "environment": EnvironmentConfig,
            "actors": ActorsConfig,
            "learner": LearnerConfig,
            "model": getattr(model_module(model).Model, "Config", ModelConfig) if model else ModelConfig,
            "loss": algorithm_module(algorithm).Config,
            "optimiser": OptimiserConfig,
            "inference": InferenceConfig,
            "run": RunConfig,
        }

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> Config:
        """From flag values; those left out take their defaults.

        Raises:
            ConfigError: naming the wrong setting.
        """
        groups = {}
        left = set(values)
        _check_types(LearnerConfig, {name: values[name] for name in ("algorithm", "model") if name in values})
        for name, group in cls.groups(values.get("algorithm", LearnerConfig.algorithm), values.get("model")).items():
            groups[name] = section(group, values)
            left -= {f.name for f in dataclasses.fields(group)}
        if left:
            known = [f.name for group in groups.values() for f in dataclasses.fields(group)]
            near = difflib.get_close_matches(min(left), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown settings: {', '.join(sorted(left))}{hint}")
        return cls(**groups)

    def flat(self) -> dict[str, Any]:
        """Every setting by its flag's name; JSON can hold it."""
        return {
            f.name: getattr(group, f.name)
            for group in (getattr(self, g.name) for g in dataclasses.fields(self))
            for f in dataclasses.fields(group)
        }

    def replace(self, **values: Any) -> Config:
        """The same with other values, by flag name."""
        return Config.from_flat(self.flat() | values)


def section(group: type, values: dict[str, Any]) -> Any:
    """One group of settings from flag values, among which may be others'.

    Raises:
        ConfigError: naming the wrong setting.
    """
    own = {f.name: values[f.name] for f in dataclasses.fields(group) if f.name in values}
    _check_types(group, own)
    try:
        return group(**own)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def algorithm_module(name: str) -> Any:
    """The module of an algorithm: it defines `Config`, and `loss` or `Algorithm` (see `beast/algorithms/__init__.py`).

    Raises:
        ConfigError: if there is none.
    """
    path = name if "." in name else f"beast.algorithms.{name}"
    try:
        module = import_named(path)
    except NoSuchModule as error:
        raise ConfigError(
            f"no algorithm {name!r}: use a file of beast/algorithms (impala) or a module of your own that can be imported"
        ) from error
    for needed in (("Config",), ("loss", "Algorithm")):
        if not any(hasattr(module, one) for one in needed):
            raise ConfigError(
                f"--algorithm {name}: the module defines no {' or '.join(needed)} (see beast/algorithms/impala.py)"
            )
    return module
