"""benchmarks.gpu, small as it is on a CPU: it keeps to its minutes, goes on after kills, leaves nothing, concludes rightly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import ROOT, Program, pytest_configure, wait_until, wants_gpu

from beast.processes.machine import usable_cores
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import alone, nvidia, packages, parts
from benchmarks.gpu.conductor import GRACE, InUse, Results, conduct, limit, order
from benchmarks.gpu.parts import PARTS, Part, first_at, read_curve
from benchmarks.gpu.verdict import ALONE, CURES, WHOLE, Verdict, bound, ceilings, headline, verdict

NAMES = [part.name for part in PARTS]


class Command(Program):
    """`python -m benchmarks.gpu`, which writes to `out` in its folder."""

    command = ("-m", "benchmarks.gpu")

    def __init__(self, folder: Path, *arguments: object) -> None:
        env = {"TMPDIR": tempfile.gettempdir()}  # torch.compile keeps there what it has compiled
        super().__init__(("--out", folder / "out", *arguments), folder, env, cwd=ROOT)
        self.file = folder / "out" / "gpu.json"

    def found(self) -> dict:
        """What gpu.json holds; it must be whole whenever it is there."""
        return json.loads(self.file.read_text()) if self.file.exists() else {"parts": {}}

    def points(self, part: str) -> dict:
        return self.found()["parts"].get(part, {}).get("points", {})


@pytest.fixture
def command(tmp_path):
    """Starts the command; what still runs at the test's end is killed."""
    started = []

    def start(*arguments):
        started.append(Command(tmp_path, *arguments))
        return started[-1]

    yield start
    for program in started:
        program.kill()


# -- the whole command ------------------------------------------------------------------------------------------------


def state_of(part):
    """Of a part as gpu.json has it; `out of time` if nothing but that went wrong."""
    reasons = [reason for reason in (part["why"], *part["failed"].values()) if reason]
    late = all(re.search("longer than|its limit|were left", reason) for reason in reasons)
    return "out of time" if part["state"] != "done" and late else part["state"]


@pytest.mark.slow
def test_the_small_run_measures_all_parts_and_says_what_they_mean(command):
    began = time.monotonic()
    done = command("--minutes", 4).finish(280.0)
    assert time.monotonic() - began < 240 + 5
    found = done.found()
    states = {name: state_of(part) for name, part in found["parts"].items()}
    assert list(states) == NAMES
    if shutil.which("g++") is None:
        assert states["compile"] in ("failed", "done")
        states["compile"] = "done"
    assert set(states.values()) <= {"done", "out of time"}, done.story()
    if "out of time" in states.values():
        assert os.getloadavg()[0] > 2 * usable_cores(), done.story()
        pytest.skip("it kept to its minutes, but others keep this machine too busy for all parts")
    points = {name: part["points"] for name, part in found["parts"].items()}
    assert points["machine"]["machine"]["gpu"] is None
    assert points["machine"]["costs"]["launch_us"] > 0
    assert 10 < points["emulator"]["all cores"]["sps"] < 10**6
    assert {point["outcome"] for point in points["tests"].values()} == {"skipped"}
    assert {name.split()[0] for name in points["learner"]} == set(parts.MODELS)
    for point in points["learner"].values():
        assert point["steps"] == 10
        assert 0.01 < point["update_ms"] < 10_000
        assert point["operators"] > 100
        assert (point["launches"], point["device_ms"], point["hidden_waits"]) == (0, None, [])
    for point in [*points["runs"].values(), *points["resnet"].values()]:
        assert point["whole"]["sps"] > 0
        assert point["command"].startswith("python run.py profile --env PongNoFrameskip-v4")
    assert {point["flags"]["trainer"] for point in points["runs"].values()} == {"monobeast", "polybeast"}
    (race,) = points["pong"].values()
    assert race["ended_cleanly"]
    assert race["reached"]["games"] >= 100
    assert 0 < race["reached"]["time"] < race["reached"]["seconds"] < race["trained_s"]
    assert race["at_end"]["steps"] >= race["reached"]["steps"] == race["curve"][-1]["steps"] or len(race["curve"]) > 1
    for heading in ("What bounds what", "What to change first", "its figures mean nothing"):
        assert heading in done.out
    assert not done.err

    again = command("--minutes", 0).finish()
    assert again.code == done.code
    assert again.found()["parts"] == found["parts"]
    assert found["bounds"][0]["what"] == f"emulator alone, {usable_cores()} cores at once"
    shown = " ".join(again.out.split())
    for row in found["bounds"]:
        assert " ".join(f"{row['bound']} {row['what']}: {row['why']}".split()) in shown
    for change in found["change_first"]:
        assert f"{change['of']} {change['text']}" in shown


