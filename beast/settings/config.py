"""The settings of a run: frozen sections of flags, checked when they are made. The docstring under a field is its help.

The loss's settings live with the loss (`beast/core/algorithms/impala.py`), a model's with the model, the optimiser's with
the optimiser.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

from beast.acting.models import model_module
from beast.core.algorithms import algorithm_module
from beast.core.errors import ConfigError, EnvError
from beast.core.optimisers import OptimiserConfig
from beast.envs import EnvChoice, Standard
from beast.processes.machine import usable_cores
from beast.settings.checks import at_least, check_types, one_of, section
from beast.settings.pace import PaceConfig, implied
from beast.settings.presets import PRESETS
from beast.store.replay import ReplayConfig


@dataclass(frozen=True)
class _Which:
    """What an environment is called. It is a base of its own because flags stand in the order of bases."""

    env: str = "PongNoFrameskip-v4"
    """Which environment: an Atari or any other Gymnasium id, my_package:MyEnv-v0 (importing my_package registers it), or
    my_package.my_module:make_env, a function of yours (docs/environments.md)."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for the environment, as a JSON object, for example '{"rows": 8}'."""
    full_action_set: bool = False
    """Use all 18 actions on Atari instead of those that the game needs."""


@dataclass(frozen=True)
class EnvironmentConfig(Standard, _Which):
    """Environment"""

    life_loss: bool = True
    """End the return, but not the game, when a life is lost on Atari (in training only)."""
    fire_on_life_loss: bool = False
    """Press FIRE after a lost life on Atari instead of the action that the policy chose."""

    def __post_init__(self) -> None:
        at_least(self, 1, "action_repeat", "frame_stack", "max_episode_steps")
        if not 0 <= (self.repeat_action_probability or 0.0) < 1:
            raise ConfigError(f"--repeat_action_probability must lie in [0, 1), got {self.repeat_action_probability}")
        try:
            _ = self.standard.size
        except EnvError as error:
            raise ConfigError(str(error)) from error

    @property
    def standard(self) -> Standard:
        """The settings of the standard wrappers."""
        return Standard(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Standard)})

    @property
    def choice(self) -> EnvChoice:
        """The environment and its settings, without the columns of `info` that an algorithm adds."""
        return EnvChoice(
            self.env, self.env_kwargs, self.full_action_set, self.standard, self.life_loss, self.fire_on_life_loss
        )


@dataclass(frozen=True)
class ActorsConfig:
    """Actors"""

    num_actors: int = 48
    """How many environments run at once, over all processes (docs/tuning.md: about 24 for each core); under torchrun, on
    each rank."""
    num_actor_processes: int | None = None
    """How many processes share the environments (default: one for each CPU core, at most num_actors). 0 does everything
    in one process, which is slower but exactly repeatable."""
    unroll_length: int = 20
    """How many steps an actor collects before it hands them to the learner (T)."""
    num_buffers: int | None = None
    """How many unrolls fit into shared memory (default: 2 * num_actors + batch_size, at least num_actors + batch_size; with
    --pace unroll or step both are num_actors); rarely worth changing."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_actors", "unroll_length", "num_buffers")
        at_least(self, 0, "num_actor_processes")
        if (self.num_actor_processes or 0) > self.num_actors:
            raise ConfigError(
                f"--num_actor_processes ({self.num_actor_processes}) must not exceed --num_actors ({self.num_actors})"
            )

    @property
    def serial(self) -> bool:
        """Whether everything runs in one process."""
        return self.num_actor_processes == 0

    @property
    def processes(self) -> int:
        """Number of processes that host the actors, at least one (this process in serial mode)."""
        return max(
            1, min(self.num_actors, usable_cores() if self.num_actor_processes is None else self.num_actor_processes)
        )


@dataclass(frozen=True)
class LearnerConfig:
    """Learner"""

    trainer: str = "monobeast"
    """Who runs the network for the environments: with monobeast every actor process does so itself, on the CPU; with
    polybeast one inference process does so for all, on the learner's device; with a3c every actor process also computes
    the gradient of its own unrolls, and the learner applies each as it comes. my_package.my_beast is a trainer of your own
    (beast/run/crew.py)."""
    algorithm: str = "impala"
    """Which loss: a file of beast/core/algorithms, or my_package.my_module, which defines Config and loss (docs/extend.md)."""
    model: str | None = None
    """Which network: a file of models/ (atari_shallow, impala_shallow, impala_resnet, multi_input, mlp), or
    my_package.my_module, which defines a class Model (default: atari_shallow for one picture of 36x36 or more, mlp for
    vectors and choices, multi_input for small pictures, texts and mixtures)."""
    use_lstm: bool = False
    """Put an LSTM after the network's features, so that the policy remembers earlier observations."""
    normalise_observations: bool = False
    """Normalise each number of an observation's vectors by its running mean and standard deviation over all steps learned
    from, which actors, learner and evaluation share, and clip it to [-10, 10]. Pictures and choices stay as they are."""
    total_steps: int = 50_000_000
    """How long to train, in agent steps (on Atari a step is 4 frames), counted over all ranks under torchrun. The
    learning rate falls linearly to 0 at that step, so set the length that you really want."""
    batch_size: int = 32
    """How many unrolls the learner uses for each update (B); under torchrun, on each rank. With --pace unroll or step it is
    num_actors."""
    num_learner_threads: int | None = None
    """How many threads the learner has: one trains, the others prepare the next batch (default: 2 with a GPU, 1 without)."""
    device: str = "auto"
    """Where the learner runs, and inference with polybeast: cpu, cuda, cuda:1, and so on. auto takes the GPU if there is
    one."""
    precision: str = "auto"
    """Number format in which the networks compute: float32, bfloat16, or auto, which takes bfloat16 where the network and
    the processor support it. The optimiser always uses float32."""
    compile_model: bool = False
    """Use torch.compile for the learner's network. Training starts up to half a minute later and is slower on a CPU
    (docs/log.md)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "total_steps", "batch_size", "num_learner_threads")
        one_of(self, "precision", ("auto", "float32", "bfloat16"))


@dataclass(frozen=True)
class ModelConfig:
    """Model"""


@dataclass(frozen=True)
class InferenceConfig:
    """Inference (PolyBeast)"""

    inference: str = "process"
    """Where inference runs: in a process of its own (process), or in a thread of the learner's process (thread)."""
    inference_min_batch: int = 1
    """Wait until this many environments need an action before the network runs."""
    inference_max_batch: int | None = None
    """Run the network for at most this many environments at a time (default: num_actors)."""
    inference_timeout_ms: float = 10.0
    """Never let an environment wait longer than this many milliseconds for a batch to fill up."""
    weights_sync: str = "unroll"
    """When inference loads newer weights: with unroll a policy stays the same during an unroll, with step every forward uses
    the newest weights."""

    def __post_init__(self) -> None:
        at_least(self, 1, "inference_min_batch", "inference_max_batch")
        at_least(self, 0, "inference_timeout_ms")
        one_of(self, "inference", ("thread", "process"))
        one_of(self, "weights_sync", ("unroll", "step"))


