"""Atari: ale-py's vector environment, as beast sets it up, against Gymnasium's own wrappers; lives, resets, seeds.

Pixels: on the machine where this was written both paths agree to the last bit. Their two OpenCV builds may round the
INTER_AREA mean differently elsewhere, so one grey level of 255 is let through, and nothing else is.
"""

import numpy as np
import pytest

from beast.core.errors import EnvError
from beast.envs import EnvChoice, atari

GREY_LEVELS = 1


def aligned_single(env_id, seed):
    """`make_single`, whose emulator is seeded and reset as AtariVectorEnv does with a single no-op draw of 0."""
    env = atari.make_single(env_id, noop_max=0)
    emulator = env.unwrapped
    reset, seeds = emulator.reset, iter([seed])

    def aligned_reset(*, seed=None, options=None):
        for first_seed in seeds:  # only once: later games go on with the emulator's own stream
            emulator.ale.setInt("random_seed", first_seed)
            emulator.load_game()
        return reset()

    emulator.reset = aligned_reset
    return env


@pytest.mark.parametrize(
    ("env_id", "steps", "games", "rewards"),
    [
        ("PongNoFrameskip-v4", 1100, 1, {-1, 1}),
        ("BreakoutNoFrameskip-v4", 500, 2, {1}),
        ("SpaceInvadersNoFrameskip-v4", 800, 1, {5, 10, 15, 20, 25, 30}),
        ("FreewayNoFrameskip-v4", 200, 0, set()),  # no FIRE among its actions
        ("ALE/Breakout-v5", 500, 2, {1}),  # sticky actions: equal only if the probability is
    ],
)
def test_the_fast_path_plays_what_gymnasiums_wrappers_play(env_id, steps, games, rewards):
    group, single = atari.make_vector(env_id, [3], noop_max=0), aligned_single(env_id, 3)
    output, (stack, info) = group.reset(), single.reset()
    generator, over, ended, seen, lost = np.random.default_rng(0), False, 0, set(), 0
    for step in range(steps):
        difference = np.abs(output.observation[0].astype(int) - stack).max()
        assert difference <= GREY_LEVELS, f"row {step}: pixels differ by up to {difference}"
        action = generator.integers(group.action_space.n)
        output = group.step(np.array([action]))
        assert output.first[0] == over
        if over:
            (stack, info), reward, terminated, truncated, lost_life = single.reset(), 0.0, False, False, False
        else:
            lives = info["lives"]
            stack, reward, terminated, truncated, info = single.step(action)
            lost_life = info["lives"] < lives
        over = terminated or truncated
        assert output.reward[0] == reward
        assert output.terminated[0] == (terminated or lost_life)
        assert output.truncated[0] == truncated
        assert np.isnan(output.episode_return[0]) == (not over)
        ended += over
        lost += lost_life
        seen |= {reward} - {0.0}
    assert ended >= games  # so that an end, a reset and rewards were among the rows compared
    assert seen == rewards
    assert lost >= 5 * games or "Breakout" not in env_id


# -- names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "sticky"),
    [
        ("PongNoFrameskip-v4", 0.0),
        ("Pong-v4", 0.0),
        ("PongDeterministic-v4", 0.0),
        ("ALE/Pong-v5", 0.25),
        ("PongNoFrameskip-v0", 0.25),
    ],
)
def test_every_form_of_an_id_is_the_same_game_with_its_own_stickiness(env_id, sticky, monkeypatch):
    import ale_py.vector_env

    made = []

    class Recorded(ale_py.vector_env.AtariVectorEnv):
        def __init__(self, game, **arguments):
            made.append((game, arguments))
            super().__init__(game, **arguments)

    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", Recorded)
    choice = EnvChoice(env_id)
    group = choice.make_vector([0, 1])
    assert choice.is_atari
    assert choice.action_repeat == 4
    assert group.observation_space.shape == (4, 84, 84)
    assert group.observation_spec.stack == 4
    ((game, arguments),) = made
    assert (game, arguments["repeat_action_probability"], arguments["frameskip"]) == ("pong", sticky, 4)


