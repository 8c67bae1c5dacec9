"""Catch: the toy that the learning tests stand on."""

import gymnasium
import numpy as np
import pytest

from beast.envs import EnvChoice
from beast.envs.catch import Catch


def episode(env, policy, seed=None):
    """Boards and rewards of one episode; `policy` maps a board to an action."""
    board, _ = env.reset(seed=seed)
    boards, rewards, info, over = [board], [], {}, False
    while not over:
        board, reward, over, truncated, info = env.step(policy(board))
        assert not truncated
        boards.append(board)
        rewards.append(reward)
    return boards, rewards, info


def follow(board):
    """Towards the ball: it is the only pixel above the bottom row."""
    rows, columns = np.nonzero(board)
    return int(np.sign(columns[0] - columns[-1])) + 1 if rows[0] < rows[-1] else 1


@pytest.mark.parametrize(("rows", "columns"), [(10, 5), (6, 3), (5, 4)])
def test_an_episode_takes_rows_minus_one_steps_and_pays_at_its_end_alone(rows, columns):
    _, rewards, _ = episode(Catch(rows, columns), lambda board: 1, seed=0)
    assert len(rewards) == rows - 1
    assert rewards[:-1] == [0.0] * (rows - 2)
    assert rewards[-1] in (-1.0, 1.0)


def test_following_the_ball_always_catches_it():
    env = Catch()
    for seed in range(30):
        _, rewards, info = episode(env, follow, seed)
        assert (rewards[-1], info) == (1.0, {"caught": 1.0})


def test_standing_still_catches_the_middle_column_alone():
    env = Catch()
    env.reset(seed=0)
    results = {}
    for _ in range(60):
        boards, rewards, info = episode(env, lambda board: 1)
        results[int(np.nonzero(boards[0][0])[0][0])] = rewards[-1], info["caught"]
    missed = (-1.0, 0.0)
    assert results == {0: missed, 1: missed, 2: (1.0, 1.0), 3: missed, 4: missed}


def test_the_ball_falls_one_row_a_step_and_the_paddle_stops_at_the_walls():
    boards, *_ = episode(Catch(), lambda board: 0, seed=1)
    start = int(np.nonzero(boards[0][0])[0][0])
    for row, board in enumerate(boards[:-1]):
        assert board[row, start] == 255
        assert np.nonzero(board[-1])[0].tolist() == [max(2 - row, 0)]


def test_a_seed_fixes_the_whole_sequence_of_balls():
    def balls(seed):
        env = Catch()
        env.reset(seed=seed)
        return [int(np.argmax(env.reset()[0][0])) for _ in range(40)]

    assert balls(3) == balls(3)
    assert balls(3) != balls(4)
    assert set(balls(3)) == {0, 1, 2, 3, 4}


def test_boards_are_new_arrays_each_step():
    boards, *_ = episode(Catch(), lambda board: 1, seed=0)
    assert len({board.tobytes() for board in boards}) == len(boards)


def test_observations_lie_in_their_space_and_the_rendering_enlarges_them():
    env = gymnasium.make("Catch-v0", render_mode="rgb_array")
    board, _ = env.reset(seed=0)
    assert board in env.observation_space
    picture = env.render()
    assert picture.shape == (160, 80, 3)
    np.testing.assert_array_equal(picture[8::16, 8::16, 0], board)


def test_the_share_of_caught_balls_is_a_metric():
    group = EnvChoice("Catch").make_vector([0])
    assert group.metric_names[0] == "caught"
    output = group.reset()
    while np.isnan(output.episode_return[0]):
        output = group.step(np.array([follow(output.observation[0])]))
    assert output.metrics[:, 0].tolist() == [1.0]