@dataclass(frozen=True)
class RunConfig:
    """Run"""

    preset: str = "auto"
    """Which set of defaults to use: atari, control, continuous, classic, small, minigrid or paper. auto takes minigrid for
    MiniGrid and BabyAI; for environments that get the model mlp, continuous if actions hold numbers, else classic if
    observations are arrays of whole numbers alone, else control; of all others atari for pictures of 36x36 or more alone with
    choices as actions, else small. docs/results.md has what each has learned; paper is atari with the paper's batches of 32."""
    savedir: str = "runs"
    """The folder that holds the run folders; `latest` in it points to the newest."""
    xpid: str | None = None
    """The name of the run and of its folder (default: environment and time)."""
    resume: str | None = None
    """Continue a run: give its folder, its name in savedir, or a checkpoint file. It keeps its own flags; flags that you
    add here replace them. auto continues the run that --xpid names, or starts it if there is nothing to continue (for
    job scripts)."""
    seed: int = 1
    """The random seed of everything: weights, environments and actions."""
    disable_checkpoint: bool = False
    """Save only logs, no checkpoints."""
    checkpoint_every: float = 10.0
    """Save a checkpoint at intervals of this many minutes. The first is saved within a minute, the last when the run ends."""
    keep_checkpoints: int = 3
    """Keep this many of the newest checkpoints; 0 keeps all."""
    eval_every: int = 0
    """Play evaluation games after every N agent steps, in a separate process; 0 means never."""
    eval_episodes: int = 10
    """How many games each evaluation beside training plays (--eval_every)."""
    report_every: float = 5.0
    """Write a row of logs.csv at intervals of this many seconds."""
    max_restarts: int = 5
    """Stop the run, after saving a checkpoint, when one process has died more than N times within 10 minutes."""
    actor_timeout: float = 300.0
    """Replace a worker process that has shown no sign of life for this many seconds."""
    max_actor_memory: float | None = None
    """Replace an actor process, between two unrolls, when it and all processes that its environments started hold more than
    X MB (PSS, checked every 2 seconds; default: no limit)."""
    max_skipped_updates: int = 10
    """Stop the run when N updates in a row were skipped because of NaN or infinity in loss, gradient, observation or
    reward."""
    stop_at_return: float | None = None
    """End the run, with a checkpoint, once the mean return of the last 100 full games has reached X; none means never."""
    rank_timeout: float = 120.0
    """Under torchrun, end the run, with a checkpoint, when another rank has let this one wait for so many seconds
    (docs/cluster.md)."""
    max_minutes: float | None = None
    """End the run, with a checkpoint, X minutes after this start; none means never."""
    callback: str | None = None
    """Call functions of yours after updates, episodes and checkpoints: my_package.my_module, which may also stop the run
    (docs/extend.md)."""

    def __post_init__(self) -> None:
        at_least(self, 0, "keep_checkpoints", "eval_every", "max_restarts", "seed")
        at_least(self, 1, "eval_episodes", "max_skipped_updates")
        times = ("checkpoint_every", "report_every", "actor_timeout", "rank_timeout", "max_minutes")
        for name in (*times, "max_actor_memory"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"--{name} must be positive, got {getattr(self, name)}")
        one_of(self, "preset", ("auto", *PRESETS))
        if self.xpid is not None and not is_name(self.xpid):
            raise ConfigError(
                f"--xpid must be the name of one new folder in --savedir (no space, no slash, no leading -), got {self.xpid!r}"
            )


