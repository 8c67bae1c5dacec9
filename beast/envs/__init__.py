"""Environments by name: Atari ids, any Gymnasium id, or a function of the user's own (`my_pkg.my_module:make_env`)."""

from beast.envs.base import VectorEnvs
from beast.envs.choice import EnvChoice
from beast.envs.families import code_named_by
from beast.envs.wrappers import Standard

__all__ = ["EnvChoice", "Standard", "VectorEnvs", "code_named_by"]
