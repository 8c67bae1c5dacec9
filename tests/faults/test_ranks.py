"""Several learners by torchrun: whatever happens to one of them, all end together, with a checkpoint of the first's."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time

import psutil
import pytest
from conftest import Program, rows, wait_until

from beast.run import checkpoint

TRIES = int(os.environ.get("BEAST_TRIES", "10"))
FLAGS = ("--env", "Catch-v0", "--num_actors", 4, "--batch_size", 4, "--num_actor_processes", 1, "--device", "cpu",
         "--report_every", 0.3, "--xpid", "x")  # fmt: skip
END = 90.0  # seconds that an end may take here, where many tests run at once; torchrun kills after thirty


class Torchrun(Program):
    """torchrun, and with it the ranks."""

    def __init__(self, arguments, folder, env, ranks=2, restarts=0, **settings):
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
        self.command = (*launcher, f"--max_restarts={restarts}", *Program.command)
        super().__init__(arguments, folder, env, **settings)

    @property
    def run(self):
        """The run folder."""
        return self.folder / "runs" / "x"

    def ranks(self):
        """Their processes, by number, as far as they live."""
        found = {}
        for process in self.family():
            with contextlib.suppress(psutil.Error, OSError, KeyError):
                if process.ppid() == self.process.pid:
                    found[int(process.environ()["RANK"])] = process
        return found

    def learned(self):
        """Whether an update was reported."""
        return any(row["step"] > 0 for row in rows(self.run))

    def updated(self):
        """Wait until an update was reported."""
        wait_until(lambda: self.learned() or self.process.poll() is not None, "a report of an update")
        assert self.process.poll() is None, self.story()
        return self

    def ended_with_a_checkpoint(self):
        """Its steps, once the first rank has saved all that it has learned, and everybody is gone."""
        self.finish(END)
        (step, total), saved = self.last(), [path.name for path in checkpoint.saved(self.run)]
        assert 0 < step < total
        assert f"step_{step:012d}.pt" in saved, self.story()
        state = checkpoint.load(self.run / "checkpoints" / "latest.pt")
        assert state["learner"]["steps"] == step
        return step

    def last(self):
        """The steps at which the run ended, and those that it was to make."""
        (line,) = [line for line in self.out.splitlines() if " at step " in line and " of " in line][-1:]
        words = line.partition(" at step ")[2].partition(";")[0].replace(",", "").split()
        return int(words[0]), int(words[2])


@pytest.fixture
def torchrun(tmp_path):
    """Start torchrun with run.py and these flags beside FLAGS."""
    programs = []

    def start(*arguments, **settings):
        programs.append(Torchrun((*FLAGS, *arguments), tmp_path, {}, **settings))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def test_ctrl_c_of_one_rank_ends_all_with_one_checkpoint(torchrun):
    program = torchrun().updated()
    program.check_no_named_memory()
    program.ranks()[1].send_signal(signal.SIGINT)
    program.ended_with_a_checkpoint()
    assert program.out.count("stopped at step") == 1
    assert program.out.count("training Catch-v0") == 1
    assert "rank 1: step" not in program.out
    assert "exitcode  : 130" in program.err  # as torchrun's table has it
    assert json.loads((program.run / "config.json").read_text())["ranks"] == 2


@pytest.mark.slow
def test_a_run_of_two_ranks_counts_both_and_a_finished_one_says_so(torchrun):
    program = torchrun("--total_steps", 20_000).finish()
    assert program.code == 0, program.story()
    last = rows(program.run)[-1]
    assert 20_000 <= last["step"] < 20_000 + 2 * 4 * 20
    # Nine steps a game; a second's games of the other rank may be missing at the end, and all that were begun.
    assert last["episodes"] > 0.6 * 20_000 / 9
    assert "finished at step" in program.out
    again = torchrun("--total_steps", 20_000, "--resume", "auto").finish()
    assert again.code == 0
    assert again.out.count("is finished") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_reaches_all(torchrun, number):
    program = torchrun().updated()
    program.send(number)
    program.ended_with_a_checkpoint()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(TRIES))
def test_a_rank_killed_at_any_moment_ends_all_and_the_run_goes_on(torchrun, seed):
    generator = random.Random(seed)
    program, victim = torchrun(), generator.randrange(2)
    if seed % 2:
        program.updated()
        time.sleep(generator.uniform(0, 3))
    else:
        wait_until(lambda: len(program.ranks()) == 2, "both ranks")
        time.sleep(generator.uniform(0, 12))
    reported = program.learned()
    program.ranks()[victim].kill()
    program.finish(END)
    assert program.code == 1
    if reported and victim == 1:
        assert program.ended_with_a_checkpoint()
        assert "another rank is lost" in program.err or "stopped at step" in program.out, program.story()
    before = checkpoint.saved(program.run)
    again = torchrun("--resume", "auto", "--total_steps", 6_000 + (program.last()[0] if before else 0)).finish()
    assert again.code == 0, again.story()
    assert f"{'resuming' if before else 'training'} Catch-v0" in again.out


@pytest.mark.slow
def test_torchrun_starts_a_killed_rank_again_and_the_run_goes_on(torchrun):
    program = torchrun("--resume", "auto", "--total_steps", 30_000, restarts=2).updated()
    program.ranks()[1].kill()
    program.finish()
    assert program.code == 0, program.story()
    assert "failed at step" in program.out or "stopped at step" in program.out
    assert "resuming Catch-v0" in program.out
    assert rows(program.run)[-1]["step"] >= 30_000


@pytest.mark.slow
def test_a_rank_that_hangs_is_lost_after_a_while(torchrun):
    program = torchrun("--rank_timeout", 20).updated()
    program.ranks()[1].suspend()
    program.ended_with_a_checkpoint()
    assert "no answer for" in program.err


@pytest.mark.slow
def test_a_rank_that_waits_for_another_hears_signals(torchrun):
    program = torchrun("--rank_timeout", 600).updated()
    ranks = program.ranks()
    ranks[1].suspend()
    time.sleep(2.0)
    began = time.monotonic()
    ranks[0].send_signal(signal.SIGINT)
    wait_until(lambda: not ranks[0].is_running() or ranks[0].status() == psutil.STATUS_ZOMBIE, "rank 0's end", END)
    assert time.monotonic() - began < END
    ranks[1].kill()
    assert program.ended_with_a_checkpoint()


@pytest.mark.slow
def test_ranks_end_with_torchrun(torchrun):
    program = torchrun().updated()
    program.process.kill()
    program.ended_with_a_checkpoint()


@pytest.mark.slow
def test_four_ranks_on_any_machine_start_and_end_cleanly(torchrun):
    program = torchrun("--total_steps", 8_000, ranks=4).finish()
    assert program.code == 0, program.story()
    assert rows(program.run)[-1]["step"] >= 8_000
    program = torchrun("--resume", "auto", "--total_steps", 1_000_000, ranks=4)
    program.wait_for("resuming")
    program.send(signal.SIGINT)
    program.finish(END)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_actor_processes", 0), "without torchrun"),
        (("--env", "Nowhere-v7"), "Nowhere"),
        (("--resume", "nothing", "--savedir", "nowhere"), "no run"),
    ],
)
def test_bad_input_is_one_line(torchrun, flags, words):
    program = torchrun(*flags).finish()
    lines = [line for line in program.err.splitlines() if "run.py: error:" in line]
    assert len(lines) == 1, program.story()
    assert words in lines[0]
    assert not program.run.exists()


@pytest.mark.slow
def test_nan_in_one_rank_skips_the_update_on_all(torchrun, tmp_path):
    (tmp_path / "spoilt.py").write_text(
        "import os, gymnasium, numpy as np\n"
        "class Env(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)\n"
        "    action_space = gymnasium.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        self.number = 0\n"
        "        return np.zeros(3, np.float32), {}\n"
        "    def step(self, action):\n"
        "        self.number += 1\n"
        "        bad = os.environ['RANK'] == '1' and self.number == 99\n"
        "        return np.zeros(3, np.float32), np.nan if bad else 1.0, self.number == 100, False, {}\n"
    )
    program = torchrun("--env", "spoilt:Env", "--total_steps", 4_000, "--max_skipped_updates", 3).finish()
    assert program.code == 0, program.story()
    skipped = int(rows(program.run)[-1]["skipped_updates"])
    assert skipped > 0
    for who in ("", "rank 1: "):
        assert (
            sum(line.startswith(f"{who}update") and "skipped" in line for line in program.out.splitlines()) == skipped
        )
    assert "NaN or infinity in the reward" in program.out
