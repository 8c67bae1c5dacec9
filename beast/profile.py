"""Where the time goes: the real trainer for a while, then each of its parts alone, and how far the whole is from the bound.

bound = cores / (environment + inference + learner time per agent step, each measured alone on one core)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import torch

from beast import system
from beast.config import Config
from beast.data import Batch, flatten, map_nested
from beast.learner import Learner, Staged
from beast.policy import Policy
from beast.task import Task
from beast.trainer import Trainer
from beast.weights import Weights

WARM_UP = 5.0  # seconds after the first update


def measure(config: Config, task: Task, host: Callable[[Trainer], None], seconds: float) -> dict[str, Any]:
    """Figures of a run of `seconds` (after a warm-up), and of each part alone.

    Returns:
        A nested dict for JSON: times in microseconds of one core per agent step, memory in megabytes.
    """
    started = time.monotonic()
    trainer = Trainer(config.replace(disable_checkpoint=True), task, None, live=False)
    snapshots: list[dict[str, Any]] = []
    first_update: list[float] = []

    def observe() -> None:
        while not trainer.learner.updates and not trainer.failed:
            time.sleep(0.02)
        first_update.append(time.monotonic() - started)
        for wait in (WARM_UP, seconds):
            end = time.monotonic() + wait
            while time.monotonic() < end and not trainer.failed:
                time.sleep(0.05)
            snapshots.append(_snapshot(trainer))
        trainer.stop()

    observer = threading.Thread(target=observe, daemon=True)
    observer.start()
    trainer.run(host)
    observer.join()
    whole = _whole(trainer, *snapshots)
    alone = _alone(config, task, trainer)
    bound = system.usable_cores() / (sum(alone.values()) / 1e6)
    if task.device.type == "cuda":  # the device works beside the cores, not on them
        bound = min(system.usable_cores() / ((alone["environment"] + alone["inference"]) / 1e6), 1e6 / alone["learner"])
    return {
        "flags": config.flat(),
        "machine": system.machine(),
        "whole": whole | {"first_update_s": first_update[0]},
        "alone_us": alone,
        "bound_sps": bound,
        "efficiency": whole["sps"] / bound,
    }


def _snapshot(trainer: Trainer) -> dict[str, Any]:
    own = psutil.Process()
    children = [psutil.Process(pid) for pid in trainer.workers.pids()]

    def cpu(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return {
        "at": time.monotonic(),
        "steps": trainer.learner.steps,
        "updates": trainer.learner.updates,
        "stages": trainer.board.seconds(),
        "learner": dict(trainer.seconds),
        "cpu_parent": cpu(own),
        "cpu_workers": sum(cpu(child) for child in children),
        "switches": sum(sum(child.num_ctx_switches()) for child in (own, *children)),
        "pss_mb": sum(child.memory_full_info().pss for child in (own, *children)) / 1e6,
        "more": trainer.more_counts(),
        "lag": trainer.reports.lag(),
    }


def _whole(trainer: Trainer, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    steps = max(after["steps"] - before["steps"], 1)
    wall = after["at"] - before["at"]

    def per_step(key: str) -> dict[str, float]:
        return {name: (after[key][name] - before[key][name]) / steps * 1e6 for name in after[key]}

    sps = steps / wall
    return {
        "seconds": wall,
        "sps": sps,
        "fps": sps * trainer.task.env.action_repeat,
        "updates_per_s": (after["updates"] - before["updates"]) / wall,
        "worker_us": per_step("stages"),
        "learner_us": per_step("learner"),
        "cpu_workers": (after["cpu_workers"] - before["cpu_workers"]) / wall,
        "cpu_parent": (after["cpu_parent"] - before["cpu_parent"]) / wall,
        "switches_per_s": (after["switches"] - before["switches"]) / wall,
        "pss_mb": after["pss_mb"],
        "policy_lag": after["lag"],
        "inference": trainer.summarise(before["more"], after["more"]),
    }


def _alone(config: Config, task: Task, trainer: Trainer, seconds: float = 2.0) -> dict[str, float]:
    """Microseconds per agent step of each part, with the machine to itself and one compute thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    num_envs = -(-config.actors.num_actors // config.actors.processes)
    group = task.env.make_group(list(range(num_envs)))
    env = group.reset()
    policy = Policy(task.model, task.dtype, trainer.weights, num_envs)
    policy.refresh()
    noise = policy.distribution.noise(np.random.default_rng(0), num_envs)
    action, _ = policy.act(env, noise)
    environment = _time(lambda: group.step(action), seconds) / num_envs
    inference = _time(lambda: policy.act(env, noise), seconds) / num_envs
    group.close()

    staged = _dummy_batch(config, task, trainer)
    learner = trainer.learner
    weights = Weights(learner.flat.numel(), task.dtype)

    def learn() -> None:
        learner.step(staged)
        weights.publish(learner.flat, learner.updates)

    learn_time = _time(learn, 2 * seconds) / (config.learner.batch_size * config.actors.unroll_length)
    torch.set_num_threads(threads)
    return {"environment": environment, "inference": inference, "learner": learn_time}


def _dummy_batch(config: Config, task: Task, trainer: Trainer) -> Staged:
    """A batch of zeros in the store's layout: the learner's time does not depend on what is in it."""
    learner: Learner = trainer.learner
    batch_size, spec = config.learner.batch_size, trainer.store.spec
    slots = map_nested(
        lambda s: torch.from_numpy(np.zeros(s.shape, s.dtype)), spec.slots(batch_size, config.actors.unroll_length)
    )
    observation = map_nested(
        lambda s, x: x if s.stack > 1 else x.transpose(0, 1).contiguous(), spec.observation, slots["observation"]
    )
    rows = {
        name: slots[name].transpose(0, 1).contiguous()
        for name in Batch._fields
        if name not in ("observation", "core_state")
    }
    batch = Batch(observation=observation, core_state=slots["core_state"], **rows)
    assert flatten(batch.observation)
    return learner.stage(batch)


def _time(call: Callable[[], Any], seconds: float) -> float:
    """Median microseconds of a call."""
    for _ in range(3):
        call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def show(figures: dict[str, Any]) -> None:
    """Print what `measure` found."""
    whole, alone = figures["whole"], figures["alone_us"]
    print(
        f"steady for {whole['seconds']:.0f} s: {whole['sps']:,.0f} SPS = {whole['fps']:,.0f} FPS, "
        f"{whole['updates_per_s']:.1f} updates/s; first update {whole['first_update_s']:.1f} s after the start\n"
        f"policy lag {whole['policy_lag']['mean']:.1f} updates (most {whole['policy_lag']['max']:.0f}); memory "
        f"{whole['pss_mb']:,.0f} MB; {whole['switches_per_s']:,.0f} context switches/s\n"
        f"cores used: actors {whole['cpu_workers']:.2f}, learner and the rest {whole['cpu_parent']:.2f}"
    )
    print("wall time per agent step, microseconds of the process or thread that spends it:")
    for title, key in (("actors", "worker_us"), ("learner", "learner_us")):
        parts = "   ".join(f"{name} {value:.1f}" for name, value in whole[key].items())
        print(f"  {title:<8} {parts}")
    if batches := whole["inference"]:
        print(
            f"  batches  {batches['batch_size_mean']:.1f} environments (median {batches['batch_size_median']:.0f}, 99th "
            f"percentile {batches['batch_size_p99']:.0f}); a group waits {batches['wait_ms_median']:.2f} ms (median), "
            f"{batches['wait_ms_p99']:.2f} ms (99th percentile); a forward takes {batches['forward_ms']:.2f} ms"
        )
    parts = " + ".join(f"{name} {value:.1f}" for name, value in alone.items())
    print(f"alone, microseconds of one core per agent step: {parts} = {sum(alone.values()):.1f}")
    print(
        f"bound = {figures['machine']['cores']} cores / that = {figures['bound_sps']:,.0f} SPS; "
        f"efficiency = {whole['sps']:,.0f} / {figures['bound_sps']:,.0f} = {figures['efficiency']:.2f}"
    )
