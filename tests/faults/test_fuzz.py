"""Random bad input: flags, environments, run folders. One clear line each time, or none needed; never a traceback of ours."""

from __future__ import annotations

import dataclasses
import json
import typing
import zipfile
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import Outcome, assert_one_line, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beast import commands
from beast.core.errors import ConfigError, EnvError, ModelError
from beast.envs.base import vector_of
from beast.run import checkpoint, finding
from beast.run.resolve import resolve_config
from beast.settings.config import Config

FUZZ = settings(
    derandomize=True, database=None, deadline=None, max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
GROUPS = Config.sections("impala", "mlp").values()
FIELDS = {field.name: field for group in GROUPS for field in dataclasses.fields(group)}
WORDS = st.sampled_from(
    ["", "0", "-1", "1", "2.5", "1e400", "nan", "inf", "none", "true", "[]", "{}", '{"a": 1}', "é", "-"]
)


def check_line(error: Exception) -> None:
    assert len(str(error).splitlines()) == 1


def check_status(end: SystemExit) -> None:
    assert end.code == 2


def check_raised(script: list[Any]) -> None:
    assert "raise" in script


# -- flags ------------------------------------------------------------------------------------------------------------


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(sorted(FIELDS)), WORDS | st.text(max_size=8)), max_size=4))
def test_any_text_for_any_flag(pairs):
    """It is parsed and all is checked, or it is refused with one line."""
    arguments = [part for name, text in pairs for part in (f"--{name}={text}",)]
    try:
        values = commands.train_parser("run.py", "", arguments).parse(arguments)
        Config.from_flat(values | {"algorithm": "impala", "num_buffers": None})
    except SystemExit as end:
        check_status(end)
    except (ConfigError, ModelError) as error:
        check_line(error)


@st.composite
def flag_values(draw: Any) -> dict[str, Any]:
    """Of the right type, of any size that costs no memory."""
    values = {}
    for name in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=5, unique=True)):
        hint = str(typing.get_type_hints(owner(name))[name])
        if "bool" in hint:
            values[name] = draw(st.booleans())
        elif "int" in hint:
            values[name] = draw(st.integers(-2, 70))
        elif "float" in hint:
            values[name] = draw(st.floats(allow_nan=False) | st.sampled_from([0.0, -1.0, 0.5]))
        elif "dict" in hint:
            values[name] = draw(st.dictionaries(st.text(max_size=5), st.integers() | st.none(), max_size=2))
        else:
            values[name] = draw(
                st.sampled_from(["mlp", "impala", "auto", "tf", "classic", "none"]) | st.text(max_size=6)
            )
    return values


def owner(name: str) -> type:
    return next(g for g in GROUPS if name in {f.name for f in dataclasses.fields(g)})


@FUZZ
@given(flag_values())
def test_any_values_settle_or_are_refused_in_one_line(values):
    try:
        config, _ = resolve_config({"env": "Catch-v0", "device": "cpu"} | values)
    except (ConfigError, EnvError, ModelError) as error:
        check_line(error)
    else:
        assert Config.from_flat(json.loads(json.dumps(config.flat()))) == config  # what a checkpoint hands on


# -- environments -----------------------------------------------------------------------------------------------------

SPACE = gymnasium.spaces.Dict(
    image=gymnasium.spaces.Box(0, 255, (2, 3), np.uint8),
    speed=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
    kind=gymnasium.spaces.Discrete(4),
)
GOOD = {"image": np.zeros((2, 3), np.uint8), "speed": np.zeros(2, np.float32), "kind": 1}
LEAVES = st.sampled_from(
    [None, "text", 3, 3.5, np.nan, [1.0, 2.0], np.zeros((2, 3)), np.zeros(2, np.float32), np.full(2, np.inf, np.float32),
     np.zeros((2, 3), np.uint8), np.full(2, 7.0, np.float32), np.zeros(0), object(), {"a": 1}, np.int8(2), True]
)  # fmt: skip
OBSERVATIONS = (
    st.just(GOOD) | st.dictionaries(st.sampled_from([*GOOD, "more"]), LEAVES).map(lambda d: GOOD | d) | LEAVES
)
STEPS = st.tuples(
    OBSERVATIONS,
    st.sampled_from([0.0, 1, np.nan, np.inf, 1e300, np.float64(2), True]),  # the reward
    st.booleans(),
    st.booleans(),
    st.sampled_from([{}, {"score": 3}, {"score": None}, {"score": "high"}, {"score": np.nan}, {"other": [1]}]),
)


