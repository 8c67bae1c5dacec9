"""Videos of episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from beast.acting.agent import Agent
from beast.acting.task import Task
from beast.core.data import Array
from beast.core.errors import EnvError
from beast.core.seeds import seed_for


def record(task: Task, agent: Agent, seed: int, folder: Path) -> Path:
    """Play one episode, write it as `episode.mp4` and return the file's path.

    Args:
        task: of the run.
        agent: chooses the actions.
        seed: of the environment.
        folder: directory for the video; made if it is missing.

    Raises:
        EnvError: if the environment cannot render.
        OSError: if the file cannot be written.
    """
    import cv2

    try:
        env = task.env.make_single(render_mode="rgb_array")
    except (TypeError, gymnasium.error.Error) as error:
        raise EnvError(f"--video: {task.env.env} cannot be made with render_mode='rgb_array': {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "episode.mp4"
    writer = None
    observation, info = env.reset(seed=seed_for(seed, "video env"))
    reward, over = 0.0, False
    try:
        while not over:
            image = _picture(env, task.env.env)
            if writer is None:
                rate = 15.0 if task.env.is_atari else float(env.metadata.get("render_fps", 30))
                size = image.shape[1], image.shape[0]
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
                if not writer.isOpened():
                    raise OSError(f"OpenCV cannot write {path}")
            writer.write(image[..., ::-1])
            columns = task.unroll.extra.items()  # zero where this row's info lacks the key, as in training
            extra = {name: np.asarray(info.get(name, np.zeros(s.shape)), s.dtype)[None] for name, s in columns}
            action = agent.act(observation, reward, extra=extra)
            observation, reward, terminated, truncated, info = env.step(action)  # type: ignore[assignment]
            over = terminated or truncated
    finally:
        if writer is not None:
            writer.release()
        env.close()
    return path


def _picture(env: Any, name: str) -> Array:
    """Render the environment: `[H, W, 3]` uint8."""
    try:
        image = env.render()
        if isinstance(image, list) and image:
            image = image[-1]  # with render_mode rgb_array_list
    except gymnasium.error.Error as error:  # most likely pygame is missing
        raise EnvError(f"--video: {name} cannot render: {error}") from error
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise EnvError(f"--video: render() of {name} returned no picture [H, W, 3]")
    return (
        image if image.dtype == np.uint8 else (image * 255).clip(0, 255).astype(np.uint8)
    )  # MinAtar's floats are 0 .. 1
