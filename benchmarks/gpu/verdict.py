"""What the figures mean: what bounds what, and what to change first. Pure functions of what the parts have found.

A *ceiling* is how many steps a second there would be if one thing alone limited them. The lowest ceiling of a run is its
bound; without it the next one would hold, and the ratio of the two is what a cure is worth at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import permutations
from typing import Any, NamedTuple

Figures = dict[str, Any]

BUSY = 0.6  # of its time: what is less busy than that bounds nothing
SHARE = 0.3  # of an update: publishing counts as its bound from there
WORTH = 1.05  # times as fast: less is noise
FULL_BATCH = 0.5  # of the environments that could wait at a time; below it a forward serves few

CURES = {
    "emulator": "nothing but the emulator: more cores, or less core time a step; all else can wait",
    "actors' forwards": "let the GPU run them: --trainer polybeast",
    "cores": "core time: the roles are named above, the largest first",
    "inference batches": "larger batches for inference: --weights_sync step, fewer versions of the weights at a time",
    "inference": "cheaper forwards: fewer launches, a CUDA graph",
    "staging": "copies: gather straight into page-locked memory, send fewer bytes, another learner thread",
    "learner launches": "fewer launches: compile forward and loss as one, one optimiser kernel, a CUDA graph of the step",
    "learner waits": "no waiting for the device within an update, at the lines named",
    "learner publishing": "publish beside the next update: copy on a stream of its own, announce from another thread",
    "learner compute": "less computing: another layout, max-autotune, a larger batch",
    "waiting": "more actors or processes: nothing is busy, everybody waits for somebody",
}
"""From a bound to what would lift it."""

DEFAULTS = {"trainer": "monobeast", "num_actors": 48, "batch_size": 32}
"""Of the flags that every run names, those of the preset `paper`, with which the runs were planned: in a run's name only what
differs is told."""


WHOLE, ALONE = "whole run", "learner alone"


class Ceiling(NamedTuple):
    """What one thing alone would allow."""

    name: str
    sps: float
    why: str


class Row(NamedTuple):
    """What something came to."""

    what: str
    sps: float
    bound: str
    why: str


class Change(NamedTuple):
    """Something to do."""

    gain: float
    """times as fast"""
    of: str
    """the whole run, or the learner alone, which shows in a run once that is bound by it"""
    text: str


class Verdict(NamedTuple):
    """What is printed."""

    rows: list[Row]
    changes: list[Change]


def verdict(parts: dict[str, Any]) -> Verdict:
    """What bounds what, and what to change: the whole run first, the most worth first.

    Args:
        parts: from a part's name to what is known of it, `points` above all.
    """
    points = {name: part.get("points", {}) for name, part in parts.items()}
    cores = points.get("machine", {}).get("machine", {}).get("cores") or 1
    alone = [p for name in ("learner", "compile") for p in points.get(name, {}).values() if "update_ms" in p]
    whole = [p for name in ("runs", "resnet", "compile") for p in points.get(name, {}).values() if "whole" in p]
    rows = [*_emulator(points.get("emulator", {})), *map(_update_row, alone)]
    changes = [*_settings(whole), *_compiling(alone), *_updates(alone)]
    for run in whole:
        first = bound(run, alone, cores)[0]
        rows.append(Row(title(run["flags"]), run["whole"]["sps"], first.name, first.why))
    for run in _fastest_of_each_model(whole):
        changes += worth(run, bound(run, alone, cores))
    return Verdict(rows, sorted(changes, key=lambda change: (change.of != WHOLE, -change.gain)))


def title(flags: Figures) -> str:
    """A setting in words."""
    words = [flags.get("model", ""), "with an LSTM" if flags.get("use_lstm") else ""]
    words += ["compiled" if flags.get("compile_model") else ""]
    if "num_actors" in flags:
        words += [flags.get("trainer", ""), f"{flags['num_actors']} actors"]
    words += [f"batch {flags['batch_size']}"]
    named = {
        "inference": "inference in a {}",
        "weights_sync": "weights_sync {}",
        "num_actor_processes": "processes: {}",
    }
    words += [text.format(flags[name]) for name, text in named.items() if name in flags]
    return ", ".join(filter(None, words))


# -- the learner alone ------------------------------------------------------------------------------------------------


def kind_of(point: Figures) -> str:
    """What an update's time is spent on: the bound's name."""
    update, published, device = point["update_ms"], point["published_ms"], point["device_ms"]
    if published - update >= SHARE * published:
        return "learner publishing"
    if device is None or device >= (1 - SHARE) * update:
        return "learner compute"
    return "learner waits" if point["hidden_waits"] or sum(point["host_waits"].values()) else "learner launches"


def without(point: Figures) -> float:
    """Milliseconds of an update and its publication if what bounds it were gone; computing stays as it is."""
    update, published, device = point["update_ms"], point["published_ms"], point["device_ms"]
    kind = kind_of(point)
    if kind == "learner publishing":
        return float(update)
    return float(published if kind == "learner compute" else published - update + device)


def _update_row(point: Figures) -> Row:
    kind = kind_of(point).removeprefix("learner ")
    return Row(f"learner alone, {title(point['flags'])}", point["sps"], kind, _update(point))


def _update(point: Figures) -> str:
    """An update's figures in words; of a GPU only where there is one."""
    words = [f"{point['update_ms']:.2f} ms an update"]
    if point["device_ms"] is not None:
        words += [
            f"the device works {point['device_ms']:.2f} of them",
            f"the host needs {point['host_ms']:.2f} for {point['launches']:.0f} launches",
            f"{point['copy_ms']:.2f} to copy {point['copy_mb']:.0f} MB",
        ]
    words += [f"{point['published_ms']:.2f} with publishing"]
    words += [f"waits at {place}" for place in point["hidden_waits"]]
    return ", ".join(words)


