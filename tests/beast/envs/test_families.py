"""The well-known suites, their real environments: named, put into rows, trained by both beasts, evaluated and filmed."""

from __future__ import annotations

import configparser
import importlib.util
import sys

import gymnasium
import numpy as np
import pytest
from conftest import ROOT, assert_one_line
from gymnasium import spaces
from row_table import check_table, unrolls

from beast.core.errors import EnvError
from beast.envs import EnvChoice, code_named_by, families
from beast.envs.spaces import Codes, Words
from beast.run.resolve import resolve_config
from beast.settings.config import EnvironmentConfig
from beast.settings.flags import Parser

TINY = ["--num_actors", 2, "--num_actor_processes", 0, "--unroll_length", 5, "--batch_size", 2, "--total_steps", 30]

# Environment, flags, model, whether its package may be missing here.
ENVIRONMENTS = {
    "minigrid": ("MiniGrid-Empty-5x5-v0", {"max_episode_steps": 9}, "multi_input"),
    "babyai": ("minigrid:BabyAI-GoToRedBall-v0", {"max_episode_steps": 9}, "multi_input"),
    "minatar": ("MinAtar/Breakout-v1", {}, "multi_input"),
    "minatar-planes": ("MinAtar/Seaquest-v1", {"max_episode_steps": 9}, "multi_input"),
    "mujoco": ("HalfCheetah-v5", {"max_episode_steps": 9}, "mlp"),
    "box2d": ("LunarLander-v3", {"max_episode_steps": 9}, "mlp"),
    "box2d-picture": ("CarRacing-v3", {"max_episode_steps": 9, "resize": "40"}, "atari_shallow"),
    "vizdoom": ("VizdoomBasic-v1", {"max_episode_steps": 9, "resize": "30x40"}, "multi_input"),
    "vizdoom-buttons": (
        "VizdoomBasic-MultiBinary-v1", {"max_episode_steps": 9, "resize": "36", "grayscale": True}, "multi_input"
    ),
    "miniworld": ("MiniWorld-Hallway-v0", {"max_episode_steps": 9}, "atari_shallow"),
    "crafter": ("CrafterReward-v1", {"max_episode_steps": 9}, "atari_shallow"),
}  # fmt: skip
SLOW = {"box2d-picture", "miniworld", "crafter"}
EACH = [
    pytest.param(*values, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name, values in ENVIRONMENTS.items()
]


def needs(env):
    """Skips the test, with the reason, where the suite's package is not installed."""
    family = families.family_of(env)
    if importlib.util.find_spec(family.module.partition(".")[0]) is None:
        pytest.skip(f"{family.name} is not installed (.[{family.extra}])")


def arguments(flags):
    return [
        part for name, value in flags.items() for part in ([f"--{name}"] if value is True else [f"--{name}", value])
    ]


@pytest.mark.parametrize(("env", "flags", "model"), EACH)
def test_rows_keep_to_the_table(env, flags, model):
    needs(env)
    task, built, batches, episodes = unrolls({"env": env, **flags}, count=3)
    assert task.model.model == model
    assert check_table(task, built, batches) > 0
    assert episodes
    if "max_episode_steps" in flags:
        assert max(episode.episode_steps for episode in episodes) <= 9


@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
@pytest.mark.parametrize(("env", "flags", "model"), EACH)
def test_both_beasts_train_on_it(call, env, flags, model, trainer):
    needs(env)
    done = call("--env", env, "--trainer", trainer, "--disable_checkpoint", *TINY, *arguments(flags))
    assert done.code == 0, done.err
    assert f"with {model}," in done.out
    assert "finished at step 30 of 30" in done.out


@pytest.mark.slow
@pytest.mark.parametrize(("env", "flags", "model"), EACH)
def test_it_is_evaluated_and_filmed(call, tmp_path, env, flags, model):
    needs(env)
    kwargs = ["--env_kwargs", '{"render_mode": "rgb_array"}']  # both may say it
    done = call("--env", env, "--xpid", "r", *TINY, *kwargs, *arguments(flags))
    assert done.code == 0, done.err
    done = call("evaluate", "--checkpoint", "r", "--episodes", 2, "--video", "videos")
    assert done.code == 0, done.err
    assert (tmp_path / "videos" / "episode.mp4").stat().st_size > 500


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["monobeast", "polybeast"])
@pytest.mark.parametrize("name", ["minigrid", "mujoco", "vizdoom"])
def test_actor_processes_find_it_too(start, name, trainer):
    env, flags, _ = ENVIRONMENTS[name]
    needs(env)
    processes = ["--num_actors", 2, "--num_actor_processes", 1, "--unroll_length", 5, "--batch_size", 2]
    program = start("--env", env, "--trainer", trainer, *processes, "--total_steps", 30, *arguments(flags)).finish()
    assert program.code == 0, program.story()