class Scripted(gymnasium.Env[Any, Any]):
    """Answers what it was told to, or raises."""

    metadata = {"render_modes": []}  # noqa: RUF012
    metric_names = ("score",)
    observation_space, action_space = SPACE, gymnasium.spaces.Discrete(2)

    def __init__(self, script: list[Any]) -> None:
        self._script = iter(script)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return GOOD, {}

    def step(self, action: Any) -> Any:
        answer = next(self._script, "end")
        if answer == "raise":
            raise LookupError("the map is lost")
        return (GOOD, 0.0, False, False, {}) if answer == "end" else answer


@FUZZ
@given(st.lists(STEPS | st.just("raise"), max_size=4))
def test_whatever_an_environment_answers_is_whole_or_an_error_of_its_own(script):
    """Rows of exactly the announced shapes and dtypes, whatever numbers are in them; else one line, or its own exception."""
    group = vector_of([lambda: Scripted(script), lambda: Scripted([])], [0, 1])
    group.reset()
    for _ in range(len(script) + 1):
        try:
            env = group.step(np.array([0, 1]))
        except EnvError as error:
            check_line(error)
            break
        except LookupError:
            check_raised(script)
            break
        assert env.observation["image"].shape == (2, 2, 3)
        assert (env.observation["speed"].dtype, env.reward.dtype) == (np.float32, np.float32)
        assert (env.metrics.shape, env.metrics.dtype) == ((2, len(group.metric_names)), np.float32)
        assert not np.isinf(env.episode_return).any()
        assert not (env.terminated & env.truncated).any()


# -- run folders ------------------------------------------------------------------------------------------------------


def damaged(data: bytes, at: float, how: str) -> bytes:
    place = int(at * len(data))
    return {
        "cut": data[:place],
        "zeros": data[:place] + b"\0" * (len(data) - place),
        "swap": data[:place] + b'"},[\xff\n' + data[place + 5 :],
        "twice": data + data[place:],
        "nothing": b"",
    }[how]


HOW = st.sampled_from(["cut", "zeros", "swap", "twice", "nothing"])


@pytest.mark.parametrize("name", ["config.json", "logs.csv", "log.txt"])
def test_a_damaged_run_folder_is_named_or_does_not_matter(call, tmp_path, name):
    """And the checkpoint is there after it in any case."""
    flags = ["--num_actor_processes", 0, "--num_actors", 2, "--batch_size", 2]
    assert call("--env", "Catch-v0", *flags, "--xpid", "r", "--total_steps", 80, "--report_every", 0.001).code == 0
    run = tmp_path / "runs" / "r"
    good = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    checkpoints = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}

    @settings(FUZZ, max_examples=12)
    @given(st.floats(0.0, 1.0), HOW)
    def check(at: float, how: str) -> None:
        for path, data in good.items():
            path.write_bytes(damaged(data, at, how) if path.name == name else data)
        done: Outcome = call("--resume", "r", "--total_steps", 120, *flags[:2])
        if done.code:
            assert name == "config.json"
            assert done.err.count("\n") == 1
            assert "config.json is damaged" in done.err
        else:
            assert not done.err
            assert "finished at step 120" in done.out
        for path, data in checkpoints.items():
            assert path.name == "latest.pt" or path.read_bytes() == data
        (run / "checkpoints" / "step_000000000120.pt").unlink(missing_ok=True)
        latest = run / "checkpoints" / "latest.pt"
        latest.unlink()
        latest.symlink_to("step_000000000080.pt")

    check()


