"""Workers: what the parent hears of a child that fails, dies or hangs, and what is left when the parent dies."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from beast.core.errors import WorkerError
from beast.processes.child import NICENESS
from beast.processes.status import StatusBoard
from beast.processes.supervisor import Worker, Workers

PATIENCE = 30.0  # seconds for what takes milliseconds on a machine that is not busy


# -- targets: what the children run ---------------------------------------------------------------------------------------


def work(context, life=0):
    """Makes one step for each look at the stop sign, 1000 in later incarnations."""
    while not context.stopping:
        context.beat(1000 if life else 1)
        time.sleep(0.01)


def fail_at_once(context):
    raise ValueError("no luck")


def fail_later(context, life):
    context.beat(1)
    if life == 0:
        raise ValueError(f"no luck in {life}\nsecond line")
    work(context, life)


def fail_with_eof(context):
    raise EOFError("the environment's own pipe broke")


def exit_three(context):
    os._exit(3)


def print_and_fail(context):
    sys.stdout.write("last words")  # without an end of line: into a buffer
    raise ValueError("no luck")


def hang_at_once(context, life):
    if life == 0:
        time.sleep(600)
    work(context, life)


def fall_silent(context, life):
    context.beat(1)
    if life == 0:
        time.sleep(600)
    work(context, life)


def hold_the_interpreter(context):
    """Sleeps in C without letting go of the GIL: no Python thread of this process runs again."""
    context.beat(1)
    ctypes.PyDLL(None).sleep(600)


def be_deaf(context):
    while True:
        context.beat(1)
        time.sleep(0.01)


def time_stages(context):
    for stage, seconds in (("environment", 0.05), ("wait", 0.02)):
        with context.time(stage):
            time.sleep(seconds)
    context.beat(3 + context.index)
    work_quietly(context)


def work_quietly(context):
    while not context.stopping:
        context.beat()
        time.sleep(0.01)


def show_niceness(context):
    context.beat(100 + os.nice(0))
    work_quietly(context)


# -- the parent's side ----------------------------------------------------------------------------------------------------


class Crew:
    """Workers, their board, what was told, and which exits were reported."""

    def __init__(self, places=2, max_restarts=3, timeout=60.0, window=600.0):
        self.board = StatusBoard(places)
        self.told, self.exits = [], []
        self.workers = Workers(self.board, max_restarts, timeout, self.told.append, window)

    def add(self, target, restartable=False):
        index = len(self.workers.workers)

        def on_exit():
            self.exits.append(index)
            return f"lost {index}"

        arguments = (lambda count: (count,)) if restartable else (lambda count: ())
        self.workers.add(Worker(f"worker-{index}", index, target, arguments, on_exit))
        return self.workers.workers[index]

    def steps(self, index=0):
        return int(self.board.arrays["steps"][index])

    def until(self, condition, check=False):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"it did not happen within {PATIENCE:.0f} s; told: {self.told}"
            if check:
                self.workers.check()
            time.sleep(0.01)

    def until_a_step(self, index=0):
        steps = self.steps(index)
        self.until(lambda: self.steps(index) > steps)

    def heartbeat(self, index=0):
        return float(self.board.arrays["heartbeat"][index])

    def make_heartbeat_older(self, seconds, index=0):
        self.board.arrays["heartbeat"][index] -= seconds

    def until_error(self):
        with pytest.raises(WorkerError) as caught:
            self.until(lambda: False, check=True)
        return caught.value


@pytest.fixture
def crew():
    crews = []

    def make(**arguments):
        crews.append(Crew(**arguments))
        return crews[-1]

    yield make
    for one in crews:
        one.workers.kill()
        for worker in one.workers.workers:
            worker.process.join(PATIENCE)
            assert not worker.process.is_alive()


def kill(worker, number=signal.SIGKILL):
    os.kill(worker.process.pid, number)
    worker.process.join(PATIENCE)


# -- failures -------------------------------------------------------------------------------------------------------------


def test_an_exception_before_the_first_step_ends_the_run_with_the_workers_own_traceback(crew):
    one = crew()
    one.add(fail_at_once)
    error = one.until_error()
    assert str(error) == "worker-0 failed: ValueError: no luck, before its first step"
    assert "--- traceback of worker-0 ---" in error.details
    assert 'in fail_at_once\n    raise ValueError("no luck")' in error.details
    assert one.exits == [0]


def test_an_exception_later_is_told_with_its_traceback_and_the_worker_restarted(crew):
    one = crew()
    worker = one.add(fail_later, restartable=True)
    pid = worker.process.pid
    one.until(lambda: one.steps() > 1000, check=True)
    assert "in fail_later" in one.told[0]
    assert "second line" in one.told[0]
    assert one.told[1] == (
        f"worker-0 (pid {pid}) failed: ValueError: no luck in 0; lost 0; restarting it (1 of 3)"  # the first line alone
    )
    assert one.workers.restarts == 1


def test_an_eof_error_of_the_workers_own_code_is_an_error_like_any_other(crew):
    one = crew()
    one.add(fail_with_eof)
    error = one.until_error()
    assert "EOFError: the environment's own pipe broke" in str(error)
    assert "in fail_with_eof" in error.details


def test_a_worker_that_exits_is_reported_with_its_exit_code(crew):
    one = crew()
    one.add(exit_three)
    assert str(one.until_error()) == "worker-0 ended with exit code 3, before its first step"


@pytest.mark.parametrize(("number", "hint"), [("SIGKILL", r" \(out of memory\?\)"), ("SIGTERM", "")])
def test_a_killed_worker_is_replaced_by_a_new_incarnation(crew, number, hint):
    one = crew()
    first, second = one.add(work, restartable=True), one.add(work, restartable=True)
    one.until(lambda: one.steps(0) and one.steps(1))
    pid, other = first.process.pid, second.process.pid
    kill(first, getattr(signal, number))
    one.workers.check()
    (line,) = one.told
    assert re.fullmatch(rf"worker-0 \(pid {pid}\) was killed by {number}{hint}; lost 0; restarting it \(1 of 3\)", line)
    assert (one.exits, first.count, second.count) == ([0], 1, 0)
    assert first.process.pid != pid
    assert second.process.pid == other
    one.until(lambda: one.steps(0) > 1000)
    assert one.steps(1) < 1000


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_one_that_is_killed_before_its_first_step_is_replaced_too(crew, number):
    one = crew()
    worker = one.add(hang_at_once, restartable=True)
    kill(worker, getattr(signal, number))
    one.workers.check()
    assert len(one.told) == 1
    assert f"was killed by {number}" in one.told[0]
    assert one.exits == [0]
    one.until(lambda: one.steps() > 1000, check=True)


def test_one_that_hangs_before_its_first_step_is_replaced_too(crew):
    one = crew()
    one.add(hang_at_once, restartable=True)
    one.make_heartbeat_older(1000)
    one.workers.check()
    assert "gave no sign of life for" in one.told[0]
    one.until(lambda: one.steps() > 1000, check=True)


def test_one_that_is_killed_before_its_first_step_again_and_again_ends_the_run(crew):
    one = crew(max_restarts=2)
    worker = one.add(hang_at_once)
    for _ in range(2):
        kill(worker)
        one.workers.check()
    kill(worker)
    with pytest.raises(WorkerError, match="restarted 2 times already"):
        one.workers.check()


def test_what_a_worker_printed_is_not_lost(tmp_path):
    script = tmp_path / "parent.py"
    kinds = "targets.work, targets.be_deaf, targets.hold_the_interpreter, targets.fall_silent"
    script.write_text(PARENT.replace(kinds, "targets.print_and_fail"))
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    env = {**os.environ, "PYTHONPATH": path}
    env.pop("PYTHONUNBUFFERED", None)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env, timeout=PATIENCE)
    assert done.stdout == "last words"
    assert "no luck, before its first step" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone shows it so")
def test_processes_bear_their_names(crew):
    one = crew()
    worker = one.add(work)
    one.until(one.steps)
    assert psutil.Process(worker.process.pid).name() == "worker-0"


def test_one_death_more_than_max_restarts_ends_the_run(crew):
    one = crew(max_restarts=2)
    worker = one.add(work, restartable=True)
    for death in range(3):
        one.until_a_step()
        kill(worker)
        if death < 2:
            one.workers.check()
    pid = worker.process.pid
    with pytest.raises(WorkerError, match=rf"worker-0 \(pid {pid}\) .*SIGKILL.*lost 0; restarted 2 times already"):
        one.workers.check()
    assert one.exits == [0, 0, 0]
    assert one.workers.restarts == 2
    assert worker.process.pid == pid  # and no other was started


def test_restarts_are_counted_for_each_worker_alone(crew):
    one = crew(max_restarts=1)
    both = [one.add(work, restartable=True), one.add(work, restartable=True)]
    for worker in both:
        one.until_a_step(worker.index)
        kill(worker)
        one.workers.check()
    assert [worker.count for worker in both] == [1, 1]


def test_deaths_longer_ago_than_the_window_are_forgiven(crew):
    one = crew(max_restarts=1, window=0.0)
    worker = one.add(work, restartable=True)
    for _ in range(3):
        one.until_a_step()
        kill(worker)
        time.sleep(0.01)
        one.workers.check()
    assert worker.count == 3


def test_a_worker_without_a_sign_of_life_is_killed_and_replaced(crew):
    one = crew(timeout=60.0)
    worker = one.add(fall_silent, restartable=True)
    one.until(one.steps)
    process = worker.process
    one.make_heartbeat_older(50)
    one.workers.check()
    assert worker.process is process  # not before its time
    one.make_heartbeat_older(11)
    one.workers.check()
    assert process.exitcode == -signal.SIGKILL
    (line,) = one.told
    assert re.fullmatch(
        rf"worker-0 \(pid {process.pid}\) gave no sign of life for 6\d s; lost 0; restarting it \(1 of 3\)", line
    )
    one.until(lambda: one.steps() > 1000, check=True)  # and the new one is given its time anew
    assert one.workers.restarts == 1


def test_a_worker_that_beats_without_steps_is_alive(crew):
    one = crew(timeout=60.0)
    one.add(work_quietly)
    for _ in range(3):
        one.make_heartbeat_older(1000)
        old = one.heartbeat()
        one.until(lambda old=old: one.heartbeat() > old + 900)
        one.workers.check()
    assert one.told == []


def test_workers_are_replaced_when_their_fork_server_is_killed(crew):
    one = crew()
    workers = [one.add(work, restartable=True), one.add(work, restartable=True)]
    one.until(lambda: one.steps(0) and one.steps(1))
    old = [psutil.Process(worker.process.pid) for worker in workers]
    server = psutil.Process(old[0].ppid())
    assert server.pid != os.getpid()
    server.kill()
    one.until(lambda: all(one.steps(i) > 1000 for i in (0, 1)), check=True)
    assert all(gone(process) for process in old)
    assert [worker.count for worker in workers] == [1, 1]


# -- the end --------------------------------------------------------------------------------------------------------------


def test_stop_waits_for_workers_that_leave_and_says_nothing(crew):
    one = crew()
    workers = [one.add(work), one.add(work)]
    one.until(lambda: one.steps(0) and one.steps(1))
    start = time.monotonic()
    one.workers.stop(deadline=PATIENCE)
    assert time.monotonic() - start < PATIENCE
    assert [worker.process.exitcode for worker in workers] == [0, 0]
    assert one.told == []


def test_stop_kills_who_is_late_and_names_them(crew):
    one = crew(places=3)
    workers = [one.add(be_deaf), one.add(work), one.add(be_deaf)]
    one.until(lambda: all(one.steps(i) for i in range(3)))
    start = time.monotonic()
    one.workers.stop(deadline=3.0)
    assert 3.0 <= time.monotonic() - start < 5.9  # one deadline for all, not one for each
    assert [worker.process.exitcode for worker in workers] == [-9, 0, -9]
    assert one.told == ["worker-0, worker-2 did not stop within 3 s and was killed"]


def test_stop_says_nothing_of_one_that_had_not_begun_to_work(crew):
    one = crew()
    worker = one.add(hang_at_once, restartable=True)
    one.workers.stop(deadline=0.5)
    assert worker.process.exitcode == -signal.SIGKILL
    assert one.told == []


def test_time_in_which_the_parent_did_not_run_is_held_against_nobody(crew, monkeypatch):
    one = crew(timeout=60.0)
    worker = one.add(fall_silent, restartable=True)
    one.until(one.steps)
    one.workers.check()
    now, away = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now() + away)
    away = 1000.0  # all were stopped
    one.workers.check()
    assert one.told == []
    for _ in range(70):  # but one that stays silent when all go on is found as ever
        away += 1.0
        one.workers.check()
        if one.told:
            break
    assert "gave no sign of life for 6" in one.told[0]
    assert worker.count == 1


def test_kill_ends_deaf_and_dead_workers_alike(crew):
    one = crew()
    workers = [one.add(be_deaf), one.add(be_deaf)]
    one.until(lambda: one.steps(0) and one.steps(1))
    kill(workers[0])
    one.workers.kill()
    for worker in workers:
        worker.process.join(PATIENCE)
        assert worker.process.exitcode == -signal.SIGKILL


def test_no_signal_is_sent_to_the_number_of_a_process_that_is_dead_already(crew, monkeypatch):
    one = crew()
    worker = one.add(work, restartable=True)
    one.until(one.steps)
    kill(worker)
    dead, sent, real = worker.process.pid, [], os.kill
    monkeypatch.setattr(os, "kill", lambda pid, number: (sent.append(pid), real(pid, number)))
    one.workers.check()
    one.workers.kill()
    assert dead not in sent  # by now it may be anybody's
    assert sent == [worker.process.pid]


def test_children_ignore_ctrl_c(crew):
    one = crew()
    worker = one.add(work)
    one.until(one.steps)
    for _ in range(3):
        os.kill(worker.process.pid, signal.SIGINT)
    steps = one.steps()
    one.until(lambda: one.steps() > steps + 10)
    one.workers.check()
    assert one.told == []


def test_children_yield_to_the_parent_on_a_full_machine(crew):
    one = crew(places=1)
    one.add(show_niceness)
    one.until(one.steps)
    assert one.steps() == 100 + min(19, os.nice(0) + NICENESS)


PARENT = """
import sys, time
from beast.processes.status import StatusBoard as Board; from beast.processes.supervisor import Worker, Workers
import test_supervisor as targets

