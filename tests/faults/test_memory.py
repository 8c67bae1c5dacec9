"""More than the machine has, or its container: refused before anything is made, with the flags that did it."""

from __future__ import annotations

import os
import textwrap
import uuid
from pathlib import Path

import pytest
from conftest import assert_one_line

from beast.processes import machine
from beast.run import checkpoint, finding
from beast.store import unrolls

CATCH = ["--env", "Catch-v0", "--num_actor_processes", 0, "--num_actors", 2, "--batch_size", 2, "--total_steps", 80]
GB = 10**9


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    """Let the machine have so many bytes free, and no limit."""

    def free(size: int) -> None:
        monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": size}))
        monkeypatch.setattr(machine, "CGROUPS", "/nowhere")

    return free


@pytest.mark.parametrize("command", ["train", "profile"])
@pytest.mark.parametrize(
    ("flags", "blamed"),
    [
        (["--unroll_length", 10**9], ["--unroll_length 1000000000"]),
        (["--batch_size", 10**7], ["--batch_size 10000000"]),
        (["--num_buffers", 10**8], ["--num_buffers 100000000"]),
        (["--num_actors", 10**8], ["--num_actors 100000000"]),
        (["--batch_size", 10**7, "--num_actors", 10**7], ["--num_actors 10000000", "--batch_size 10000000"]),
        (["--num_actors", 10**5, "--num_actor_processes", 10**5], ["--num_actor_processes 100000"]),
        (["--env", "PongNoFrameskip-v4", "--num_actors", 17_000], ["--num_actors 17000"]),
    ],
    ids=lambda value: "_".join(map(str, value)).strip("-") if str(value[0]).startswith("--") else None,
)
def test_more_memory_than_there_is(call, tmp_path, free, flags, blamed, command):
    free(24 * GB)
    done = call(command, *CATCH, *flags)
    assert_one_line(done, "GB", *blamed, "lower")
    named = {word for word in done.err.split() if word.startswith("--")}
    assert named == {word.split()[0] for word in blamed if word.startswith("--")}
    assert not (tmp_path / "runs").exists()


def test_too_little_for_the_defaults(call, tmp_path, free):
    free(10_000)
    assert_one_line(call("--env", "Catch-v0"), "lower --num_actors, --batch_size or --unroll_length")
    assert not (tmp_path / "runs").exists()


def test_a_batch_counts_beside_the_store(call, tmp_path, free):
    """The store alone would just fit."""
    free(2 * GB)
    flags = [*CATCH, "--batch_size", 250_000]
    assert_one_line(call(*flags), "--batch_size 250000", "a batch")
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_touched_by_a_resume_that_does_not_fit(call, tmp_path, free):
    assert call(*CATCH, "--xpid", "r").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    free(24 * GB)
    assert_one_line(call("--resume", "r", "--total_steps", 160, "--batch_size", 10**7), "--batch_size 10000000")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before
    free(100_000_000)
    played = call("evaluate", "--checkpoint", "r", "--episodes", 1)
    assert played.code == 0, played.err  # it needs no store


