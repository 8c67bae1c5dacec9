"""Steps a second of the whole program: by model, trainer, number of actors and device. `run.py profile` measures each."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from beast.settings.flags import to_arguments
from beast.tools.autotune import profile_of
from benchmarks.plots import bars, panels, save

MODELS = ("atari_shallow", "impala_shallow", "impala_resnet")
TRAINERS = ("monobeast", "polybeast")
ACTORS = (1, 2, 4, 8, 16, 48)
TIMEOUT = 300.0  # seconds for a point, beside what it measures
SETTLED = {"impala_resnet": 30.0}  # seconds after which a learner that limits the speed has its second compute thread


def settings() -> list[dict[str, Any]]:
    """Return the flags of every point, each once."""
    devices = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    varied: list[dict[str, Any]] = []
    for trainer in TRAINERS:
        varied += [{"trainer": trainer, "model": model, "use_lstm": lstm} for lstm in (False, True) for model in MODELS]
        varied += [{"trainer": trainer, "num_actors": actors} for actors in ACTORS]
        varied += [{"trainer": trainer, "model": model, "device": device} for device in devices for model in MODELS]
    base = {"env": "PongNoFrameskip-v4", "trainer": "monobeast", "model": MODELS[0], "use_lstm": False,
            "num_actors": 48, "batch_size": 32, "device": devices[0]}  # fmt: skip
    return list({name_of(base | values): base | values for values in varied}.values())


def name_of(flags: dict[str, Any]) -> str:
    """Return the name of a run with these flags in figures."""
    lstm = " lstm" if flags["use_lstm"] else ""
    return f"{flags['model']}{lstm} {flags['trainer']} {flags['num_actors']} actors {flags['device']}"


def measure(flags: dict[str, Any], seconds: float, *own: str) -> dict[str, Any]:
    """Return what `run.py profile` finds, and the command that finds it again."""
    own = ("--seconds", f"{seconds:g}", *own)
    figures = profile_of(flags, *own, timeout=TIMEOUT + seconds)
    del figures["machine"], figures["git_commit"]
    return {"command": shlex.join(["python", "run.py", "profile", *to_arguments(flags), *own])} | figures


def points(seconds: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what to measure, by name."""
    return {
        name_of(flags): partial(measure, flags, seconds, "--warm_up", f"{SETTLED.get(flags['model'], 5.0):g}")
        for flags in settings()
    }


def draw(figures: dict[str, dict[str, Any]], file: Path) -> None:
    """Draw three panels: models, actors, and devices where there are two."""
    found = [(point["flags"], point["whole"]["sps"]) for point in figures.values()]
    device = found[0][0]["device"]

    def sps(**wanted: Any) -> dict[Any, float]:
        """By model, of the points with these flags and otherwise those of most points."""
        wanted = {"num_actors": 48, "device": device, "use_lstm": False} | wanted
        return {flags["model"]: value for flags, value in found if wanted.items() <= flags.items()}

    both = {flags["device"] for flags, _ in found} == {"cpu", "cuda"}
    figure, axes = panels(3 if both else 2, "Pong, 32 x 20 steps an update, every step learned from once")
    series = {
        f"{trainer}{', LSTM' if lstm else ''}": sps(trainer=trainer, use_lstm=lstm)
        for trainer in TRAINERS
        for lstm in (False, True)
    }
    bars(axes[0], MODELS, series, "agent steps a second")
    for trainer in TRAINERS:
        by_actors = {n: sps(trainer=trainer, num_actors=n).get(MODELS[0]) for n in ACTORS}
        known = {n: value for n, value in by_actors.items() if value is not None}
        axes[1].plot(list(known), list(known.values()), marker="o", label=trainer)
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(ACTORS, [str(n) for n in ACTORS])
    axes[1].set(xlabel="actors", ylabel=f"agent steps a second, {MODELS[0]}", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize=8)
    if both:
        pairs = {f"{trainer}, {on}": sps(trainer=trainer, device=on) for trainer in TRAINERS for on in ("cpu", "cuda")}
        bars(axes[2], MODELS, pairs, "agent steps a second")
    save(figure, file)
