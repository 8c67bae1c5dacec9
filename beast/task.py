"""From flags to a task: the environment is looked at once, and what depends on its spaces is settled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import torch

from beast.config import PRESETS, Config, ConfigError
from beast.data import Nested
from beast.envs import EnvChoice
from beast.policy import ModelChoice
from beast.system import has_fast_bfloat16
from beast.unrolls import UnrollSpec


@dataclass(frozen=True)
class Task:
    """What is learned, by which model, where."""

    env: EnvChoice
    model: ModelChoice
    observation: Nested
    """Specs of one observation."""
    metric_names: tuple[str, ...]
    unroll: UnrollSpec
    """Of the unrolls that actors write."""
    device: torch.device
    dtype: torch.dtype
    """What models compute in, actors' and learner's alike."""


def settle(values: dict[str, Any]) -> tuple[Config, Task]:
    """Make an environment and reset it, choose preset and model by its spaces, and check everything that can be checked.

    Args:
        values: flags as given; the rest is default.

    Raises:
        ConfigError, EnvError, ModelError: one line each.
    """
    # Checks what was typed before anything is started; how many buffers are needed is for the preset to say.
    asked = Config.from_flat(values | {"num_buffers": None})
    choice = asked.environment.choice
    group = choice.make_group([0])
    try:
        space = group.observation_space
        preset = asked.run.preset if asked.run.preset != "auto" else _preset_for(choice, space)
        config = Config.from_flat(PRESETS[preset] | values)
        config = config.replace(preset=preset, model=config.learner.model or _model_for(space))
        model = ModelChoice(config.learner.model or "", config.learner.use_lstm, space, group.action_space)
        built = model.build()  # a model that does not fit shows here, before a run folder is made
        if not choice.is_atari:  # the emulator's threads would stay; and it keeps its contract
            group.reset()  # so does an environment that breaks its contract
        observation, names = group.observation_spec, group.metric_names
        unroll = model.unroll_spec(built, observation, names)
        device = _device(config.learner.device)
        task = Task(choice, model, observation, names, unroll, device, _dtype(config, model, device))
    finally:
        group.close()
    return config, task


def _preset_for(choice: EnvChoice, space: gymnasium.Space[Any]) -> str:
    return "atari" if choice.is_atari or _is_image(space) else "classic"


def _is_image(space: gymnasium.Space[Any]) -> bool:
    """Large enough for the convolutional networks."""
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 3:
        return False
    sides = sorted(space.shape)[1:]  # the smallest of the three is the channels
    return min(sides) >= 36


def _model_for(space: gymnasium.Space[Any]) -> str:
    return "atari_shallow" if _is_image(space) else "mlp"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def _dtype(config: Config, model: ModelChoice, device: torch.device) -> torch.dtype:
    able = getattr(model.module(), "supports_bfloat16", False)
    if config.learner.precision == "bfloat16":
        if not able:
            raise ConfigError(f"--precision bfloat16: --model {model.model} does not support it (supports_bfloat16)")
        return torch.bfloat16
    # Actors must agree with the learner on the format: MonoBeast's compute on the CPU, whatever the learner does.
    on_cpu = device.type == "cpu" or config.learner.trainer == "monobeast"
    fast = able and (not on_cpu or has_fast_bfloat16()) and (device.type == "cpu" or torch.cuda.is_bf16_supported())
    return torch.bfloat16 if config.learner.precision == "auto" and fast else torch.float32
