"""The synthetic environment costs, ends and fails as it is told."""

import subprocess
import sys
import time

import numpy as np
import pytest

from beast.core.errors import EnvError
from beast.envs import EnvChoice
from beast.envs.synthetic import Synthetic


def lengths(env, episodes, seed=0):
    """Lengths of so many episodes."""
    env.reset(seed=seed)
    found, at = [], 0
    while len(found) < episodes:
        _, _, terminated, truncated, _ = env.step(0)
        at += 1
        if terminated or truncated:
            found.append(at)
            at = 0
            env.reset()
    return found


def test_episodes_are_as_long_as_told_and_end_as_told():
    assert lengths(Synthetic(episode_steps=7, shape=(2,)), 3) == [7, 7, 7]
    env = Synthetic(episode_steps=1, truncate=True, shape=(2,))
    env.reset(seed=0)
    assert env.step(0)[2:4] == (False, True)
    env = Synthetic(episode_steps=1, shape=(2,))
    env.reset(seed=0)
    assert env.step(0)[2:4] == (True, False)


def test_varied_episodes_spread_over_the_whole_range_around_the_mean():
    found = lengths(Synthetic(episode_steps=40, vary=4.0, shape=(2,)), 200)
    assert min(found) >= 10
    assert max(found) <= 160
    assert min(found) < 14 < 120 < max(found)
    assert np.exp(np.mean(np.log(found))) == pytest.approx(40, rel=0.2)  # log-uniform: the geometric mean is the middle


def test_observations_lie_in_their_space_and_follow_the_seed():
    def frames(seed):
        env = Synthetic(shape=(3, 5), actions=4)
        first, _ = env.reset(seed=seed)
        assert first in env.observation_space
        assert env.action_space.n == 4
        return np.stack([first, *(env.step(0)[0] for _ in range(5))])

    np.testing.assert_array_equal(frames(1), frames(1))
    assert (frames(1) != frames(2)).any()
    assert len({frame.tobytes() for frame in frames(1)}) == 6


def test_a_step_costs_that_much_processor_time():
    env = Synthetic(step_ms=2.0, reset_ms=30.0, shape=(2,))
    start = time.thread_time()
    env.reset(seed=0)
    reset = time.thread_time() - start
    for _ in range(20):
        env.step(0)
    steps = time.thread_time() - start - reset
    assert 0.030 <= reset < 0.060
    assert 0.040 <= steps < 0.080


def test_a_sleeping_step_costs_time_but_no_processor():
    env = Synthetic(step_ms=20.0, sleep=True, shape=(2,))
    env.reset(seed=0)
    cpu, wall = time.thread_time(), time.monotonic()
    for _ in range(5):
        env.step(0)
    assert time.monotonic() - wall >= 0.1
    assert time.thread_time() - cpu < 0.05


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        ("raise", RuntimeError, "as it was asked to"),
        ("shape", EnvError, r"shape \(1, 3\)"),
        ("dtype", EnvError, "dtype float64"),
    ],
)
def test_it_fails_at_the_step_it_was_told_to_and_not_before(fail, error, message):
    group = EnvChoice("Synthetic", {"fail_after": 4, "fail": fail, "episode_steps": 2, "shape": (2, 3)}).make_vector(
        [0]
    )
    group.reset()
    for _ in range(4):  # three steps, and the reset between the second and the third
        group.step(np.array([0]))
    with pytest.raises(error, match=message):
        group.step(np.array([0]))


def test_it_gives_nan_when_told_to():
    group = EnvChoice("Synthetic", {"fail_after": 2, "fail": "nan", "shape": (3,)}).make_vector([0])
    group.reset()
    assert [bool(np.isnan(group.step(np.array([0])).reward[0])) for _ in range(3)] == [False, True, True]


def test_it_exits_with_code_three_when_told_to():
    script = (
        "from beast.envs.synthetic import Synthetic\n"
        "env = Synthetic(fail_after=1, fail='exit', shape=(2,))\n"
        "env.reset(); env.step(0); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")


def test_it_hangs_when_told_to():
    script = (
        "from beast.envs.synthetic import Synthetic\n"
        "env = Synthetic(fail_after=1, fail='hang', shape=(2,))\n"
        "env.reset(); print('stepping', flush=True); env.step(0); print('came back', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "stepping\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.5)
        process.kill()
        assert process.stdout.read() == ""