DOCUMENTED = [
    (words[0], words[1:], *model.split(", "))
    for cells in (line.split("|") for line in (ROOT / "docs" / "environments.md").read_text().splitlines())
    if len(cells) == 6 and (command := cells[3].strip().strip("`")).startswith("python run.py --env ")
    for words, model in [(command.split()[3:], cells[4].strip())]
]


@pytest.mark.parametrize(("env", "flags", "model", "preset"), DOCUMENTED, ids=[env for env, *_ in DOCUMENTED])
def test_what_the_documentation_says_of_a_suite_is_so(env, flags, model, preset):
    if families.family_of(env) is not None:
        needs(env)
    parser = Parser()
    parser.add_dataclass(EnvironmentConfig)
    config, _ = resolve_config(parser.parse(["--env", env, *flags]))
    assert (config.learner.model, config.run.preset) == (model, preset)


def test_every_suite_is_documented_and_has_an_extra():
    documented = {family.name for env, *_ in DOCUMENTED if (family := families.family_of(env))}
    assert documented == {family.name for family in families.FAMILIES}
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    for family in families.FAMILIES:
        assert family.package in setup["options.extras_require"][family.extra]


# -- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MiniGrid-Empty-5x5-v0", "MiniGrid-Empty-5x5", "minigrid:MiniGrid-Empty-5x5-v0"])
def test_minigrid_may_be_named_with_and_without_its_package_and_version(name):
    needs(name)
    assert EnvChoice(name).make_vector([0]).action_space == spaces.Discrete(7)
    assert EnvChoice(name).preset == "minigrid"


@pytest.mark.parametrize(
    "name", ["MinAtar/Breakout-v1", "minatar.gym:MinAtar/Breakout-v1", "minatar:MinAtar/Breakout-v1"]
)
def test_minatar_may_be_named_by_any_of_its_modules(name):
    needs(name)
    assert EnvChoice(name).make_vector([0]).observation_space.shape == (10, 10, 4)


