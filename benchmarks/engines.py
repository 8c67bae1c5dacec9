"""Catch with an engine: `--env benchmarks.engines:CatchWithEngine`, for a fault of benchmarks.chaos."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np

from beast.envs.catch import Catch


class CatchWithEngine(Catch):
    """Catch that starts a process as emulators do, in its own session, and fails when that process has ended.

    Raises:
        RuntimeError: in `step`, when the engine has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engine = subprocess.Popen(["sleep", "1000000"], start_new_session=True)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step while the engine runs."""
        if self.engine.poll() is not None:
            raise RuntimeError(f"the engine ended with {self.engine.returncode}")
        return super().step(action)

    def close(self) -> None:
        """Kill the engine and wait for its end."""
        self.engine.kill()
        self.engine.wait()