SMALL = ["--env", "Catch-v0", "--num_actor_processes", 0, "--num_actors", 2, "--batch_size", 2]
DEEP = "[" * 100_000
LOGS = [
    "step\n²\n", "step,step\n1,2\n", "step\n" + "9" * 5_000 + "\n", "step\n80,1,2,3\n", "step\n\0\n",
    'step\n"80\n', "\n\n\n",
    "step\n" + "1" * 200_000 + "\n", "step,a\n80," + "x" * 200_000 + "\n", "a\rstep\r80\r",
    "step\n-1\n", "step\n1e3\n", "step\n80.5\n",
    ",,,\n,,,\n", "time,step\n1,80\n2\n3,80,9\n", "step\n80\nstep\n80\n", "\ufeffstep\n80\n",
]  # fmt: skip
CONFIGS = [
    DEEP, "null", "NaN", '"flags"', '{"flags": []}', '{"flags": {}, "resumed": 3}', '{"flags": {}, "resumed": null}',
    '{"flags": {}, "resumed": {"a": 1}}', "9" * 5_000, '{"flags": {"seed": 1e999}}', '{"flags": ' + DEEP, "[{}]", "\ufeff{}",
]  # fmt: skip


@pytest.mark.parametrize(("name", "texts"), [("logs.csv", LOGS), ("config.json", CONFIGS)], ids=["logs", "config"])
def test_odd_but_readable_files_of_a_run(call, tmp_path, name, texts):
    run = tmp_path / "runs" / "r"
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    good = (run / "config.json").read_text()
    for number, text in enumerate(texts):
        (run / "config.json").write_text(good)
        (run / name).write_text(text)
        done = call("--resume", "r", "--total_steps", 120 + 40 * number)
        if done.code:
            assert_one_line(done, f"runs/r/{name}")
        else:
            assert not done.err
            assert [row["step"] for row in rows(run)][-1:] == [120 + 40 * number]
        assert call("evaluate", "--checkpoint", "r", "--episodes", 1).code == 0


# -- checkpoints ------------------------------------------------------------------------------------------------------

ODD = [
    None, True, -1, 0, 3, 10**30, 2.5, float("nan"), float("inf"), "", "a\nb\x1b[31m", "mlp",
    [], [None], [[1]], {}, {"a": 1}, {1: 2},
    torch.zeros(0), torch.zeros(3), torch.full((2, 2), float("nan")), torch.zeros(2, dtype=torch.complex64),
    torch.tensor(3), torch.zeros(3, 3).to_sparse(), torch.zeros(1).expand(1_000_000, 1_000),
    torch.zeros(7, dtype=torch.uint8),
]  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every node of a nested value."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return [path] * bool(path) + [place for key, value in inner for place in places(value, (*path, key))]


