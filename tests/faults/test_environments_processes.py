"""What environments start: it ends with its worker, however that ends, and is born as any process is."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import Program, rows, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone lets orphans be found")

FLAGS = ["--num_actors", 2, "--num_actor_processes", 1, "--batch_size", 2, "--report_every", 0.2, "--xpid", "r"]
ENDLESS = ["--total_steps", 10**9]
BEASTS = {"monobeast": [], "polybeast": ["--trainer", "polybeast"]}

# Each environment has an engine of its own: a child, one that detaches itself (double fork), and one in a session of its own.
ENGINES = """
import os, subprocess, sys, time
import gymnasium, numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))

def sleeper(kind, **settings):
    code = (
        "import os, sys, time\\n"
        "if sys.argv[1] == 'detached':\\n"
        "    if os.fork(): os._exit(0)\\n"
        "    os.setsid()\\n"
        "    if os.fork(): os._exit(0)\\n"
        "name = os.path.join(sys.argv[2], f'{sys.argv[1]}-{os.getpid()}')\\n"
        "open(name + '.new', 'w').write(open('/proc/self/status').read())\\n"
        "os.rename(name + '.new', name)\\n"
        "time.sleep(600)\\n"
    )
    return subprocess.Popen([sys.executable, "-S", "-c", code, kind, os.path.join(HERE, "engines")], **settings)

class Engines(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fail_after=0, look=False):
        self.fail_after, self.count = fail_after, 0
        self.engines = [sleeper("child"), sleeper("session", start_new_session=True)]
        sleeper("detached").wait()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        if self.fail_after and self.count >= self.fail_after:
            raise RuntimeError("the engine is broken")
        time.sleep(0.001)
        return np.zeros(2, np.float32), 0.0, self.count % 50 == 0, False, {}

    def close(self):
        open(os.path.join(HERE, "closed"), "a").write("closed\\n")
        for engine in self.engines:
            engine.kill()
"""


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A folder where each engine leaves a file, `kind-pid`, with its status at birth."""
    (tmp_path / "engines_env.py").write_text(textwrap.dedent(ENGINES))
    (tmp_path / "engines").mkdir()
    return tmp_path / "engines"


def kinds(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.glob("*-*[0-9]"))


def living(folder: Path) -> list[int]:
    """Numbers of those that still live."""
    pids = [int(path.name.rpartition("-")[2]) for path in folder.glob("*-*[0-9]")]

    def lives(pid: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    return [pid for pid in pids if lives(pid)]


def run_with_engines(start, engines: Path, *flags, **kwargs) -> Program:
    """A run, past the point where its workers have two environments with three engines each."""
    program = start(
        "--env", "engines_env:Engines", "--env_kwargs", json.dumps(kwargs), *FLAGS, *ENDLESS, *flags
    )  # fmt: skip
    if not kwargs:
        program.wait_for("loss total")
        wait_until(lambda: len(living(engines)) >= 6, "six engines")
    return program


@pytest.mark.parametrize("beast", BEASTS)
@pytest.mark.parametrize(
    "end", ["SIGINT", "SIGTERM to the group", "SIGKILL", "SIGKILL to the group", "fork server killed, then SIGINT",
            "fork server stopped, then SIGKILL"],
)  # fmt: skip
def test_engines_end_with_the_run(start, engines, beast, end):
    if beast == "polybeast" and end not in ("SIGINT", "SIGKILL"):
        pytest.skip("the same code")
    program = run_with_engines(start, engines, *BEASTS[beast])
    server = program.fork_server()
    assert server
    if end == "fork server killed, then SIGINT":
        server.kill()
    elif end == "fork server stopped, then SIGKILL":
        server.suspend()
    program.send(getattr(signal, end.split(" ")[0 if end[0] == "S" else -1]), group="group" in end)
    program.process.wait(60)
    wait_until(lambda: not living(engines), "all engines gone", 30.0)
    if "KILL" not in end and "killed" not in end:
        assert len((engines.parent / "closed").read_text().splitlines()) >= 3  # two, and the one that was looked at
        assert program.code == (143 if "TERM" in end else 130), program.story()
        assert not program.err
    program.finish()


@pytest.mark.parametrize("beast", BEASTS)
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "raise"])
def test_engines_end_with_their_worker(start, engines, beast, how):
    if how == "raise":
        program = run_with_engines(start, engines, *BEASTS[beast], "--max_restarts", 1, fail_after=200)
        program.wait_for("restarting it (1 of 1)")
    else:
        program = run_with_engines(start, engines, *BEASTS[beast])
        first = set(living(engines))
        worker = next(p for p in program.workers() if not p.name().startswith("inference"))
        worker.send_signal(getattr(signal, how))
        wait_until(lambda: not first & set(living(engines)), "its engines gone")
        program.wait_for("restarting it (1 of 5)")
        wait_until(lambda: len(living(engines)) == 6, "engines of another")
        assert f"was killed by {how}" in program.out
        steps = rows(engines.parent / "runs" / "r")[-1]["step"]
        wait_until(lambda: rows(engines.parent / "runs" / "r")[-1]["step"] > steps, "training that goes on")
        program.send(signal.SIGINT)
    program.finish()
    assert not living(engines)
    closed = len((engines.parent / "closed").read_text().splitlines())
    assert closed == {"SIGKILL": 3, "SIGTERM": 5, "raise": 5}[how]  # one is looked at; two a worker