@pytest.mark.parametrize("name", [["--xpid", "r"], []], ids=["named", "unnamed"])
def test_memory_that_is_taken_meanwhile_leaves_nothing_behind(call, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise MemoryError("no shared memory of 3 MB to be had")

        patch.setattr(unrolls, "SharedArrays", full)
        assert_one_line(call(*CATCH, *name), "no shared memory of 3 MB")
    assert not (tmp_path / "runs").exists()
    assert call(*CATCH, *name).code == 0  # the mended command


ENV = """
    import gymnasium
    import numpy as np

    class Env(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return {observation}, {{}}

        def step(self, action):
            return np.zeros(3, np.float32), 1.0, False, False, {{}}

    make = Env
"""


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
def test_an_environment_that_breaks_its_contract_on_the_first_reset_leaves_nothing_behind(
    call, tmp_path, trainer, processes
):
    def write(observation: str) -> list[str]:
        (tmp_path / f"env{len(observation)}.py").write_text(textwrap.dedent(ENV.format(observation=observation)))
        return ["--env", f"env{len(observation)}:make", "--xpid", "r", "--trainer", trainer]

    flags = [*CATCH, "--num_actor_processes", processes]
    assert_one_line(call(*flags, *write("np.zeros(4, np.float32)")), "reset()", "(4,)", "(3,)", "mend")
    assert_one_line(call(*flags, *write("None")), "reset()", "mend")
    done = call(*flags, *write("1 / 0"))
    assert "ZeroDivisionError" in done.err
    assert not (tmp_path / "runs").exists()
    done = call(*flags, *write("np.zeros((3,), np.float32)"))
    assert done.code == 0, done.err


# -- containers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Files as the kernel shows them: `groups(mine, {path: text})`."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 64 * GB}))

    def make(mine: str, files: dict[str, str]) -> None:
        root = tmp_path / "cgroup"
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (tmp_path / "mine").write_text(mine)
        monkeypatch.setattr(machine, "CGROUPS", str(root))
        monkeypatch.setattr(machine, "MY_CGROUPS", str(tmp_path / "mine"))

    return make


@pytest.mark.parametrize(
    ("mine", "files", "free"),
    [
        ("0::/\n", {"memory.max": "3000000000\n", "memory.current": "1000000000\n"}, 2 * GB),
        (
            "0::/\n",
            {
                "memory.max": "3000000000\n",
                "memory.current": "2500000000\n",
                "memory.stat": "anon 5\ninactive_file 2000000000\n",
            },
            2.5 * GB,
        ),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "1\n"}, 64 * GB),
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "max\n",
                "a/b/memory.current": "5\n",
                "a/memory.max": "900\n",
                "a/memory.current": "100\n",
            },
            800,
        ),
        ("0::/gone\n", {"memory.max": "7\n", "memory.current": "9\n"}, 0),
        (
            "7:cpu:/x\n4:memory:/a\n0::/\n",
            {
                "memory/a/memory.limit_in_bytes": "500\n",
                "memory/a/memory.usage_in_bytes": "300\n",
                "memory/a/memory.stat": "total_inactive_file 100\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": "1\n",
            },
            300,
        ),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "nonsense"}, 64 * GB),
        ("nonsense", {"memory.max": ""}, 64 * GB),
        ("", {}, 64 * GB),
    ],
)
def test_what_a_control_group_leaves(groups, mine, files, free):
    groups(mine, files)
    assert machine.free_memory() == free


def test_a_container_limits_a_run(call, tmp_path, groups):
    groups("0::/\n", {"memory.max": str(10**9), "memory.current": "0"})
    assert_one_line(call(*CATCH, "--batch_size", 10**6), "--batch_size 1000000", "1.0 GB")
    assert not (tmp_path / "runs").exists()
    assert call(*CATCH).code == 0


@pytest.fixture
def limited():
    """A real control group with 800 MB; `limited` joins it (in a child before exec)."""
    name = f"beast-test-{uuid.uuid4().hex}"
    for folder, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(folder) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(800_000_000))
        except OSError:
            group.rmdir()
            continue
        break
    else:
        pytest.skip("this machine lets nobody make control groups")
    yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    group.rmdir()


def test_a_real_control_group(start, tmp_path, limited):
    refused = start(*CATCH, "--batch_size", 200_000, "--xpid", "r", preexec_fn=limited).finish()
    assert_one_line(refused, "--batch_size 200000", "GB")
    assert not (tmp_path / "runs").exists()
    done = start(*CATCH, "--xpid", "r", preexec_fn=limited).finish()
    assert done.code == 0, done.story()
    assert checkpoint.load(finding.find("r", str(tmp_path / "runs")))["learner"]["steps"] == 80
