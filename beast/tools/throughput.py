"""The profile of a run: where its time goes, what each part takes alone, and how near the run is to the upper bound.

bound = cores / (environment + inference + learner: core time per agent step, each measured alone)
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from beast.acting.policy import Policy
from beast.acting.task import Task
from beast.core.data import map_nested
from beast.core.gradients import Gradients, Staged
from beast.core.learner import Learner
from beast.processes import machine
from beast.processes.status import StatusBoard
from beast.report.timeline import Trace
from beast.run.assemble import assemble
from beast.run.folder import git_commit
from beast.run.learning import STAGES
from beast.run.trainer import Trainer, learner_threads
from beast.settings.config import Config
from beast.store.batches import BatchLayout
from beast.store.unrolls import UnrollSpec
from beast.store.weights import Weights

ROUNDS = 3  # measurements of each part alone
LEAST_UPDATES = 8  # fewest updates in the steady window
LEAST_STEPS = 1_000_000_000  # more than a profile ever makes: the clock ends it


@dataclass(frozen=True)
class Measurement:
    """What to measure, and for how long."""

    seconds: float
    """Length of the steady window, which begins and ends with an update."""
    warm_up: float
    """Seconds from the first update to the window."""
    bound: bool = True
    """Whether to measure each part alone, too."""
    trace: Path | None = None
    """File for a Chrome trace of the window; None writes none."""


def measure(config: Config, task: Task, what: Measurement) -> dict[str, Any]:
    """Measure a run in its steady window, and each part alone.

    Args:
        config: of the run.
        task: of the run.
        what: what to measure.

    Returns:
        A nested dict for JSON: times in microseconds per agent step, memory in megabytes.

    Raises:
        KeyboardInterrupt: if a signal ended the run.
    """
    started = time.perf_counter()
    total_steps = max(config.learner.total_steps, LEAST_STEPS)
    trace = Trace() if what.trace else None
    config = config.replace(disable_checkpoint=True, total_steps=total_steps)
    trainer = assemble(config, task, None, live=False, trace=trace)
    snapshots: list[dict[str, Any]] = []
    first_update = float("nan")

    def observe() -> None:
        nonlocal first_update
        while not trainer.learner.updates and not trainer.wishes.stopping:
            time.sleep(0.02)
        first_update = time.perf_counter() - started
        for seconds, updates in ((what.warm_up, 1), (what.seconds, LEAST_UPDATES)):
            if not _wait(trainer, seconds, updates):
                return
            snapshots.append(_snapshot(trainer))
        trainer.stop()

    trainer.threads.start("observer", observe)
    if trainer.run():
        raise KeyboardInterrupt
    before, after = snapshots
    whole = _whole(trainer, before, after) | {"first_update_s": first_update}
    figures: dict[str, Any] = {
        "flags": config.flat(),
        "machine": machine.describe_machine(),
        "git_commit": git_commit(),
        "device": str(task.device),
        "dtype": str(task.dtype).removeprefix("torch."),
        "learner_threads": learner_threads(config, task),
        "whole": whole,
    }
    if trace and what.trace:
        figures["trace_too_small_for"] = trace.write(what.trace, before["at"], after["at"], trainer.workers.workers)
    if what.bound:
        alone = _alone(config, task, trainer, min(0.7, what.seconds / 15))
        bound = _bound(alone, task)
        figures |= {"alone_us": alone, "bound_sps": bound, "efficiency": whole["sps"] / bound}
    return figures


def _wait(trainer: Trainer, seconds: float, updates: int) -> bool:
    """Wait for so many seconds and updates, until just after an update; return False if the run stops meanwhile."""
    end, last = time.perf_counter() + seconds, trainer.learner.updates + updates
    while time.perf_counter() < end and not trainer.wishes.stopping:
        time.sleep(0.02)
    last = max(last, trainer.learner.updates + 1)
    while trainer.learner.updates < last and not trainer.wishes.stopping:
        time.sleep(0.002)
    return not trainer.wishes.stopping


def _bound(alone: dict[str, float], task: Task) -> float:
    """Return the steps per second if nothing ever waited: all cores busy, and the GPU working beside them."""
    where = {"learner": task.device, "inference": task.acting_device}
    on_device = {name for name, device in where.items() if device.type != "cpu"}
    on_cores = sum(value for name, value in alone.items() if name not in on_device)
    bound = machine.usable_cores() * 1e6 / on_cores
    return min(bound, 1e6 / sum(alone[name] for name in on_device)) if on_device else bound


def _snapshot(trainer: Trainer) -> dict[str, Any]:
    at = time.perf_counter()
    own = psutil.Process()
    processes = [
        own,
        *own.children(recursive=True),
    ]  # the fork server too, because it shares its pages with the workers
    pss = switches = 0
    for process in processes:
        with suppress(psutil.Error):
            pss += process.memory_full_info().pss
            switches += _context_switches(process.pid)
    return {
        "at": at,
        "steps": trainer.learner.steps,
        "updates": trainer.learner.updates,
        "workers": trainer.board.seconds(),
        "clock": dict(trainer.learning.clock.seconds),
        "cpu": _cpu_seconds(trainer, own),
        "switches": switches,
        "pss_mb": pss / 1e6,
        "more": trainer.crew.counts(),
        "lag": trainer.reports.lag(),
    }


def _cpu_seconds(trainer: Trainer, own: psutil.Process) -> dict[str, float]:
    """Return core seconds since the start by role: of each worker by its name, and of this process's threads."""
    seconds: dict[str, float] = defaultdict(float)
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for thread in own.threads():
        # Threads unknown to Python are PyTorch's compute threads, which mostly serve the learner.
        role = _role(names.get(thread.id, "learner"))
        if trainer.config.actors.serial:
            role = "serial"
        elif role not in ("learner", "inference"):
            role = "rest"
        seconds[role] += thread.user_time + thread.system_time
    for worker in trainer.workers.workers:
        with suppress(psutil.Error):
            times = psutil.Process(worker.process.pid).cpu_times()
            seconds[_role(worker.name)] += times.user + times.system
    return seconds