def with_odd(tree: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy that is changed at one place."""
    if isinstance(tree, tuple):
        tree = list(tree)
    tree = tree.copy()
    if len(place) == 1:
        change(tree, place[0])
    else:
        tree[place[0]] = with_odd(tree[place[0]], place[1:], change)
    return tree


@pytest.mark.parametrize("examples", [12, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("flags", [[], ["--use_lstm", "--momentum", 0.5]], ids=["plain", "lstm"])
def test_checkpoints_that_hold_odd_things(call, tmp_path, flags, examples):
    """Whole as a file, and wrong inside: one line each, or it does not matter. What is odd is never saved again."""
    assert call(*SMALL, *flags, "--xpid", "r", "--total_steps", 100).code == 0
    run = tmp_path / "runs" / "r"
    (path,) = checkpoint.saved(run)
    good, files = (
        checkpoint.load(path),
        {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and not p.is_symlink()},
    )
    nodes = places(good)
    # Each class of node is as likely as any other: there are many games, and few of anything else.
    kinds: dict[str, list[Any]] = {}
    for place in nodes:
        kinds.setdefault(str([key for key in place if isinstance(key, str)]), []).append(place)
    refused = 0

    @settings(FUZZ, max_examples=examples)
    @given(st.sampled_from(sorted(kinds)), st.integers(0, 10**6), st.sampled_from([*range(len(ODD)), "gone", "more"]))
    def check(kind: str, number: int, what: Any) -> None:
        nonlocal refused
        place = kinds[kind][number % len(kinds[kind])]

        def change(tree: Any, key: Any) -> None:
            if what == "gone":
                del tree[key]
            elif what == "more" and isinstance(tree, dict):
                tree["more of it"] = 3
            elif what == "more":
                tree.append(3)
            else:
                tree[key] = ODD[what]

        for old in run.rglob("*"):
            if old.is_file() and old not in files:
                old.unlink()
        for file, data in files.items():
            file.write_bytes(data)
        torch.save(with_odd(good, place, change), path)
        played = call("evaluate", "--checkpoint", path, "--episodes", 1)
        if played.code:
            assert_one_line(played)
        done = call("--resume", path, "--total_steps", 140, "--report_every", 1e-6)
        if done.code:
            refused += 1
            assert_one_line(done)
        else:
            assert not done.err
            assert checkpoint.load(finding.find(str(run), ""))["learner"]["steps"] >= 140 or "is finished" in done.out
        assert all(row["step"] >= 0 for row in rows(run))

    check()
    assert refused > examples // 5


@pytest.mark.parametrize("value", [10**30, -(10**30), float("nan"), [[1], [2, 3]], {}, "x"])
def test_odd_bounds_of_a_space(call, tmp_path, value):
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    (path,) = checkpoint.saved(tmp_path / "runs" / "r")
    state = checkpoint.load(path)
    state["spaces"]["observation"]["low"] = value
    torch.save(state, path)
    done = call("evaluate", "--checkpoint", path, "--episodes", 1, "--env", "Catch-v0", "--env_kwargs", '{"rows": 9}')
    assert_one_line(done)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_tensor_of_tensors(call, tmp_path):
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    (path,) = checkpoint.saved(tmp_path / "runs" / "r")
    state = checkpoint.load(path)
    weights = state["learner"]["model"]
    weights["policy.weight"] = torch.nested.nested_tensor(list(weights["policy.weight"]))
    torch.save(state, path)
    for command in (["evaluate", "--checkpoint", path, "--episodes", 1], ["--resume", path, "--total_steps", 120]):
        assert_one_line(call(*command), "(learner.model)")


@pytest.mark.parametrize("name", ["config", "env_kwargs", "reports", "past", "signature"])
def test_a_checkpoint_nested_deeper_than_anyone_can_read(call, tmp_path, name):
    """Lists in lists, which no pickler would write, but every unpickler reads."""
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    (path,) = checkpoint.saved(tmp_path / "runs" / "r")
    state = checkpoint.load(path)
    where = state["config"] if name == "env_kwargs" else state
    where[name] = "a mark to be replaced"
    torch.save(state, path)
    mark = b"X\x15\x00\x00\x00a mark to be replaced"
    deep = b"]" * 50_000 + b"a" * 49_999  # EMPTY_LIST, APPEND
    if name == "env_kwargs":
        deep = b"}X\x01\x00\x00\x00a" + deep + b"s"
    with zipfile.ZipFile(path) as records:
        content = {record: records.read(record) for record in records.namelist()}
    with zipfile.ZipFile(path, "w") as records:
        for record, data in content.items():
            assert not record.endswith("data.pkl") or data.count(mark) == 1
            records.writestr(record, data.replace(mark, deep))
    for command in (["evaluate", "--checkpoint", path, "--episodes", 1], ["--resume", path, "--total_steps", 120]):
        done = call(*command)
        if done.code:
            assert_one_line(done)


def test_actions_that_a_game_does_not_have_are_not_replayed(call, tmp_path):
    """The emulator does not look: it would hang, or read what is not its own."""
    flags = ["--env", "PongNoFrameskip-v4", *SMALL[2:]]
    assert call(*flags, "--xpid", "r", "--total_steps", 80).code == 0
    (path,) = checkpoint.saved(tmp_path / "runs" / "r")
    state = checkpoint.load(path)
    state["past"]["actions"][:] = 200
    torch.save(state, path)
    done = call("--resume", "r", "--total_steps", 160)
    assert done.code == 0, done.err
    assert "goes on with fresh episodes" in done.out


def test_a_name_of_any_length_is_still_one_line(call, tmp_path):
    assert call(*SMALL, "--xpid", "r", "--total_steps", 80).code == 0
    (path,) = checkpoint.saved(tmp_path / "runs" / "r")
    state = checkpoint.load(path)
    for name in ("env", "model", "algorithm"):
        torch.save(state | {"config": state["config"] | {name: "a" * 100_000}}, path)
        done = call("evaluate", "--checkpoint", path, "--episodes", 1)
        assert done.code
        assert len(done.err) < 1_100


@pytest.mark.parametrize("kwargs", ['{"rows": true}', '{"rows": 1}', '{"columns": 0}', '{"rows": 2.5}'])
def test_catch_of_no_size(call, kwargs):
    assert_one_line(call(*SMALL, "--env_kwargs", kwargs, "--total_steps", 80), "2 rows and 1 column")
