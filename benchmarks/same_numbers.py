"""Whether a change changes learned numbers: `python -m benchmarks.same_numbers --against COMMIT`.

The other commit is checked out beside this tree. Both run the same serial cases on this machine, a few updates each, and
every number of the weights, the optimiser's moments and the counts in their last checkpoints is compared bit for bit. There is
no stored checksum to compare with: processors and versions of PyTorch round differently, so both sides are run here and now.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
SERIAL = {"num_actor_processes": 0, "device": "cpu", "seed": 7, "report_every": 1000}
PONG = {"env": "PongNoFrameskip-v4", "num_actors": 4, "batch_size": 4, "unroll_length": 5, "total_steps": 60}


@dataclass(frozen=True)
class Case:
    """One run, or a run and its resumption: flags of each part, in order."""

    name: str
    parts: tuple[dict[str, Any], ...]


CASES = (
    Case("atari_shallow, float32", ({**PONG, "precision": "float32"},)),
    Case("atari_shallow, bfloat16, PolyBeast", ({**PONG, "precision": "bfloat16", "trainer": "polybeast"},)),
    Case("atari_shallow with LSTM", ({**PONG, "use_lstm": True},)),
    Case(
        "impala_shallow, soft_asymmetric rewards",
        ({**PONG, "model": "impala_shallow", "reward_clipping": "soft_asymmetric"},),
    ),
    Case("impala_resnet", ({**PONG, "model": "impala_resnet", "num_actors": 2, "batch_size": 2, "total_steps": 30},)),
    Case("CartPole, preset classic", ({"env": "CartPole-v1", "preset": "classic", "total_steps": 800},)),
    Case(
        "CartPole with LSTM, PolyBeast",
        ({"env": "CartPole-v1", "preset": "classic", "use_lstm": True, "trainer": "polybeast", "total_steps": 800},),
    ),
    Case(
        "continuous actions",
        ({"env": "Pendulum-v1", "preset": "classic", "num_actors": 4, "batch_size": 4, "total_steps": 400},),
    ),
    Case(
        "TensorFlow's RMSProp with momentum",
        (
            {
                "env": "Catch-v0",
                "rmsprop_form": "tf",
                "momentum": 0.9,
                "num_actors": 8,
                "batch_size": 8,
                "total_steps": 800,
            },
        ),
    ),
    Case(
        "PyTorch's RMSProp with momentum, clipped",
        (
            {
                "env": "Catch-v0",
                "momentum": 0.5,
                "grad_norm_clipping": 0.1,
                "num_actors": 8,
                "batch_size": 8,
                "total_steps": 800,
            },
        ),
    ),
    Case(
        "a batch skipped for NaN",
        (
            {
                "env": "numbers_environment:make_env",
                "preset": "classic",
                "num_actors": 4,
                "batch_size": 4,
                "total_steps": 480,
            },
        ),
    ),
    Case(
        "Dict observations, weights at every step",
        (
            {
                "env": "examples.custom_environment:make_env",
                "preset": "classic",
                "trainer": "polybeast",
                "weights_sync": "step",
                "num_actors": 4,
                "batch_size": 4,
                "total_steps": 400,
            },
        ),
    ),
    Case(
        "stopped and resumed",
        (
            {"env": "Catch-v0", "num_actors": 6, "batch_size": 4, "use_lstm": True, "total_steps": 400, "xpid": "run"},
            {"resume": "run", "total_steps": 880},
        ),
    ),
)
"""The cases; each makes three to six updates."""

# What both sides see as a user's own module: one environment of four says NaN once.
ENVIRONMENT = """
import gymnasium, numpy as np

class Odd(gymnasium.Env):
    made = 0
    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        Odd.made += 1
        self.number = Odd.made

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.random(3).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        spoilt = self.number % 5 == 2 and self.steps == 30
        reward = float("nan") if spoilt else float(action)
        return self.np_random.random(3).astype(np.float32), reward, self.steps == 50, False, {}

def make_env():
    return Odd()
