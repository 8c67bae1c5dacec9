"""From flags to a Config and a Task: one look at the environment settles what depends on its spaces."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch

from beast.acting.models import ModelChoice
from beast.acting.task import Task
from beast.core.algorithms import algorithm_module
from beast.core.data import ACTION_MASK, DISCOUNTED_RETURN, ArraySpec
from beast.core.distributions import distribution_for
from beast.core.errors import ConfigError
from beast.core.statistics import has_vectors
from beast.envs import EnvChoice
from beast.envs.spaces import Codes, Words, leaves
from beast.processes.descendants import nothing_left_behind
from beast.processes.launch import launch
from beast.processes.machine import has_fast_bfloat16
from beast.run.crew import beast_module, check_pace, settle
from beast.settings.checks import section
from beast.settings.config import Config, LearnerConfig
from beast.settings.pace import PaceConfig, implied
from beast.settings.presets import PRESETS, WIDEST

LARGE = 36
"""Pixels of a picture's shorter side from which it has the networks for Atari."""


def resolve_config(values: dict[str, Any], complete: bool = False) -> tuple[Config, Task]:
    """Make and reset an environment, choose preset and model by its spaces, and check all settings.

    Args:
        values: flags as given; the others take the preset's values or their defaults.
        complete: True for the settings of an existing run: no preset applies, and a setting that is not among them was added
            to the program later and takes its default.

    Raises:
        ConfigError, EnvError, ModelError: each with a message of one line.
    """
    # Checks what was typed before anything is started; what depends on the batch size depends on the preset.
    section(PaceConfig, implied(values, None) | values)
    later = {"num_buffers": None, "replay_capacity": 0, "demonstrations": None, "pace": "free", "policy_lag": None}
    asked = Config.from_flat(WIDEST | values | later)
    with nothing_left_behind():
        return _look(asked, values, complete)


def _look(asked: Config, values: dict[str, Any], complete: bool) -> tuple[Config, Task]:
    algorithm = algorithm_module(asked.learner.algorithm)
    columns = dict(getattr(getattr(algorithm, "Algorithm", None), "info_columns", {}))
    beast = beast_module(asked.learner.trainer)
    choice = replace(asked.environment.choice, columns=columns)
    group = choice.make_vector([0])
    try:
        space = group.observation_space
        preset = asked.run.preset
        if preset == "auto":
            preset = _preset_for(choice, space, bool(distribution_for(group.action_space).log_stds.any()))
        usual = {} if complete else _usual(preset, values, space)
        chosen = {"preset": preset, "model": values.get("model") or usual.get("model") or _model_for(space)}
        config = Config.from_flat(values | chosen, usual)
        check_pace(config.learner.trainer, config.pace.pace)
        config = settle(config, values)
        learner, settings = config.learner, dataclasses.asdict(config.model)
        model = ModelChoice(
            learner.model or "", learner.use_lstm, space, group.action_space, settings, learner.normalise_observations
        )
        built = model.build(weights=False)  # a model that does not fit raises here, before a run folder is made
        if not choice.is_atari:  # the emulator's threads would stay; and it keeps its contract
            group.reset()  # an environment that breaks its contract raises here too
        if group.says_mask and ACTION_MASK not in group.columns:
            group.columns[ACTION_MASK] = ArraySpec((model.distribution().mask_size,), np.dtype(bool))
        if getattr(config.loss, "scale_rewards", False):
            group.columns[DISCOUNTED_RETURN] = ArraySpec((), np.dtype(np.float32))
            choice = replace(choice, return_discount=config.loss.discounting)
        choice = replace(choice, columns=group.columns)
        observation, names = group.observation_spec, group.metric_names
        unroll = model.unroll_spec(built, observation, names, group.columns)
        device = _device(config.learner.device)
        acting = beast.acting_device(device)
        task = Task(
            choice,
            model,
            observation,
            names,
            unroll,
            device,
            compute_dtype(config.learner.precision, model, device, acting),
            acting,
        )
    finally:
        group.close()
    return config, task