@pytest.mark.slow
def test_a_killed_run_leaves_readable_figures_and_the_next_one_goes_on(command):
    killed = command("--minutes", 3, "--only", "learner")
    wait_until(
        lambda: killed.points("learner") or killed.process.poll() is not None, "a first point"
    )  # reads all the time
    killed.process.kill()
    killed.finish(10.0)
    part = killed.found()["parts"]["learner"]
    assert part["state"] == "running"
    before = part["points"]
    assert 1 <= len(before) < 4

    after = command("--minutes", 3, "--only", "learner").finish()
    assert after.code == 0, after.story()
    now = after.found()["parts"]["learner"]
    assert (now["state"], len(now["points"])) == ("done", 4)
    assert before.items() <= now["points"].items()
    assert after.found()["parts"].keys() == {"machine", "learner"}
    for name in before:
        assert f"{name}:" not in after.out.partition("Parts")[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_of_a_run_in_the_middle_of_a_training_is_left(command, number):
    program = command("--minutes", 3, "--only", "pong")
    wait_until(lambda: len(program.family()) >= 5 or program.process.poll() is not None, "its workers")
    assert program.process.poll() is None, program.story()
    program.send(number)
    began = time.monotonic()
    program.finish(20.0)
    assert time.monotonic() - began < 20.0
    assert program.code == (-number if number == signal.SIGKILL else 128 + number)
    assert program.found()["parts"]["pong"]["state"] == "running"
    if number != signal.SIGKILL:
        assert "the same command goes on" in program.err
        assert "What bounds what" in program.out


def refusal(command, *arguments):
    done = command(*arguments).finish()
    assert done.code == 2, done.story()
    (line,) = done.err.splitlines()
    return line


def test_figures_of_another_machine_or_commit_are_left_alone(tmp_path, monkeypatch):
    results = Results(tmp_path)
    here = {"cpu": "this", "cores": 2, "gpu": None, "torch": "2", "git_commit": "abc"}

    def look(found, unfinished=()):
        def conduct(part, seconds, on_gpu, results, on_point):
            results.part("machine")["points"]["machine"] = dict(found)
            results.part("machine")["unfinished"] = list(unfinished)

        monkeypatch.setattr(gpu, "conduct", conduct)
        return gpu.look_at_machine(results, time.monotonic() + 60)

    assert not look(here)
    assert not look(here | {"load": 3})
    with pytest.raises(gpu.Refused, match="another cpu and git_commit: choose another --out, or --again"):
        look(here | {"cpu": "another", "git_commit": "def"})
    assert results.part("machine")["points"]["machine"]["cpu"] == "this"
    with pytest.raises(gpu.Refused, match="nothing can be measured"):
        look(here, ["machine"])  # what is known is of another time
    results.all = {"parts": {}}  # --again
    assert look(here | {"gpu": "a new one"})
    results.log.close()


def test_what_cannot_be_used_is_refused_in_a_line(command, tmp_path):
    assert "there is no" in refusal(command, "--minutes", 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gpu.json").write_text('{"parts": 3}')
    assert "is not what this command writes" in refusal(command)
    assert "--minutes" in refusal(command, "--minutes", -1)
    assert "invalid choice" in command("--only", "nonsense").finish().err


# -- one part after the other -----------------------------------------------------------------------------------------

MADE_UP = """
import os, signal, subprocess, sys, time

def hangs(session):
    session.report("first", {"value": 1})
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    time.sleep(600)

def crashes(session):
    session.report("first", {"value": 1})
    os.kill(os.getpid(), signal.SIGSEGV)

def raises(session):
    print("a library's chatter")
    raise ValueError("no luck")

def measures(session):
    def bad():
        raise ValueError("of one point")
    points = {"a": lambda: {"value": session.left()}, "bad": bad, "c": lambda: {"on_gpu": session.on_gpu}}
    session.measure(points)
    session.measure({"long": lambda: {}}, needs=1e6)

def partly(session):
    session.report("race", {"value": time.time()}, finished="race" in session.done)
"""


@pytest.fixture
def conducted(tmp_path, monkeypatch):
    """Conducts a function of MADE_UP; returns what is known of the part then."""
    (tmp_path / "made_up.py").write_text(MADE_UP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import made_up

    results = Results(tmp_path / "out")

    def run(name, seconds=60.0, on_gpu=False):
        conduct(Part(name, 1, 1, getattr(made_up, name)), seconds, on_gpu, results, lambda point, line: None)
        assert json.loads(results.file.read_text()) == results.all
        return results.part(name)

    yield run
    results.log.close()
    del sys.modules["made_up"]


def test_a_part_that_hangs_costs_its_own_time_and_leaves_nothing(conducted):
    before = set(psutil.Process().children(recursive=True))
    began = time.monotonic()
    found = conducted("hangs", GRACE + 1.0)
    assert time.monotonic() - began < GRACE + 10.0
    assert (found["state"], found["points"]) == ("cut", {"first": {"value": 1}})
    assert "cut at its limit of 4 s" in found["why"]
    assert set(psutil.Process().children(recursive=True)) <= before
    alive = (process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"])
    assert not [process for process in alive if process.info["cmdline"][-1] == "import time; time.sleep(600)"]


def test_a_part_that_crashes_is_named_with_its_signal(conducted):
    found = conducted("crashes")
    assert (found["state"], found["why"], found["points"]) == ("failed", "killed by SIGSEGV", {"first": {"value": 1}})


def test_a_part_that_raises_is_named_with_its_error_and_its_chatter_is_in_the_log(conducted, tmp_path):
    found = conducted("raises")
    assert (found["state"], found["why"]) == ("failed", "ValueError: no luck")
    assert "a library's chatter" in (tmp_path / "out" / "gpu.log").read_text()


def test_a_point_that_fails_does_not_hold_the_others_and_known_ones_are_kept(conducted):
    found = conducted("measures", 50.0)
    first = found["points"]["a"]["value"]
    assert 0 < first < 50.0 - GRACE
    assert found["points"]["c"] == {"on_gpu": False}
    assert found["failed"] == {"bad": "ValueError: of one point"}
    assert (found["left_out"], found["state"]) == (["long"], "failed")
    again = conducted("measures", 50.0, on_gpu=True)
    assert again["points"]["a"]["value"] == first
    assert again["points"]["c"] == {"on_gpu": False}


def test_an_unfinished_point_is_kept_and_measured_again(conducted):
    first = conducted("partly")
    assert (first["state"], first["unfinished"]) == ("incomplete", ["race"])
    value = first["points"]["race"]["value"]
    assert conducted("partly")["points"]["race"]["value"] > value


def test_two_runs_cannot_write_to_one_folder(conducted, tmp_path):
    script = (
        f"from benchmarks.gpu.conductor import *; from pathlib import Path; Results(Path({str(tmp_path / 'out')!r}))"
    )
    other = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert InUse.__name__ in other.stderr


def test_time_is_shared_out_and_what_is_saved_goes_to_the_next():
    some = [
        Part(name, share, least, print)
        for name, share, least in (
            (
                "a",
                10,
                5,
            ),
            ("b", 30, 5),
            ("c", 60, 50),
        )
    ]
    least = lambda part: part.least  # noqa: E731
    assert limit(some, least, 100.0) == 10.0
    assert limit(some[1:], least, 99.0) == 33.0
    assert limit(some[2:], least, 80.0) == 80.0
    assert limit(some, least, 20.0) == 5.0  # its share would be 2
    assert limit(some[2:], least, 49.0) == 0.0
    assert sum(part.share for part in PARTS) == 600


def test_what_failed_before_is_tried_again_after_all_others(tmp_path):
    results = Results(tmp_path)
    states = dict(
        zip(NAMES, ["done", "cut", "done", "running", "failed", "left out", "incomplete", "not begun"], strict=True)
    )
    for name, state in states.items():
        results.part(name)["state"] = state
    assert [part.name for part in order(PARTS, results)] == ["learner", "resnet", "compile", "pong", "emulator", "runs"]
    results.log.close()


# -- a bare machine ---------------------------------------------------------------------------------------------------


def wheel(folder: Path, name: str) -> None:
    """A package of one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "VALUE = 7\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine that lacks two packages which are needed and one that is not; a folder for their wheels."""
    monkeypatch.setattr(packages, "NEEDED", {"json": "json", "beast_a": "beast-a", "beast_b": "beast-b"})
    monkeypatch.setattr(packages, "USEFUL", {"beast_c": "beast-c"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def test_what_is_missing_is_taken_from_the_wheels_for_this_process_and_its_children(bare):
    wheel(bare, "beast_a")
    wheel(bare, "beast_b")
    wheel(bare, "beast_d")  # which nobody needs
    assert packages.provide(bare) == ["beast-a", "beast-b"]
    target = Path(sys.path[0])
    assert os.environ["PYTHONPATH"] == f"{target}{os.pathsep}before"
    script = "import beast_a, beast_b; print(beast_a.VALUE)"
    assert subprocess.check_output([sys.executable, "-c", script]) == b"7\n"
    assert not (target / "beast_d.py").exists()
    shutil.rmtree(target)


def test_what_is_missing_without_a_wheel_is_named_with_what_to_type(bare):
    wheel(bare, "beast_a")
    with pytest.raises(packages.PackagesMissing, match=r"^beast-b is not installed") as error:
        packages.provide(bare)
    assert re.search(r"pip download --no-deps .*--python-version 3\.\d+ .*--dest \S+wheels beast-b$", str(error.value))
    assert "\n" not in str(error.value)


def test_a_wheel_that_does_not_fit_is_named(bare):
    (bare / "beast_a-1.0-cp27-cp27m-win32.whl").write_bytes(b"")
    with pytest.raises(packages.PackagesMissing, match="pip cannot install beast-a"):
        packages.provide(bare)


def test_nothing_is_installed_where_nothing_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "USEFUL", {})
    path = list(sys.path)
    assert packages.provide(tmp_path / "no such folder") == []
    assert sys.path == path


def test_all_that_the_project_depends_on_is_looked_for():
    setup = (ROOT / "setup.cfg").read_text().partition("install_requires =")[2].partition("\n\n")[0]
    required = {re.split("[<>=]", line.strip())[0] for line in setup.strip().splitlines()}
    assert required <= {*packages.NEEDED.values(), *packages.USEFUL.values()}


def test_the_suite_hides_the_gpu_unless_it_is_asked_for(monkeypatch):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # this test has no mark: -m gpu leaves it out
    assert not torch.cuda.is_available()
    for expression in ("", "not gpu", "slow", "not slow and not gpu", "not  gpu"):
        assert not wants_gpu(expression)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        pytest_configure(SimpleNamespace(option=SimpleNamespace(markexpr=expression)))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    for expression in ("gpu", "gpu and not slow", "slow or gpu"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        pytest_configure(SimpleNamespace(option=SimpleNamespace(markexpr=expression)))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


# -- what is read off a machine ---------------------------------------------------------------------------------------


def test_a_trace_is_counted_by_launches_waits_and_time_on_the_device():
    def events(kind, name, number, us=0.0):
        return [{"ph": "X", "cat": kind, "name": name, "dur": us}] * number

    trace = [
        *events("cpu_op", "aten::mm", 6),
        *events("cuda_runtime", "cudaLaunchKernel", 4),
        *events("cuda_driver", "cuLaunchKernelEx", 2),
        *events("cuda_runtime", "cudaMemcpyAsync", 2),
        *events("cuda_runtime", "cudaStreamSynchronize", 1),
        *events("cuda_runtime", "cudaDeviceSynchronize", 1),
        *events("kernel", "gemm", 4, 500.0),
        *events("kernel", "relu", 2, 50.0),
        *events("gpu_memcpy", "Memcpy HtoD", 2, 10.0),
        *events("gpu_user_annotation", "Optimizer.step", 2, 9000.0),
        {"ph": "M", "name": "process_name"},
    ]
    found = alone.count(trace, updates=2)
    assert (found["operators"], found["launches"], found["host_copies"]) == (3, 3, 1)
    assert found["host_waits"] == {"cudaStreamSynchronize": 0.5}
    assert found["device_ms"] == pytest.approx((4 * 500 + 2 * 50 + 2 * 10) / 2 / 1e3)
    assert [kernel["kernel"] for kernel in found["busiest"]] == ["gemm", "relu", "Memcpy HtoD"]
    assert alone.count([], 1)["device_ms"] is None


def test_looks_at_the_gpu_are_summed_up_without_the_start():
    table = "0, 345, 100\n0, 345, 100\n80, 1980, 900\n90, 1980, 950\n100, 1980, 950\n[N/A], 1, 1\n80, 19"
    assert nvidia.summary(table) == {
        "busy_percent": {"median": 90.0, "max": 100.0},
        "sm_mhz": {"median": 1980.0, "max": 1980.0},
        "memory_mb": {"median": 950.0, "max": 950.0},
    }
    assert nvidia.summary("") == {}


def test_nvidia_smi_is_asked_once_for_facts_and_again_and_again_while_a_block_runs(tmp_path, monkeypatch):
    assert nvidia.facts() == {} or shutil.which("nvidia-smi")
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        "if any('loop' in argument for argument in sys.argv):\n"
        "    while True: print('75, 1980, 900', flush=True); time.sleep(0.05)\n"
        "print('580.1, 345 MHz, 1980 MHz, 3201 MHz, 3201 MHz, 700.00 W, 143771 MiB, Default, Disabled')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert list(nvidia.facts()) == list(nvidia.FACTS)
    assert nvidia.facts()["driver_version"] == "580.1"
    with nvidia.watched() as found:
        time.sleep(0.5)
        assert found == {}
    assert found["busy_percent"] == {"median": 75.0, "max": 75.0}


class Heard:
    """A session that keeps what it is told."""

    def __init__(self, left=100.0, on_gpu=True, done=()):
        self.on_gpu, self.done, self._left, self.told = on_gpu, frozenset(done), left, {}

    def left(self):
        return self._left

    def measure(self, points, needs=0.0):
        assert not set(points) & set(self.told)
        self.told.update(points)

    def report(self, point, figures, finished=True):
        self.told[point] = figures, finished

    def leave_out(self, point):
        self.told[point] = "left out"


def test_gpu_tests_are_told_one_by_one_the_long_ones_last_and_only_if_there_is_time():
    def item(name, *fixtures):
        return SimpleNamespace(name=name, fixturenames=fixtures)

    items = [item("whole_run", "start"), item("compiled_losses"), item("losses"), item("known"), item("actions")]
    heard = Heard(done=["known"])
    parts.Outcomes(heard).pytest_collection_modifyitems(items)
    assert [item.name for item in items] == ["losses", "actions", "whole_run", "compiled_losses"]
    late = parts.Outcomes(short := Heard(left=10.0))
    assert [late.pytest_runtest_protocol(item) for item in items] == [None, None, True, True]
    assert short.told == {"whole_run": "left out", "compiled_losses": "left out"}

    outcomes = parts.Outcomes(heard)
    for when, outcome, why in [
        ("setup", "passed", None),
        ("call", "failed", "file.py:3: in test\nE   assert 1 == 2\n"),
        ("teardown", "passed", None),
    ]:
        outcomes.pytest_runtest_logreport(
            SimpleNamespace(when=when, outcome=outcome, longrepr=why, duration=1.5, nodeid="tests/gpu/x.py::test_a[b]")
        )
    assert heard.told == {"test_a[b]": ({"outcome": "failed", "seconds": 1.5, "why": "E   assert 1 == 2"}, False)}


def test_a_curve_is_read_while_it_is_written_and_its_level_counts_from_a_hundred_games(tmp_path):
    logs = tmp_path / "logs.csv"
    assert read_curve(logs) == []
    lines = ["time,step,episodes,mean_episode_return", "1,100,0,", "2,200,50,20.0", "3,300,120,17.9", "4,400,130,18.0"]
    logs.write_text("\n".join(lines) + "\n5,50")
    curve = read_curve(logs)
    assert [row["steps"] for row in curve] == [100, 200, 300, 400]
    assert "return" not in curve[0]
    assert first_at(curve, 18.0) == {"time": 4.0, "steps": 400.0, "games": 130.0, "return": 18.0}
    assert first_at(curve, 18.5) is None


def test_programs_that_fail_or_hang_are_told_by_their_own_line():
    def script(text):
        return [sys.executable, "-c", text]

    with pytest.raises(parts.RunFailed, match=r"^no luck$"):
        parts.run_program(
            script("import sys; print('noise', file=sys.stderr); sys.exit('run.py: error: no luck')"), 60.0
        )
    with pytest.raises(parts.RunFailed, match=r"^exit status 3$"):
        parts.run_program(script("import sys; sys.exit(3)"), 60.0)
    before = set(psutil.Process().children())
    with pytest.raises(parts.RunFailed, match="longer than 1 s"):
        parts.run_program(script("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"), 1.0)
    assert set(psutil.Process().children()) == before
    with pytest.raises(parts.RunFailed, match="No-Such-Game"):
        parts.race({"env": "No-Such-Game-v0"}, 18.0, 60.0)


# -- what it concludes ------------------------------------------------------------------------------------------------

SHALLOW = {"env": "Pong", "model": "atari_shallow", "trainer": "polybeast"}


def update(flags=(), **changes):
    """The learner alone on a GPU: 2 ms an update of which the device works 0.6, 275 launches."""
    return {
        "flags": SHALLOW | {"batch_size": 128} | dict(flags), "steps": 2560, "update_ms": 2.0, "host_ms": 1.9,
        "published_ms": 2.2, "device_ms": 0.6, "launches": 275.0, "host_waits": {}, "hidden_waits": [], "copy_ms": 0.9,
        "copy_mb": 23.0, "sps": 2560 / 2.2e-3, "first_ms": 900.0,
    } | changes  # fmt: skip


def run_of(sps, flags=(), waiting=240, **microseconds):
    """A whole run on a GPU with 16 cores; without `microseconds` nothing takes any time worth the name."""
    us = {
        "environment": 1.0,
        "inference": 1.0,
        "learn": 1.0,
        "batch": 1.0,
        "cpu": 1.0,
        "served": waiting,
    } | microseconds
    return {
        "flags": SHALLOW | {"num_actors": 480, "batch_size": 128} | dict(flags),
        "device": "cuda", "learner_threads": 2, "gpu": {},
        "whole": {
            "sps": sps,
            "first_update_s": 6.0,
            "worker_us": {"environment": us["environment"], "inference": us["inference"], "store": 0.1, "wait": 0.0},
            "learner_us": {"wait": 0.0, "batch": us["batch"], "copy": 0.1, "learn": us["learn"], "publish": 0.1},
            "cpu_us": {"env worker": us["cpu"], "learner": 0.1},
            "inference": {"batch_size_mean": us["served"], "forward_ms": 0.8},
        },
    }  # fmt: skip


def told(runs=(), updates=(), **more):
    """The verdict on these figures."""
    found = {"machine": {"machine": {"cores": 16}}, **more}
    found |= {"runs": dict(enumerate(runs)), "learner": dict(enumerate(updates))}
    return verdict({name: {"points": points} for name, points in found.items()})


@pytest.mark.parametrize(
    ("microseconds", "updates", "expected"),
    [
        ({"environment": 500.0}, [], "emulator"),
        ({"cpu": 480.0}, [], "emulator"),  # all cores are full, and mostly with games
        ({"inference": 32.0}, [], "inference"),
        ({"inference": 32.0, "served": 11.0}, [], "inference batches"),
        ({"batch": 60.0}, [], "staging"),
        ({"learn": 32.0}, [update()], "learner launches"),
        ({"learn": 32.0}, [update(device_ms=1.9)], "learner compute"),
        ({"learn": 32.0}, [update(published_ms=4.0)], "learner publishing"),
        ({"learn": 32.0}, [update(hidden_waits=["models/base.py:9"])], "learner waits"),
        ({}, [], "waiting"),
    ],
)
def test_a_run_is_bound_by_what_is_busy(microseconds, updates, expected):
    run = run_of(30_000, **microseconds)
    assert bound(run, updates, 16)[0].name == expected
    found = told([run], updates)
    assert [row.bound for row in found.rows if row.sps == 30_000] == [expected]
    assert found.changes[0].of == WHOLE
    assert CURES[expected] in found.changes[0].text


def test_the_cores_are_to_blame_when_no_single_role_fills_them():
    run = run_of(30_000, cpu=200.0)
    run["whole"]["cpu_us"] |= {"learner": 150.0, "inference": 150.0}
    first = bound(run, [], 16)[0]
    assert first.name == "cores"
    assert "env worker 200, learner 150, inference 150" in first.why


def test_forwards_on_the_cores_are_told_from_games():
    flags = {"trainer": "monobeast"}
    assert bound(run_of(30_000, flags, environment=100.0, inference=400.0), [], 16)[0].name == "actors' forwards"
    assert bound(run_of(30_000, flags, environment=400.0, inference=100.0), [], 16)[0].name == "emulator"


def test_a_cure_is_worth_what_the_next_ceiling_allows():
    run = run_of(30_000, learn=32.9, environment=320.0)
    assert [round(ceiling.sps, -2) for ceiling in ceilings(run, 16)[:2]] == [30_300, 50_000]
    found = told([run], [update()])
    first = found.changes[0]
    assert (round(first.gain, 2), first.of) == (1.65, WHOLE)  # 16 / 320.1 us against 1 / 33.0
    assert first.text.startswith("fewer launches")
    assert "then emulator holds" in first.text


def test_two_bounds_as_low_as_each_other_are_cured_together():
    found = told([run_of(30_000, learn=32.9, inference=32.5, environment=250.0)], [update()])
    assert CURES["learner launches"] in found.changes[0].text
    assert CURES["inference"] in found.changes[0].text


def test_measured_settings_are_ranked_with_the_cures():
    runs = [
        run_of(20_000, inference=49.0, served=11.0),
        run_of(19_000, {"batch_size": 32}, inference=49.0, served=11.0),
        run_of(40_000, {"weights_sync": "step"}, inference=24.0, served=200.0, environment=300.0),
        run_of(40_400, {"inference": "thread", "weights_sync": "step"}, inference=24.0, environment=300.0),
        run_of(15_000, {"num_actors": 48, "batch_size": 64}),  # two flags at once prove nothing of either
    ]
    found = told(runs, [update()])
    measured = {change.text.partition(" (")[0]: change for change in found.changes if "measured" in change.text}
    assert measured.keys() == {"--weights_sync step", "--batch_size 128"}  # --inference thread is worth 1 % only
    assert measured["--weights_sync step"].gain == 2.0
    assert "it changes learning too" in measured["--batch_size 128"].text
    whole = [change.gain for change in found.changes if change.of == WHOLE]
    assert whole == sorted(whole, reverse=True)
    assert len(whole) == 3


def test_compiling_is_advised_where_it_was_measured_to_pay():
    plain, small = update({"model": "impala_resnet"}), update({"batch_size": 32})
    compiled = [
        update({"model": "impala_resnet", "compile_model": True}, published_ms=1.1, update_ms=1.0, first_ms=31_000.0),
        update({"batch_size": 32, "compile_model": True}, published_ms=2.2),
    ]
    found = told([run_of(30_000)], [plain, small], compile=dict(enumerate(compiled)))
    (change,) = [change for change in found.changes if "--compile_model" in change.text]
    assert (change.gain, change.of) == (2.0, ALONE)
    assert "(impala_resnet, batch 128; measured; 31 s to compile)" in change.text
    assert found.changes.index(change) > max(i for i, c in enumerate(found.changes) if c.of == WHOLE)


def test_without_whole_runs_the_learner_alone_is_judged():
    found = told(updates=[update(), update({"batch_size": 512}, device_ms=1.9)])
    assert [row.bound for row in found.rows] == ["launches", "compute"]
    assert "2.00 ms an update, the device works 0.60 of them, the host needs 1.90 for 275 launches" in found.rows[0].why
    (change,) = found.changes
    assert change.gain == pytest.approx(2.75)  # 2.2 ms, of which 0.8 would be left
    assert (change.of, change.text[:14]) == (ALONE, "fewer launches")


def test_nothing_is_concluded_from_nothing():
    assert verdict({}) == verdict({"runs": {"state": "cut"}}) == Verdict([], [])


def test_the_emulator_on_all_cores_is_the_ceiling_that_is_told():
    rates = {"one core": {"sps": 4000.0}, "all cores": {"sps": 34_000.0, "processes": 16}}
    (row,) = told(emulator=rates).rows
    assert (row.sps, row.what) == (34_000.0, "emulator alone, 16 cores at once")
    assert "8.5 times one core's 4,000" in row.why


def test_races_are_told_with_where_they_came_to():
    race = {"level": 18.0, "trained_s": 100.0, "ended_cleanly": True, "curve": [], "at_end": None, "reached": None}
    assert headline(race) == "return unknown when it was cut after 100 s and 0 steps"
    race["at_end"] = {"steps": 2e6, "return": 7.25}
    assert headline(race | {"ended_cleanly": False}).startswith("return 7.25 when it was cut after 100 s and 2,000,000")
    race["reached"] = {"seconds": 93.0, "steps": 1.9e6}
    assert headline(race) == "return 18 after 93 s and 1,900,000 steps"


def test_every_part_of_the_plan_for_a_gpu_asks_for_settings_that_exist(monkeypatch):
    """Each part is walked through as on a GPU, with what measures replaced: names are distinct, flags are run.py's."""
    from beast.settings.config import Config

    heard = Heard(left=1000.0)
    monkeypatch.setattr(parts, "profile_of", lambda flags, *_: flags)
    monkeypatch.setattr(parts, "race", lambda flags, *_: {"reached": None, **flags})
    monkeypatch.setattr(alone, "measure", lambda flags, _: flags)
    for part in (parts.learner, parts.runs, parts.resnet, parts.compiled, parts.pong):
        part(heard)
    settings = [told() if callable(told) else told[0] for told in heard.told.values()]
    assert len(settings) == 10 + 14 + 2 + 3 + 2
    for flags in settings:
        flags.pop("reached", None)
        Config.from_flat(flags)
    for actors, size, trainer in (
        (480, 128, "polybeast"),
        (480, 32, "monobeast"),
        (48, 32, "monobeast"),
        (48, 128, "polybeast"),
    ):
        wanted = {"num_actors": actors, "batch_size": size, "trainer": trainer}
        assert any(wanted.items() <= flags.items() for flags in settings)
    assert {"inference": "thread"}.items() <= {key: value for flags in settings for key, value in flags.items()}.items()