def test_engines_are_born_with_the_usual_signals(start, engines):
    program = run_with_engines(start, engines)
    program.send(signal.SIGINT)
    program.finish()
    files = list(engines.glob("*-*[0-9]"))
    assert len(files) >= 6
    for file in files:
        masks = dict(line.split(":", 1) for line in file.read_text().splitlines() if line.startswith("Sig"))
        assert int(masks["SigBlk"], 16) == 0, file
        # Python itself ignores SIGPIPE and SIGXFSZ; whoever started the tests may have ignored others (nohup).
        ignored = int(masks["SigIgn"], 16) & ~(1 << signal.SIGPIPE - 1) & ~(1 << signal.SIGXFSZ - 1)
        usual = (signal.SIGHUP, signal.SIGQUIT)
        ignored &= ~sum(1 << number - 1 for number in usual if signal.getsignal(number) == signal.SIG_IGN)
        ignored &= (1 << 31) - 1  # those from 32 on are the C library's own, and some starters leave them ignored
        assert ignored == 0, file


def test_engines_do_not_hold_what_the_run_shares(start, engines):
    program = run_with_engines(start, engines)
    for pid in living(engines):
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [name for name in held if "memfd" in name or "socket" in name], held
    program.send(signal.SIGINT)
    assert program.finish().code == 130


# -- environments that are slow to make ---------------------------------------------------------------------------------

SLOW = """
import time
import beast.envs.catch
import gymnasium

class Slow(gymnasium.Wrapper):
    def __init__(self):
        super().__init__(beast.envs.catch.Catch())
        time.sleep(2.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("beast", BEASTS)
def test_making_an_environment_is_a_sign_of_life(start, tmp_path, beast):
    (tmp_path / "slow_env.py").write_text(SLOW)
    program = start(
        "--env", "slow_env:Slow", "--num_actors", 6, "--num_actor_processes", 1, "--batch_size", 2, "--xpid", "r",
        "--total_steps", 200, "--actor_timeout", 6, *BEASTS[beast],
    ).finish()  # fmt: skip
    assert program.code == 0, program.story()
    assert "no sign of life" not in program.out


def test_an_environment_that_cannot_be_made_leaves_none_of_those_before_it(tmp_path, monkeypatch):
    from beast.envs import EnvChoice

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "third_fails.py").write_text(
        "import beast.envs.catch\n"
        "made, closed = [], []\n"
        "class Env(beast.envs.catch.Catch):\n"
        "    def close(self):\n"
        "        closed.append(self)\n"
        "def make():\n"
        "    if len(made) == 2:\n"
        "        raise OSError('no licence')\n"
        "    made.append(Env())\n"
        "    return made[-1]\n"
    )
    import third_fails

    alive = []
    with pytest.raises(OSError, match="no licence"):
        EnvChoice("third_fails:make").make_vector([0, 1, 2], alive=lambda: alive.append(time.monotonic()))
    assert third_fails.closed == third_fails.made
    assert len(third_fails.made) == len(alive) == 2