def test_without_sticky_actions_a_game_depends_on_its_actions_alone():
    def frames(env_id):
        group = atari.make_vector(env_id, [1, 2], noop_max=0)
        group.reset()
        generator = np.random.default_rng(0)
        return [group.step(np.repeat(generator.integers(6), 2)).observation.copy() for _ in range(60)]

    assert all((a == b).all() for a, b in frames("PongNoFrameskip-v4"))
    assert not all((a == b).all() for a, b in frames("ALE/Pong-v5"))


@pytest.mark.parametrize(("game", "actions"), [("Pong", 6), ("Breakout", 4), ("Freeway", 3), ("Seaquest", 18)])
def test_the_action_set_is_the_games_own_or_all_eighteen(game, actions):
    for full, count in ((False, actions), (True, 18)):
        choice = EnvChoice(f"{game}NoFrameskip-v4", full_action_set=full)
        assert choice.make_vector([0]).action_space.n == count
        assert choice.make_single().action_space.n == count


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Catch-v0", "NoSuchDeterministic-v4", "some.module:make"])
def test_other_ids_are_not_atari(env_id):
    assert not EnvChoice(env_id).is_atari


def test_env_kwargs_reach_the_vector_environment():
    group = EnvChoice("PongNoFrameskip-v4", {"img_height": 42, "img_width": 40, "stack_num": 2}).make_vector([0])
    assert group.observation_space.shape == (2, 42, 40)
    assert group.observation_spec.stack == 2
    colour = EnvChoice("PongNoFrameskip-v4", {"grayscale": False}).make_vector([0])
    assert colour.observation_space.shape == (4, 84, 84, 3)
    assert colour.reset().observation.shape == (1, 4, 84, 84, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"no_such_thing": 1}, "does not take these --env_kwargs"), ({"autoreset_mode": "SameStep"}, "NEXT_STEP")],
)
def test_env_kwargs_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(EnvError, match=message):
        EnvChoice("PongNoFrameskip-v4", arguments).make_vector([0])


# -- lives ----------------------------------------------------------------------------------------------------------------


def breakout(evaluation):
    """Rows of random Breakout until two games are over, and the lives on each."""
    group = atari.make_vector("BreakoutNoFrameskip-v4", [4], evaluation=evaluation)
    lives_after, step = [], group.vector.step

    def watched(actions):
        result = step(actions)
        lives_after.append(int(result[4]["lives"][0]))
        return result

    group.vector.step = watched
    generator, outputs = np.random.default_rng(2), [group.reset()]
    while sum(not np.isnan(output.episode_return[0]) for output in outputs) < 2:
        outputs.append(group.step(generator.integers(4, size=1)))
    return outputs[1:], lives_after


def test_a_lost_life_ends_the_return_but_not_the_game():
    outputs, lives = breakout(evaluation=False)
    ends = [lives[t] for t, output in enumerate(outputs) if output.terminated[0]]
    assert ends == [4, 3, 2, 1, 0, 4, 3, 2, 1, 0]
    first_rows = [t for t, output in enumerate(outputs) if output.first[0]]
    assert len(first_rows) == 1  # one reset, between the two games
    assert lives[first_rows[0] - 1] == 0
    assert lives[first_rows[0]] == 5


def test_in_evaluation_a_lost_life_ends_nothing():
    outputs, lives = breakout(evaluation=True)
    assert [lives[t] for t, output in enumerate(outputs) if output.terminated[0]] == [0, 0]
    assert set(lives) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_return_is_that_of_the_full_game_and_is_reported_once(evaluation):
    outputs, _ = breakout(evaluation)
    reward = np.array([output.reward[0] for output in outputs])
    (at,) = np.nonzero(~np.isnan([output.episode_return[0] for output in outputs]))
    first, second = at[0] + 1, at[1] + 1
    returns = [float(outputs[t].episode_return[0]) for t in at]
    assert returns == [reward[:first].sum(), reward[first:second].sum()]
    assert sum(returns) > 0
    assert [float(outputs[t].episode_steps[0]) for t in at] == [first, second - first - 1]  # less the first row


# -- resets ---------------------------------------------------------------------------------------------------------------