def _updates(alone: list[Figures]) -> Iterator[Change]:
    """For each model and bound the update that would gain most."""
    best: dict[tuple[Any, str], Change] = {}
    for point in alone:
        key, gain = (point["flags"].get("model"), kind_of(point)), point["published_ms"] / without(point)
        if gain >= WORTH and (key not in best or gain > best[key].gain):
            best[key] = Change(gain, ALONE, f"{CURES[key[1]]} ({title(point['flags'])}; at most)")
    yield from best.values()


def _compiling(alone: list[Figures]) -> Iterator[Change]:
    """Compiled updates against those that are not."""
    plain = {_key(point["flags"]): point for point in alone if not point["flags"].get("compile_model")}
    for point in alone:
        other = plain.get(_key(point["flags"]))
        if point["flags"].get("compile_model") and other and other["published_ms"] >= WORTH * point["published_ms"]:
            text = f"--compile_model ({title(other['flags'])}; measured; {point['first_ms'] / 1e3:.0f} s to compile)"
            yield Change(other["published_ms"] / point["published_ms"], ALONE, text)


def _key(flags: Figures) -> tuple[Any, ...]:
    """What an update's time depends on."""
    return flags["env"], flags.get("model"), flags.get("use_lstm", False), flags["batch_size"]


# -- whole runs -------------------------------------------------------------------------------------------------------