def _role(name: str) -> str:
    """Return the role in a name: `actor process 3` is `actor`, `learner-0` is `learner`."""
    return name.rstrip("-0123456789 ").removesuffix(" process")


def _context_switches(pid: int) -> int:
    """Count the context switches of all threads of a process (psutil counts those of the first thread only)."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with suppress(OSError):  # the thread has ended meanwhile
            total += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)
    return total


def _whole(trainer: Trainer, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    steps = max(after["steps"] - before["steps"], 1)
    wall = after["at"] - before["at"]

    def spent(key: str, name: str) -> float:
        return float(after[key].get(name, 0.0) - before[key].get(name, 0.0))

    def per_step(key: str, name: str) -> float:
        return spent(key, name) * 1e6 / float(steps)

    # Workers time what actors do; this process's clock does so where actors or inference run in it.
    acting = [name for name in StatusBoard.STAGES if name != "wait"]
    sps = steps / wall
    return {
        "seconds": wall,
        "sps": sps,
        "fps": sps * trainer.task.env.action_repeat,
        "updates_per_s": (after["updates"] - before["updates"]) / wall,
        "worker_us": {name: per_step("workers", name) + per_step("clock", name) for name in acting}
        | {"wait": per_step("workers", "wait")},
        "learner_us": {name: per_step("clock", name) for name in STAGES},
        "cores_used": {role: spent("cpu", role) / wall for role in sorted(after["cpu"])},
        "cpu_us": {role: per_step("cpu", role) for role in sorted(after["cpu"])},
        "switches_per_s": (after["switches"] - before["switches"]) / wall,
        "pss_mb": after["pss_mb"],
        "policy_lag": after["lag"],
        "inference": trainer.crew.summarise(before["more"], after["more"]),
    }


def _alone(config: Config, task: Task, trainer: Trainer, seconds: float) -> dict[str, float]:
    """Return the microseconds per agent step of each part, alone on the machine and with one compute thread.

    Parts take turns of `seconds`, and the medians of several rounds count, so that a processor that changes its speed
    meanwhile affects all parts alike.
    """
    threads = torch.get_num_threads()
    machine.use_compute_threads(1)
    act, close = _acting(config, task, trainer.weights)
    gradients, learner = trainer.learning.gradients, trainer.learner
    staged = blank_batch(gradients, trainer.store.spec, config.learner.batch_size, config.actors.unroll_length)
    share = config.learner.batch_size / config.fresh_unrolls  # replayed steps cost time, and are none
    rounds = [
        act(seconds) | {"learner": time_learner(gradients, learner, staged, 2 * seconds) * share}
        for _ in range(1 + ROUNDS)
    ]
    close()
    machine.use_compute_threads(threads)
    return {
        name: statistics.median(found[name] for found in rounds[1:]) for name in rounds[0]
    }  # the first round warms up


def _acting(
    config: Config, task: Task, weights: Weights
) -> tuple[Callable[[float], dict[str, float]], Callable[[], None]]:
    """Make environments and a policy as in an actor process; return a function that times both and one that closes them."""
    on_gpu = task.acting_device.type != "cpu"
    # In PolyBeast one half of the environments waits for a forward while the other half steps.
    num_envs = -(-config.actors.num_actors // (2 if on_gpu else config.actors.processes))
    device = task.acting_device
    group = task.env.make_vector(list(range(num_envs)))
    policy = Policy(task.model, task.dtype, weights, num_envs, device)
    policy.refresh()
    generator, env = np.random.default_rng(0), group.reset()

    def act(seconds: float) -> dict[str, float]:
        nonlocal env
        now, spent, steps = _clock(device), {"environment": 0.0, "inference": 0.0}, 0
        end = time.perf_counter() + seconds
        while not steps or time.perf_counter() < end:
            noise = policy.distribution.noise(generator, num_envs)
            start = now()
            chosen = policy.act(env, noise)
            acted = now()
            env = group.step(chosen.action)
            spent["environment"] += now() - acted
            spent["inference"] += acted - start
            steps += num_envs
        return {name: value / steps * 1e6 for name, value in spent.items()}

    return act, group.close


def time_learner(gradients: Gradients, learner: Learner, staged: Staged, seconds: float) -> float:
    """Return the microseconds per agent step of repeated updates from one batch, publishing included."""
    weights = Weights.like(learner.acting)
    now, updates = _clock(gradients.device), 0
    start, end = now(), time.perf_counter() + seconds
    while not updates or time.perf_counter() < end:
        for gradient in gradients.of(staged):
            learner.apply(gradient, 0)
        weights.publish(learner.acting.parameters, learner.updates)
        updates += 1
    unroll_length, batch_size = staged.batch.action.shape[:2]
    return (now() - start) / (updates * unroll_length * batch_size) * 1e6


def blank_batch(gradients: Gradients, spec: UnrollSpec, batch_size: int, unroll_length: int) -> Staged:
    """Make a batch of zeros in the store's layout; the learner's time does not depend on the values."""
    slots = map_nested(lambda s: torch.from_numpy(np.zeros(s.shape, s.dtype)), spec.slots(batch_size, unroll_length))
    return gradients.to_device(BatchLayout(spec).gather(slots, torch.arange(batch_size)))


def _clock(device: torch.device) -> Callable[[], float]:
    """Return a clock of this process's core seconds, which other programs do not affect; for a GPU, of wall seconds."""
    if device.type != "cuda":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def show(figures: dict[str, Any]) -> None:
    """Print the figures that `measure` returned."""
    whole, cores = figures["whole"], figures["machine"]["cores"]
    print(
        f"steady for {whole['seconds']:.0f} s: {whole['sps']:,.0f} SPS = {whole['fps']:,.0f} FPS, "
        f"{whole['updates_per_s']:.1f} updates/s; first update {whole['first_update_s']:.1f} s after the start\n"
        f"policy lag {whole['policy_lag']['mean']:.1f} updates (most {whole['policy_lag']['max']:.0f}); memory "
        f"{whole['pss_mb']:,.0f} MB; {whole['switches_per_s']:,.0f} context switches/s"
    )
    if batches := whole["inference"]:
        print(
            f"batches of {batches['batch_size_mean']:.1f} environments (median {batches['batch_size_median']:.0f}, 99th "
            f"percentile {batches['batch_size_p99']:.0f}); a group waits {batches['wait_ms_median']:.2f} ms (median), "
            f"{batches['wait_ms_p99']:.2f} ms (99th percentile); a forward takes {batches['forward_ms']:.2f} ms"
        )
    used = ", ".join(f"{role} {value:.2f}" for role, value in whole["cores_used"].items())
    print(f"cores used: {used}; {sum(whole['cores_used'].values()):.2f} of {cores} in all")
    print("microseconds per agent step\n  of core time: " + _parts(whole["cpu_us"]))
    print("  of wall time: " + _parts(_stages(whole)))
    print(f"  waiting: workers {whole['worker_us']['wait']:.1f}, learner threads {whole['learner_us']['wait']:.1f}")
    if "alone_us" in figures:
        alone, bound = figures["alone_us"], figures["bound_sps"]
        print(f"  each part alone: {_parts(alone)} = {sum(alone.values()):.1f}")
        how = (
            f"{cores} cores / that" if figures["device"] == "cpu" else f"{cores} cores or the GPU, whichever is slower"
        )
        print(
            f"bound = {how} = {bound:,.0f} SPS; "
            f"efficiency = {whole['sps']:,.0f} / {bound:,.0f} = {figures['efficiency']:.2f}"
        )
    for name in figures.get("trace_too_small_for", ()):
        print(f"the trace holds only the end of what {name} did: take fewer --seconds")


def _stages(whole: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each stage of an agent step, in order, without waiting and without stages that took none."""
    stages = (stage for key in ("worker_us", "learner_us") for stage in whole[key].items())
    return {name: value for name, value in stages if value and name != "wait"}


def _parts(values: dict[str, float]) -> str:
    return "   ".join(f"{name} {value:.1f}" for name, value in values.items())