def test_stacks_are_blank_before_a_games_first_frame():
    group = atari.make_vector("PongNoFrameskip-v4", [0, 1], max_num_frames_per_episode=40)
    observation = group.reset().observation
    for _ in range(2):  # the first game, and the one after an automatic reset
        for shown in range(1, 6):
            lit = observation.reshape(2, 4, -1).any(axis=-1)
            assert lit.tolist() == [[k >= 4 - shown for k in range(4)]] * 2
            output = group.step(np.array([0, 1]))
            observation = output.observation
        while not output.first.any():
            output = group.step(np.array([0, 1]))
        assert output.first.all()
        observation = output.observation


def test_a_game_at_its_frame_limit_is_truncated_and_not_terminated():
    group = atari.make_vector("PongNoFrameskip-v4", [0], max_num_frames_per_episode=40)
    group.reset()
    outputs = [group.step(np.array([2])) for _ in range(12)]
    assert [output.truncated[0] for output in outputs] == [False] * 9 + [True] + [False] * 2
    assert not any(output.terminated[0] for output in outputs)
    assert [output.first[0] for output in outputs] == [False] * 10 + [True, False]
    assert outputs[9].episode_steps[0] == 10


def opening_frames(env_id, seed, games, **arguments):
    """How many frames the emulator ran before each game's first row. The games are one frame long."""
    vector = atari.make_vector(env_id, [seed], max_num_frames_per_episode=1, **arguments).vector
    _, info = vector.reset(seed=np.array([seed]))
    frames = [int(info["episode_frame_number"][0])]
    while len(frames) < games:
        vector.step(np.array([0]))  # the only step of this game
        frames.append(int(vector.step(np.array([0]))[4]["episode_frame_number"][0]))
    return frames


def test_each_game_opens_with_up_to_thirty_no_ops():
    frames = opening_frames("FreewayNoFrameskip-v4", seed=1, games=120)
    assert (min(frames), max(frames)) == (0, 30)
    assert len(set(frames)) > 25


def test_fire_is_one_of_the_thirty_frames_where_the_game_has_it():
    frames = opening_frames("PongNoFrameskip-v4", seed=1, games=120)
    assert (min(frames), max(frames)) == (1, 30)
    assert set(opening_frames("PongNoFrameskip-v4", seed=1, games=20, noop_max=0)) == {1}


def test_the_seed_fixes_the_no_ops_of_all_games():
    frames = [opening_frames("FreewayNoFrameskip-v4", seed, games=10) for seed in (1, 2, 3)]
    assert len({tuple(row) for row in frames}) == 3
    assert frames[0] == opening_frames("FreewayNoFrameskip-v4", 1, games=10)


def test_fire_on_reset_serves_the_ball_of_breakout():
    def loses_a_life_without_moving(**arguments):
        group = atari.make_vector("BreakoutNoFrameskip-v4", [0], **arguments)
        group.reset()
        return any(group.step(np.array([0])).terminated[0] for _ in range(100))

    assert loses_a_life_without_moving()
    assert not loses_a_life_without_moving(use_fire_reset=False)


# -- seeds ----------------------------------------------------------------------------------------------------------------


def trajectory(env_id, seeds, steps=120):
    """`[steps, E, ...]` newest frames under the same actions."""
    group = atari.make_vector(env_id, seeds)
    group.reset()
    generator = np.random.default_rng(0)
    return np.stack(
        [group.step(np.full(len(seeds), generator.integers(4))).observation[:, -1].copy() for _ in range(steps)]
    )


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "ALE/Breakout-v5"])
def test_the_same_seed_plays_the_same_game_alone_or_in_a_group(env_id):
    together = trajectory(env_id, [11, 12, 13])
    np.testing.assert_array_equal(together, trajectory(env_id, [11, 12, 13]))
    np.testing.assert_array_equal(together[:, 1:2], trajectory(env_id, [12]))


@pytest.mark.parametrize("env_id", ["PongNoFrameskip-v4", "ALE/Breakout-v5"])
def test_different_seeds_play_different_games(env_id):
    frames = trajectory(env_id, [11, 12, 13])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (frames[:, a] != frames[:, b]).any()