def ceilings(run: Figures, cores: int) -> list[Ceiling]:
    """What each part of a run would allow by itself, the lowest first, from the times of that very run."""
    flags, whole = run["flags"], run["whole"]
    acting, learning, used = whole["worker_us"], whole["learner_us"], whole["cpu_us"]
    poly = flags["trainer"] == "polybeast"
    hosts = min(flags.get("num_actor_processes", cores), flags["num_actors"])
    stepping = acting["environment"] + acting["store"]
    worker = stepping if poly else stepping + acting["inference"]
    actors = "emulator" if poly or stepping >= acting["inference"] else "actors' forwards"
    roles = sorted(used, key=lambda role: -used[role])
    mostly_actors = roles[0] in ("actor", "env worker") and used[roles[0]] >= BUSY * sum(used.values())
    shares = ", ".join(f"{role} {used[role]:.0f}" for role in roles)
    lock, beside = learning["learn"] + learning["publish"], learning["batch"] + learning["copy"]
    threads = run["learner_threads"]
    found = [
        Ceiling(actors, _per_second(hosts, worker), f"{worker:.0f} us a step of each of {hosts} actor processes"),
        Ceiling(
            actors if mostly_actors else "cores",
            _per_second(cores, sum(used.values())),
            f"us of core time a step, of {cores} cores: {shares}",
        ),
        Ceiling("learner", _per_second(1, lock), f"{lock:.1f} us a step under its lock"),
        Ceiling(
            "staging" if beside > lock else "learner",
            _per_second(threads, lock + beside),
            f"{lock + beside:.1f} us a step of each of {threads} learner threads",
        ),
    ]
    if poly and (batches := whole["inference"]):
        # Of two groups that a worker has beside a GPU, one steps while the other waits.
        waiting = flags["num_actors"] / 2 if run["device"] != "cpu" else flags["num_actors"] / hosts
        name = "inference" if batches["batch_size_mean"] >= FULL_BATCH * waiting else "inference batches"
        why = (
            f"a forward of {batches['forward_ms']:.2f} ms serves {batches['batch_size_mean']:.1f} of the {waiting:.0f} "
            f"environments that could wait"
        )
        found.append(Ceiling(name, _per_second(1, acting["inference"]), why))
    return sorted(found, key=lambda ceiling: ceiling.sps)


def _per_second(hands: int, microseconds: float) -> float:
    return hands * 1e6 / max(microseconds, 1e-3)


def bound(run: Figures, alone: list[Figures], cores: int) -> list[Ceiling]:
    """The ceilings of a run with its bound in front: the learner's by what its update alone is spent on."""
    found = [_in_detail(ceiling, run, alone) for ceiling in ceilings(run, cores)]
    busy = run["whole"]["sps"] / found[0].sps
    if busy >= BUSY:
        return [found[0]._replace(why=f"busy {100 * min(busy, 1):.0f} %: {found[0].why}"), *found[1:]]
    why = f"nothing is busy for more than {100 * busy:.0f} % of the time, {found[0].name} the most"
    return [Ceiling("waiting", run["whole"]["sps"], why), *found]


def _in_detail(ceiling: Ceiling, run: Figures, alone: list[Figures]) -> Ceiling:
    if ceiling.name != "learner":
        return ceiling
    point = _alone_of(run, alone)
    return ceiling._replace(name=kind_of(point) if point else "learner compute")


def _alone_of(run: Figures, alone: list[Figures]) -> Figures | None:
    """The learner alone with a run's model and batch size."""
    wanted = _key(run["flags"])
    compiled = run["flags"].get("compile_model", False)
    same = (p for p in alone if _key(p["flags"]) == wanted and p["flags"].get("compile_model", False) == compiled)
    return next(same, None)


def worth(run: Figures, found: list[Ceiling]) -> Iterator[Change]:
    """What a run would gain without its bound, and without what is as low; nothing if that is all there is."""
    lowest = [ceiling.name for ceiling in found if ceiling.sps < WORTH * found[0].sps]
    following = [ceiling for ceiling in found if ceiling.name not in lowest]
    if following:
        cures = "; and ".join(CURES[name] for name in dict.fromkeys(lowest))
        text = f"{cures} ({title(run['flags'])}; at most, then {following[0].name} holds)"
        yield Change(following[0].sps / found[0].sps, WHOLE, text)