"""

# Runs in a checkout's own process, with nothing but the command line between it and the code.
DRIVER = """
import contextlib, io, json, os, sys, traceback
checkout, cases = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, checkout)
import torch
import run
torch.set_num_threads(1)
for index, parts in enumerate(cases):
    os.makedirs(f"case{index}")
    for part in parts:
        arguments = []
        for name, value in part.items():
            arguments += ["--" + name, json.dumps(value) if isinstance(value, bool) else str(value)]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = run.main([*arguments, "--savedir", f"case{index}"])
            except BaseException:
                code = traceback.format_exc()
        if code:
            open(f"case{index}/failed", "w").write(f"{code}\\n{said.getvalue()}")
            break
"""  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Compare, and print one line for each case; return 1 if any number differs.

    Args:
        arguments: of the command line; None takes this process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_numbers", description=__doc__)
    parser.add_argument("--against", required=True, metavar="COMMIT", help="the commit to compare this tree with")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="WORD", help="cases whose name holds one of these words"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="largest relative difference allowed [0]"
    )
    values = parser.parse_args(arguments)
    cases = [case for case in CASES if not values.only or any(word in case.name for word in values.only)]
    if not cases:
        parser.error(f"no case matches {values.only}; there are: {'; '.join(case.name for case in CASES)}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, checked_out(values.against, Path(scratch) / "other") as other:
        folders = [Path(scratch) / name for name in ("theirs", "ours")]
        processes = [_start(checkout, folder, cases) for checkout, folder in zip((other, ROOT), folders, strict=True)]
        for process in processes:
            process.wait()
        differing = 0
        for index, case in enumerate(cases):
            found = _compare(*(folder / f"case{index}" for folder in folders), values.tolerance)
            differing += bool(found)
            print(f"{'DIFFERS' if found else 'same   '}  {case.name}{': ' + found if found else ''}")
    print(
        f"{len(cases) - differing} of {len(cases)} cases are the same as at {values.against} ({time.monotonic() - began:.0f} s)"
    )
    return 1 if differing else 0


@contextlib.contextmanager
def checked_out(commit: str, folder: Path) -> Any:
    """Check a commit's files out into a folder that git does not track."""
    archive = subprocess.run(["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        raise SystemExit(
            f"same_numbers: error: no commit {commit!r} here: {archive.stderr.decode().strip().splitlines()[0]}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    yield folder


def _start(checkout: Path, folder: Path, cases: list[Case]) -> subprocess.Popen[bytes]:
    folder.mkdir()
    (folder / "numbers_environment.py").write_text(textwrap.dedent(ENVIRONMENT))
    parts = [[SERIAL | part if "resume" not in part else part for part in case.parts] for case in cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder / "state")}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(checkout), json.dumps(parts)], cwd=folder, env=environment, stdin=subprocess.DEVNULL
    )  # fmt: skip


def _compare(theirs: Path, ours: Path, tolerance: float) -> str:
    """Return what differs, in a few words, or an empty text if all is the same."""
    for folder in (theirs, ours):
        if (folder / "failed").exists():
            return f"{folder.parent.name} failed: {(folder / 'failed').read_text().strip().splitlines()[-1][:200]}"
    left, right = (_numbers(folder) for folder in (theirs, ours))
    if left.keys() != right.keys():
        return f"only one side has {', '.join(sorted(left.keys() ^ right.keys())[:5])}"
    found = []
    for name, value in left.items():
        other = right[name]
        if value.shape != other.shape:
            found.append(f"{name} has shapes {tuple(value.shape)} and {tuple(other.shape)}")
        elif not torch.equal(value, other):
            worst = ((value.double() - other.double()).abs() / value.double().abs().clamp(min=1e-12)).max().item()
            if not worst <= tolerance:
                found.append(f"{name} by {worst:.1e}")
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _numbers(folder: Path) -> dict[str, torch.Tensor]:
    """Return weights, steps and updates of the newest checkpoint under a folder."""
    (newest,) = {link.resolve() for link in folder.glob("*/checkpoints/latest.pt")}  # `latest` is a link to the run
    state = torch.load(newest, map_location="cpu", weights_only=True)["learner"]
    counts = {name: torch.tensor(state[name]) for name in ("steps", "updates")}
    moments = [x for x in _tensors(state["optimiser"]) if x.numel() > 1]
    return {**state["model"], **counts, **{f"moment {i}": moment for i, moment in enumerate(moments)}}


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


if __name__ == "__main__":
    sys.exit(main())
