"""One of 16 environments raises at its step 120, again and again: `python -m benchmarks.raises [--tries 200] [--trainer NAME]`.

Each try is a run of its own, with processes and batch drawn by a seed, that must go on to its last step and never be without a
new one for `--bound` seconds. `--lives N` has one run instead in which in each life of each process one
environment raises at its step 120, N times in all, and no training step for `--bound` seconds is the failure.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = 16
AT = 120  # the step of its life
MODULE = f"""
import os
from beast.envs.catch import Catch

made = 0  # in this process

class Raises(Catch):
    def __init__(self):
        global made
        super().__init__()
        self.steps = 0
        with open(os.environ["COUNTS"], "ab") as file:  # which one this is of all that were ever made
            file.write(b".")
            file.flush()
            number = os.fstat(file.fileno()).st_size
        which, each = int(os.environ["WHICH"]), os.environ["IN_EACH_LIFE"] == "1"
        self.broken = made == 0 if each else number == which
        made += 1

    def step(self, action):
        self.steps += 1
        if self.broken and self.steps == {AT}:
            raise RuntimeError("as it was told to")
        return super().step(action)
"""


def draw(chance: random.Random, trainer: str) -> list[str]:
    """Draw the flags of one try at random."""
    batch = chance.choice([4, 8, 16])
    flags = ["--trainer", trainer, "--num_actors", ENVIRONMENTS, "--num_actor_processes", chance.choice([1, 2, 4, 16])]
    flags += ["--batch_size", batch, "--unroll_length", chance.choice([10, 50, 80]), "--seed", chance.randrange(1000)]
    if trainer == "polybeast" and chance.random() < 0.4:
        flags += ["--inference", "process"]
    if chance.random() < 0.4:
        flags += ["--use_lstm"]
    return list(map(str, flags))


def start(flags: list[str], folder: Path, which: int, in_each_life: bool) -> psutil.Popen:
    """Start run.py in this folder, with its output in files there."""
    (folder / "raises_env.py").write_text(MODULE)
    env = {**os.environ, "COUNTS": str(folder / "counts"), "WHICH": str(which), "IN_EACH_LIFE": str(int(in_each_life))}
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "--env",
        "raises_env:Raises",
        "--savedir",
        ".",
        "--xpid",
        "r",
        *flags,
    ]
    with open(folder / "out.txt", "w") as out:
        return psutil.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)


def one_try(seed: int, trainer: str, bound: float) -> dict[str, Any]:
    """Run to the end and return the figures; `hung` says where the output stopped, or is None."""
    chance = random.Random(seed)
    flags = draw(chance, trainer)
    which = 2 + chance.randrange(ENVIRONMENTS)  # the first one is the parent's, which only looks at it
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        total = 3 * AT * ENVIRONMENTS
        process = start([*flags, "--total_steps", str(total), "--report_every", "1"], folder, which, False)
        hung, worst = None, 0.0
        changed, step = time.monotonic(), ""
        while process.poll() is None:
            time.sleep(0.05)
            now, told = time.monotonic(), (folder / "out.txt").read_text()
            if (new := told.rpartition("\nstep ")[2].partition(" ")[0]) != step:
                step, changed = new, now
            worst = max(worst, now - changed)
            if now - changed > bound and hung is None:
                hung = told[-2000:]
                process.send_signal(signal.SIGINT)
                process.wait(60)
        told = (folder / "out.txt").read_text()
        raised = told.count("; restarting it (")  # 0: on a busy machine the others may have made all steps before
        ok = hung is None and process.returncode == 0 and raised <= 1
        return {"seed": seed, "flags": flags, "ok": ok, "raised": raised, "seconds_without_steps": worst,
                "code": process.returncode, "hung": hung, "told": None if ok else told[-3000:]}  # fmt: skip


def many_lives(seed: int, trainer: str, bound: float, lives: int) -> dict[str, Any]:
    """Run once, with an environment that breaks in each life; return the longest time without a step."""
    flags = [*draw(random.Random(seed), trainer), "--total_steps", str(10**10), "--report_every", "0.5"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start([*flags, "--max_restarts", str(10**6)], folder, 5, True)
        log = folder / "r" / "logs.csv"
        changed, worst, told = time.monotonic(), 0.0, 0
        step = ""
        while process.poll() is None and told < lives:
            time.sleep(0.25)
            now = time.monotonic()
            rows = list(csv.DictReader(log.read_text().splitlines())) if log.exists() else []
            new = rows[-1]["step"] if rows else ""
            if new != step:
                step, changed = new, now
            worst = max(worst, now - changed)
            if now - changed > bound:
                break
            told = (folder / "out.txt").read_text().count("; restarting it (")
        alive = process.poll() is None
        hung = alive and told < lives
        process.send_signal(signal.SIGINT)
        code = process.wait(120)
        last_words = (folder / "out.txt").read_text()[-2000:]
        ok = alive and not hung and code == 130
        return {"seed": seed, "flags": flags, "ok": ok, "lives": told, "worst_seconds": worst, "code": code,
                "told": None if ok else last_words}  # fmt: skip


def main() -> None:
    """Try, and print a line for each try and the sum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--trainer", default="monobeast")
    parser.add_argument("--seed", type=int, default=1, help="of the first try")
    parser.add_argument("--bound", type=float, default=60.0, help="seconds")
    parser.add_argument("--lives", type=int, default=0)
    values = parser.parse_args()
    if values.lives:
        print(json.dumps(many_lives(values.seed, values.trainer, values.bound, values.lives), indent=2))
        return
    results = []
    for seed in range(values.seed, values.seed + values.tries):
        results.append(one_try(seed, values.trainer, values.bound))
        print(json.dumps({key: value for key, value in results[-1].items() if value is not None}), flush=True)
    good = [result for result in results if result["ok"]]
    worst = max((result["seconds_without_steps"] for result in good), default=float("nan"))
    raised = sum(result["raised"] for result in good)
    print(
        f"{len(good)} of {len(results)} went on to the end, {raised} after a failure; without a step for {worst:.1f} s at most"
    )


if __name__ == "__main__":
    main()