def _settings(whole: list[Figures]) -> Iterator[Change]:
    """For each flag away from its default, all others equal: the fastest run that it leads to."""
    best: dict[tuple[str, Any], tuple[float, Change]] = {}
    for before, after in permutations(whole, 2):
        names = {*before["flags"], *after["flags"]} - {"model", "env"}
        changed = [name for name in names if before["flags"].get(name) != after["flags"].get(name)]
        sps, gain = after["whole"]["sps"], after["whole"]["sps"] / before["whole"]["sps"]
        if len(changed) != 1 or gain < WORTH or before["flags"].get("model") != after["flags"].get("model"):
            continue
        (name,) = changed
        if before["flags"].get(name) != DEFAULTS.get(name):
            continue
        learns = "; it changes learning too" if name in ("num_actors", "batch_size") else ""
        key = name, after["flags"][name]
        if key not in best or best[key][0] < sps:
            text = f"--{name} {key[1]} ({title(before['flags'])}; measured{learns})"
            best[key] = sps, Change(gain, WHOLE, text)
    yield from (change for _, change in best.values())


def _fastest_of_each_model(whole: Iterable[Figures]) -> list[Figures]:
    fastest: dict[Any, Figures] = {}
    for run in whole:
        model = run["flags"].get("model")
        if model not in fastest or run["whole"]["sps"] > fastest[model]["whole"]["sps"]:
            fastest[model] = run
    return list(fastest.values())


# -- a line for each point --------------------------------------------------------------------------------------------


def _emulator(points: dict[str, Figures]) -> Iterator[Row]:
    one, every = points.get("one core"), points.get("all cores")
    if one and every:
        why = f"{every['sps'] / one['sps']:.1f} times one core's {one['sps']:,.0f}: no run can be faster"
        yield Row(f"emulator alone, {every['processes']} cores at once", every["sps"], "emulator", why)


def headline(figures: Figures) -> str:
    """The few numbers of a point that are printed as soon as it is measured."""
    if "whole" in figures:
        whole, batches = figures["whole"], figures["whole"]["inference"]
        served = f", {batches['batch_size_mean']:.1f} environments a forward" if batches else ""
        gpu = f", GPU busy {figures['gpu']['busy_percent']['median']:.0f} %" if figures["gpu"] else ""
        return f"{whole['sps']:,.0f} steps/s, first update after {whole['first_update_s']:.1f} s{served}{gpu}"
    if "update_ms" in figures:
        return f"{figures['sps']:,.0f} steps/s, {_update(figures)}"
    if "outcome" in figures:
        return f"{figures['outcome']} in {figures['seconds']:.1f} s" + (f": {figures['why']}" if figures["why"] else "")
    if "curve" in figures:
        return _race(figures)
    if "threads_per_core" in figures:
        return _machine(figures)
    return ", ".join(f"{key} {value:,.4g}" for key, value in figures.items() if isinstance(value, (int, float)))


def _machine(figures: Figures) -> str:
    words = [
        figures["cpu"],
        f"{figures['cores']} cores (threads per core: {figures['threads_per_core'] or 'unknown'})",
        f"torch {figures['torch']}",
        figures["gpu"] or "no GPU",
    ]
    if figures["gpu"]:
        driver = figures["nvidia_smi"].get("driver_version", "unknown")
        words += [f"cuDNN {figures['cudnn']}", f"driver {driver}"]
    return ", ".join(words)


def _race(figures: Figures) -> str:
    last = figures["at_end"] or {}
    ended = "" if figures["ended_cleanly"] else "; it had to be killed"
    if found := figures["reached"]:
        return f"return {figures['level']:g} after {found['seconds']:.0f} s and {found['steps']:,.0f} steps{ended}"
    known = f"{last['return']:.2f}" if "return" in last else "unknown"
    steps = last.get("steps", 0)
    return f"return {known} when it was cut after {figures['trained_s']:.0f} s and {steps:,.0f} steps{ended}"