def is_name(xpid: Any) -> bool:
    """Return whether a run may have this name: printed, typed or used as a folder, it must not mean anything else."""
    if not isinstance(xpid, str):
        return False
    odd = not xpid.isprintable() or "/" in xpid or " " in xpid or xpid.startswith("-")
    return not odd and xpid not in ("", ".", "..", "latest", "auto")


@dataclass(frozen=True)
class Config:
    """All settings of a run. `flat` returns them as flags, `from_flat` makes them from flags."""

    environment: EnvironmentConfig
    actors: ActorsConfig
    learner: LearnerConfig
    model: Any
    """The model's own Config; ModelConfig if it has none or is not chosen yet."""
    loss: Any
    """The algorithm's own Config."""
    optimiser: OptimiserConfig
    inference: InferenceConfig
    replay: ReplayConfig
    pace: PaceConfig
    run: RunConfig

    def __post_init__(self) -> None:
        self.pace.check(self.actors.num_actors, self.learner.batch_size, self.inference)
        if self.replay.unrolls(self.learner.batch_size) and self.pace.in_rounds:
            raise ConfigError(
                f"--pace {self.pace.pace} learns from fresh unrolls alone: leave it out, or leave out --replay_capacity and "
                "--demonstrations"
            )
        if self.num_buffers < self.least_buffers:
            batch = "" if self.pace.in_rounds else f" + batch_size ({self.learner.batch_size})"
            raise ConfigError(
                f"--num_buffers {self.num_buffers} is too small: num_actors ({self.actors.num_actors}){batch} = "
                f"{self.least_buffers} are needed; leave it out to have it chosen"
            )

    @property
    def least_buffers(self) -> int:
        """Fewest slots of the store; with fewer, actors and learner could wait for each other forever."""
        return self.actors.num_actors + (0 if self.pace.in_rounds else self.learner.batch_size)

    @property
    def num_buffers(self) -> int:
        """Slots of the unroll store: by default actors write one set while the learner uses the set before it."""
        return self.actors.num_buffers or self.least_buffers + (0 if self.pace.in_rounds else self.actors.num_actors)

    @property
    def fresh_unrolls(self) -> int:
        """Unrolls of each batch that were not learned from before and are no demonstrations."""
        return self.learner.batch_size - self.replay.unrolls(self.learner.batch_size)

    @property
    def open_files(self) -> int:
        """Estimate of the most files that this process opens: for each worker its pipes and its sentinel, and some more."""
        return 40 + (0 if self.actors.serial else 10 * self.actors.processes)

    @classmethod
    def sections(cls, algorithm: str, model: str | None) -> dict[str, type]:
        """Return the section classes by name; the loss's comes from the algorithm's module, the model's from the model's.

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
            "replay": ReplayConfig,
            "pace": PaceConfig,
            "run": RunConfig,
        }

    @classmethod
    def from_flat(cls, values: dict[str, Any], preset: dict[str, Any] | None = None) -> Config:
        """Make settings from flag values; missing ones take what others imply, then the preset's values, then their defaults.

        Raises:
            ConfigError: if a setting is wrong; the message names it.
        """
        preset = {"num_actors": ActorsConfig.num_actors} | (preset or {})
        values = preset | implied(values, preset["num_actors"]) | values
        sections = {}
        left = set(values)
        check_types(LearnerConfig, {name: values[name] for name in ("algorithm", "model") if name in values})
        for name, kind in cls.sections(values.get("algorithm", LearnerConfig.algorithm), values.get("model")).items():
            sections[name] = section(kind, values)
            left -= {f.name for f in dataclasses.fields(kind)}
        if left:
            known = [f.name for kind in sections.values() for f in dataclasses.fields(kind)]
            near = difflib.get_close_matches(min(left), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown settings: {', '.join(sorted(left))}{hint}")
        return cls(**sections)

    def flat(self) -> dict[str, Any]:
        """Return every setting by its flag's name, as values that JSON can hold."""
        return {
            f.name: getattr(part, f.name)
            for part in (getattr(self, s.name) for s in dataclasses.fields(self))
            for f in dataclasses.fields(part)
        }

    def replace(self, **values: Any) -> Config:
        """Return a copy with other values, given by flag name."""
        follows = ("batch_size",) if self.pace.in_rounds else ()  # num_actors
        return Config.from_flat({name: old for name, old in self.flat().items() if name not in follows} | values)