def _usual(preset: str, values: dict[str, Any], space: gymnasium.Space[Any]) -> dict[str, Any]:
    """Return a preset's settings, but for those that the algorithm, model, observations or --popart have no use for."""
    usual = PRESETS[preset]
    algorithm = values.get("algorithm") or usual.get("algorithm") or LearnerConfig.algorithm
    groups = Config.sections(algorithm, values.get("model") or usual.get("model") or _model_for(space))
    known = {field.name for group in groups.values() for field in dataclasses.fields(group)}
    if not has_vectors(space):
        known.discard("normalise_observations")
    if values.get("popart"):
        known.discard("scale_rewards")
    return {name: value for name, value in usual.items() if name in known}


def _preset_for(choice: EnvChoice, space: gymnasium.Space[Any], continuous: bool) -> str:
    """Return a suite's own preset, or the one that suits the observations and whether actions hold numbers."""
    if choice.preset is not None:
        return choice.preset
    if _model_for(space) != "mlp":
        # Of pictures and choices alone: beside numbers of any size, which need to be normalised, its RMSProp is at a loss, and
        # its bonus for entropy makes numbers in actions as wide as they may be.
        pictures = all(_sides(part) >= LARGE for _, part in leaves(space))
        return "atari" if pictures and not continuous else "small"
    if continuous:
        return "continuous"
    return "classic" if _only_whole_numbers(space) else "control"


def _only_whole_numbers(space: gymnasium.Space[Any]) -> bool:
    """Return whether a space holds arrays of whole numbers or bits alone, such as a small board, and no choice."""
    return all(isinstance(part, gymnasium.spaces.Box) and part.dtype.kind in "biu" for _, part in leaves(space))


def _model_for(space: gymnasium.Space[Any]) -> str:
    """Return the model that fits a space: convolutions for pictures, multi_input for small pictures, several parts or text."""
    if not isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        if isinstance(space, Words | Codes):
            return "multi_input"
        if _sides(space) >= LARGE:
            return "atari_shallow"
        # A small [H, W] may be any matrix; with a third axis it is a picture or planes.
        return "multi_input" if _sides(space) >= 5 and len(space.shape or ()) > 2 else "mlp"
    parts = [part for _, part in leaves(space)]
    return "mlp" if all(_model_for(part) == "mlp" and _sides(part) < 5 for part in parts) else "multi_input"


def _sides(space: gymnasium.Space[Any]) -> int:
    """Return the shorter side of a picture `[H, W]`, `[H, W, C]`, `[C, H, W]` or a stack of them; 0 for anything else."""
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) not in (2, 3, 4):
        return 0
    # The smallest axis holds the colours.
    return min(space.shape if len(space.shape) == 2 else sorted(space.shape[-3:])[1:])


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if launch().size > 1 and device.type == "cuda":
        device = _device_of_rank(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def _device_of_rank(device: torch.device) -> torch.device:
    """The GPU that is this rank's alone."""
    place, number = launch(), torch.cuda.device_count()
    if device.index is not None:
        raise ConfigError(f"--device {device}: torchrun's ranks need a GPU each; use --device cuda")
    if place.local_rank >= number:
        raise ConfigError(
            f"{place.local_size} ranks on this machine, which has {number} CUDA devices: torchrun --nproc_per_node {number}, "
            "or --device cpu"
        )
    return torch.device("cuda", place.local_rank)


def compute_dtype(precision: str, model: ModelChoice, device: torch.device, acting: torch.device) -> torch.dtype:
    """Return the dtype in which models compute, for a learner and actors on these devices.

    Raises:
        ConfigError: if the model does not support the requested precision.
    """
    able = getattr(model.module(), "supports_bfloat16", False)
    if precision == "bfloat16":
        if not able:
            raise ConfigError(f"--precision bfloat16: --model {model.model} does not support it (supports_bfloat16)")
        return torch.bfloat16
    # Actors use the learner's dtype and may compute on the CPU, wherever the learner is.
    on_cpu = "cpu" in (device.type, acting.type)
    fast = able and (not on_cpu or has_fast_bfloat16()) and (device.type == "cpu" or torch.cuda.is_bf16_supported())
    return torch.bfloat16 if precision == "auto" and fast else torch.float32