if __name__ == "__main__":
    kinds = [targets.work, targets.be_deaf, targets.hold_the_interpreter, targets.fall_silent]
    board = Board(len(kinds))
    workers = Workers(board, 0, 60.0, print)
    for index, kind in enumerate(kinds):
        arguments = (0,) if kind is targets.fall_silent else ()
        workers.add(Worker(f"w{index}", index, kind, lambda count, a=arguments: a, str))
    while not board.arrays["steps"].all():
        workers.check()
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_no_descendant_outlives_a_parent_that_was_killed(tmp_path, number):
    script = tmp_path / "killed_parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    with parent:
        assert parent.stdout.readline() == "ready\n"
        descendants = psutil.Process(parent.pid).children(recursive=True)
        children = [process for process in descendants if process.ppid() != parent.pid]
        assert len(children) == 4
        assert len(descendants) == 5  # and the fork server
        children[0].suspend()  # neither does a stopped process stay, nor one that lets no Python thread run
        parent.send_signal(getattr(signal, number))
        parent.wait(PATIENCE)
        # All go at once, in 1 s on a machine that has nothing else to do.
        end = time.monotonic() + PATIENCE
        while not all(gone(process) for process in descendants) and time.monotonic() < end:
            time.sleep(0.02)
        left = [process for process in descendants if not gone(process)]
        for process in left:
            process.kill()
        assert left == []


def gone(process):
    """Whether a process has ended; a zombie has, nobody may be there to reap it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- the board ------------------------------------------------------------------------------------------------------------


def test_the_board_adds_up_steps_and_seconds_of_its_workers(crew):
    one = crew()
    one.add(time_stages)
    one.add(time_stages)
    one.until(lambda: one.steps(0) and one.steps(1))
    assert (one.steps(0), one.steps(1)) == (3, 4)
    seconds = one.board.seconds()
    assert set(seconds) == set(StatusBoard.STAGES)
    assert 0.10 <= seconds["environment"] < PATIENCE
    assert 0.04 <= seconds["wait"] < PATIENCE
    assert seconds["inference"] == seconds["store"] == 0.0


def test_children_are_forked_from_a_server_and_not_from_the_parent(crew):
    one = crew()
    worker = one.add(work)
    assert psutil.Process(worker.process.pid).ppid() != os.getpid()
    assert psutil.Process(psutil.Process(worker.process.pid).ppid()).ppid() == os.getpid()