@pytest.mark.parametrize(
    ("env", "package", "extra"),
    [
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("minigrid:MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("MinAtar/Breakout-v1", "minatar", "minatar"),
        ("VizdoomBasic-v1", "vizdoom", "vizdoom"),
        ("MiniWorld-Hallway-v0", "miniworld", "miniworld"),
        ("CrafterReward-v1", "crafter", "crafter"),
        ("HalfCheetah-v5", "mujoco", "mujoco"),
        ("LunarLander", "box2d==2.3.10", "box2d"),
    ],
)
def test_a_suite_that_is_not_installed_is_answered_with_what_installs_it(
    call, tmp_path, monkeypatch, env, package, extra
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_one_line(call("--env", env, *TINY), f"--env {env} needs", f"pip install '{package}'", f"'.[{extra}]'")
    assert not (tmp_path / "runs").exists()


def test_a_suite_that_cannot_be_imported_is_one_line_too(call, monkeypatch):
    needs("MinAtar/Breakout-v1")
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    assert_one_line(call("--env", "MinAtar/Breakout-v1", *TINY), "MinAtar cannot be imported", "minatar")


def test_a_misspelt_id_of_a_suite_is_answered_with_the_nearest_one():
    needs("MiniGrid-Empty-5x5-v0")
    with pytest.raises(EnvError, match="did you mean MiniGrid-Empty-5x5-v0"):
        EnvChoice("MiniGrid-Emty-5x5-v0").make_vector([0])


def test_an_id_of_the_users_own_package(own_module):
    name = own_module(
        "own_ids",
        "import gymnasium\n"
        "gymnasium.register('OwnIds/Thing-v3', 'beast.envs.catch:Catch', kwargs={'rows': 6})\n"
        "gymnasium.register('OwnThing-v0', 'beast.envs.catch:Catch', kwargs={'rows': 7})\n",
    )
    try:
        assert EnvChoice(f"{name}:OwnIds/Thing-v3").make_vector([0]).observation_space.shape == (6, 5)
        assert EnvChoice(f"{name}:OwnIds/Thing").make_vector([0]).observation_space.shape == (6, 5)
        assert EnvChoice(f"{name}:OwnThing-v0", {"columns": 3}).make_vector([0]).observation_space.shape == (7, 3)
        with pytest.raises(EnvError, match=r"importing own_ids registers no OwnThing-v1; did you mean OwnThing-v0"):
            EnvChoice(f"{name}:OwnThing-v1").make_vector([0])
    finally:
        for key in ("OwnIds/Thing-v3", "OwnThing-v0"):
            del gymnasium.registry[key]


def test_an_atari_id_may_name_its_package():
    assert EnvChoice("ale_py:ALE/Pong-v5").is_atari
    assert EnvChoice("ale_py:ALE/Pong-v5").make_vector([0]).observation_spec.stack == 4


@pytest.mark.parametrize(
    ("name", "wrappers", "modules"),
    [
        ("PongNoFrameskip-v4", "", ()),
        ("MiniGrid-Empty-5x5-v0", "", ()),
        ("CartPole", "", ()),
        ("my_pkg.my_module:make", "", ("my_pkg.my_module",)),
        ("my_pkg:Thing-v0", "a.b:wrap, c:Wrapper", ("my_pkg", "a.b", "c")),
        ("Catch-v0", "a:wrap", ("a",)),
    ],
)
def test_which_code_a_name_brings_is_known_before_any_is_imported(name, wrappers, modules):
    assert code_named_by(name, wrappers) == modules


# -- what a suite says of its observations ----------------------------------------------------------------------------------


def test_minigrids_grids_are_codes_and_its_missions_words():
    needs("MiniGrid-Empty-5x5-v0")
    group = EnvChoice("MiniGrid-GoToDoor-5x5-v0").make_vector([0])
    space = group.observation_space
    assert isinstance(space["image"], Codes)
    assert isinstance(space["mission"], Words)
    reset = group.reset()
    mission = group.vector.envs[0].unwrapped.mission
    np.testing.assert_array_equal(reset.observation["mission"][0], space["mission"].encode(mission))
    assert (reset.observation["mission"][0] > 0).sum() == len(mission.split())
    assert 1 < reset.observation["image"].max() <= 10


@pytest.mark.parametrize(
    ("wrapper", "kind"),
    [("ImgObsWrapper", Codes), ("FullyObsWrapper,minigrid.wrappers:ImgObsWrapper", Codes),
     ("RGBImgObsWrapper,minigrid.wrappers:ImgObsWrapper", spaces.Box)],
)  # fmt: skip
def test_minigrids_wrappers_say_whether_it_is_codes_or_a_picture(wrapper, kind):
    needs("MiniGrid-Empty-5x5-v0")
    flags = {"env": "MiniGrid-Empty-5x5-v0", "wrapper": f"minigrid.wrappers:{wrapper}"}
    task, model, batches, _ = unrolls(flags, count=1)
    assert type(task.model.observation_space) is kind
    check_table(task, model, batches)


def test_an_old_style_suite_is_seeded_and_says_how_it_ended():
    needs("CrafterReward-v1")
    choice = EnvChoice("CrafterReward-v1", {"length": 3})
    group = choice.make_vector([3, 4, 3])
    start = group.reset().observation
    np.testing.assert_array_equal(start[0], start[2])
    assert (start[0] != start[1]).any()
    outputs = [group.step(np.zeros(3, np.int64)) for _ in range(3)]
    assert outputs[-1].truncated.all()  # by its length, alive
    assert not outputs[-1].terminated.any()
