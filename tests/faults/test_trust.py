"""Files that somebody else made: reading, evaluating and resuming them runs nothing that the reader did not name or trust."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_one_line

from beast.report import files
from beast.run import checkpoint, finding, trust

SERIAL = ["--num_actor_processes", 0]
CATCH = ["--env", "Catch-v0", "--num_actors", 2, "--batch_size", 2, *SERIAL]

ENV = """
    import pathlib
    from beast.envs.catch import Catch
    pathlib.Path("IMPORTED").touch()

    def make(rows=10, colour="red", render_mode=None):
        pathlib.Path("MADE").touch()
        return Catch(rows)
"""
MODEL = """
    import pathlib
    from beast.models.mlp import Model
    pathlib.Path("IMPORTED").touch()
"""
ALGORITHM = """
    import pathlib
    from beast.core.algorithms.impala import Config, loss
    pathlib.Path("IMPORTED").touch()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This user's state folder, empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "beast"


@pytest.fixture
def stranger(call, own, tmp_path, monkeypatch) -> Any:
    """Make a run `r` as another user would: with code of theirs, or with what they write into it afterwards."""
    package = tmp_path / "theirs"
    package.mkdir()
    for name, source in (("env", ENV), ("model", MODEL), ("algorithm", ALGORITHM)):
        (package / f"{name}.py").write_text("\n".join(line[4:] for line in source.splitlines()))

    def make(*flags: Any, **written: Any) -> Path:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "their state"))
        done = call(*CATCH, *flags, "--total_steps", 80, "--xpid", "r")
        assert done.code == 0, done.err
        run = tmp_path / "runs" / "r"
        if written:
            state = checkpoint.load(finding.find(str(run), ""))
            state["config"] |= written
            checkpoint.save(run, state, 80, 3)
        for mark in ("IMPORTED", "MADE"):
            (tmp_path / mark).unlink(missing_ok=True)
        monkeypatch.setenv("XDG_STATE_HOME", str(own.parent))
        return run

    return make


def forget(*modules: str) -> None:
    """As if this process were a new one."""
    import sys

    for name in list(sys.modules):
        if name.partition(".")[0] in ("theirs", *modules):
            del sys.modules[name]


def ran(folder: Path) -> bool:
    return (folder / "IMPORTED").exists() or (folder / "MADE").exists()


EVALUATE = ["evaluate", "--checkpoint", "r", "--episodes", 1]
RESUME = ["--resume", "r", "--total_steps", 160]
BOTH = pytest.mark.parametrize("command", [EVALUATE, RESUME], ids=["evaluate", "resume"])


# -- what a stranger names --------------------------------------------------------------------------------------------


@BOTH
def test_a_command_that_a_checkpoint_names_is_not_run(call, tmp_path, stranger, command):
    stranger(env="os:system", env_kwargs={"command": f"touch {tmp_path}/IMPORTED"})
    assert_one_line(call(*command), "os:system", "--env_kwargs", "not made by you on this machine", "--trust")
    assert not ran(tmp_path)


@BOTH
@pytest.mark.parametrize(
    "named",
    [
        ["--env", "theirs.env:make"],
        ["--model", "theirs.model"],
        ["--algorithm", "theirs.algorithm"],
        ["--env", "theirs.env:make", "--env_kwargs", '{"colour": "blue"}', "--model", "theirs.model"],
    ],
    ids=["env", "model", "algorithm", "env, kwargs, model"],
)
def test_code_that_a_checkpoint_names(call, tmp_path, stranger, command, named):
    """Refused; run if it is trusted, or if the reader names the same; what was trusted is from then on one's own."""
    stranger(*named)
    forget()
    assert_one_line(call(*command), *named[::2], "not made by you on this machine", "--trust")
    assert not ran(tmp_path)
    if len(named) > 2:
        assert_one_line(call(*command, *named[:2]), "--env_kwargs", "--model theirs.model")
        assert not ran(tmp_path)
    done = call(*command, *named)
    assert done.code == 0, done.err
    assert ran(tmp_path)
    if command is EVALUATE:
        assert call(*command).code == 2  # looking at it made it nobody else's
    done = call(*command, "--trust")
    assert done.code == 0, done.err


@BOTH
@pytest.mark.parametrize(
    ("written", "word"),
    [
        ({"env": ":system"}, "--env"),
        ({"env": "theirs.env:make:more"}, "--env"),
        ({"env": ["os:system"]}, "--env"),
        ({"model": "models/../theirs/model"}, "--model"),
        ({"model": "../theirs/model"}, "--model"),
        ({"model": "os.path"}, "--model"),
        ({"model": "..theirs.model"}, "--model"),
        ({"model": "mlp\n"}, "--model"),
        ({"model": "mlp\x00.x"}, "--model"),
        ({"model": 3}, "--model"),
        ({"algorithm": "theirs.algorithm"}, "--algorithm"),
        ({"algorithm": ["theirs", "."]}, "--algorithm"),
        ({"algorithm": "impala/../../theirs/algorithm"}, "--algorithm"),
        ({"trainer": "theirs"}, "--trainer"),
        ({"trainer": "theirs.env"}, "--trainer"),
        ({"env": "GymV26Environment-v0", "env_kwargs": {"env_id": "theirs.env:make"}}, "--env_kwargs"),
        ({"env_kwargs": {"rows": {"entry_point": "theirs.env:make"}}}, "--env_kwargs"),
        ({"env_kwargs": [1]}, "--env_kwargs"),
    ],
    ids=str,
)
def test_names_with_odd_characters(call, tmp_path, stranger, command, written, word):
    stranger(**written)
    forget()
    done = call(*command)
    assert_one_line(done, word, "--trust")
    assert done.err.strip("\n").isprintable()
    assert not ran(tmp_path)


@BOTH
def test_built_in_names_need_no_trust(call, stranger, command):
    stranger("--env", "Catch-v0", "--env_kwargs", '{"rows": 7}', "--model", "mlp")
    done = call(*command)
    assert (done.code, done.err) == (0, "")


def test_a_registered_id_imports_nothing_from_the_folder_one_stands_in(call, tmp_path, stranger):
    """Gymnasium's own ids import what may not be installed: a file of that name may lie in a folder that was unpacked."""
    stranger(env="phys2d/CartPole-v1")
    (tmp_path / "jax.py").write_text("import pathlib; pathlib.Path('IMPORTED').touch()\n")
    if call(*EVALUATE).code == 0:
        pytest.skip("jax is installed here")
    assert not ran(tmp_path)


# -- what one made oneself --------------------------------------------------------------------------------------------


def test_ones_own_runs_need_no_trust_wherever_they_lie(call, own, stranger, tmp_path):
    """`stranger` makes only the modules here: the run is this user's."""
    flags = ["--env", "theirs.env:make", "--env_kwargs", '{"colour": "blue"}', "--model", "theirs.model"]
    assert call(*CATCH, *flags, "--total_steps", 80, "--xpid", "mine").code == 0
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "runs" / "mine", tmp_path / "elsewhere" / "r")
    forget()
    for command in (EVALUATE, RESUME):
        done = call(*command, "--savedir", "elsewhere")
        assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("change", [{"env": "os:system"}, {"env_kwargs": {"colour": "green"}}, {"model": "os.path"}])
def test_a_signature_holds_for_what_was_signed_alone(call, own, stranger, tmp_path, change):
    assert call(*CATCH, "--env", "theirs.env:make", "--total_steps", 80, "--xpid", "r").code == 0
    path = finding.find("r", "runs").resolve()
    state = checkpoint.load(path)
    assert trust.is_own(state["config"], state["signature"])
    assert not trust.is_own(state["config"] | {"callback": "os:system"}, None)
    state["config"] |= change
    files.write_tensors(path, state)
    assert_one_line(call(*EVALUATE), *(f"--{name}" for name in change), "--trust")
    for signature in (None, "", "é", 3, "0" * 64, [state["signature"]]):
        files.write_tensors(path, state | {"signature": signature})
        assert_one_line(call(*EVALUATE), "--trust")


def test_the_key_is_this_users_alone(own):
    config = {"env": "my:env"}
    before = os.umask(0)
    try:
        signature = trust.sign(config)
    finally:
        os.umask(before)
    key = own / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert own.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in own.iterdir()] == ["key"]
    assert len(key.read_bytes()) == 32
    assert trust.is_own(config, signature)
    assert trust.sign(config) == signature
    key.unlink()
    assert not trust.is_own(config, signature)
    assert not key.exists()  # reading makes none


@pytest.mark.parametrize("odd", ["readable", "short", "folder", "link", "fifo", "another's"])
def test_a_key_that_others_may_know_is_refused(call, own, stranger, monkeypatch, odd):
    assert call(*CATCH, "--env", "theirs.env:make", "--total_steps", 80, "--xpid", "r").code == 0
    key = own / "key"
    if odd == "readable":
        key.chmod(0o640)
    elif odd == "short":
        key.write_bytes(b"k")
    elif odd == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: os.stat(key).st_uid + 1)
    else:
        key.rename(own / "moved")
        {"folder": key.mkdir, "link": lambda: key.symlink_to(own / "moved"), "fifo": lambda: os.mkfifo(key)}[odd]()
    assert trust.sign({"env": "my:env"}) is None
    assert_one_line(call(*EVALUATE), "--trust", str(key), "is refused")
    done = call(*RESUME, "--trust")
    assert done.code == 0, done.err  # a run goes on without a signature
    assert checkpoint.load(finding.find("r", "runs"))["signature"] is None


@pytest.mark.parametrize("state_home", ["/proc/nowhere", "relative", ""])
def test_a_run_without_a_place_for_the_key_is_unsigned(call, stranger, tmp_path, monkeypatch, state_home):
    monkeypatch.setenv("XDG_STATE_HOME", state_home)
    monkeypatch.setenv("HOME", str(tmp_path / "no home"))
    assert call(*CATCH, "--env", "theirs.env:make", "--total_steps", 80, "--xpid", "r").code == 0
    assert not (tmp_path / "relative").exists()  # such a setting counts as none
    assert not (tmp_path / "no home").exists()
    assert_one_line(call(*EVALUATE), "--trust")
    assert call(*EVALUATE, "--trust").code == 0


def test_of_many_that_start_at_once_all_have_one_key(own):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        signatures = list(pool.map(lambda _: trust.sign({"env": "my:env"}), range(64)))
    assert len(set(signatures)) == 1
    assert signatures[0]
    assert [file.name for file in own.iterdir()] == ["key"]


def test_a_checkpoint_from_before_signatures(call, own, stranger):
    """Built-in names go on as they were, own code asks once."""
    run = stranger("--env", "Catch-v0")
    for path in checkpoint.saved(run):
        state = checkpoint.load(path)
        del state["signature"]
        torch.save(state, path)
    assert call(*EVALUATE).code == 0
    assert call(*RESUME).code == 0


# -- the list ---------------------------------------------------------------------------------------------------------


def test_trust_cannot_be_had_from_the_file(call, tmp_path, stranger):
    stranger(env="os:system", env_kwargs={"command": f"touch {tmp_path}/IMPORTED"}, trust=True)
    assert_one_line(call(*EVALUATE), "--trust")
    assert not ran(tmp_path)


def test_every_setting_that_names_code_is_on_the_list():
    """Settings whose help says that a module of one's own may be named, and those that are imported by name."""
    from beast.settings.config import Config
    from beast.settings.flags import field_docs

    said = {
        name
        for group in Config.sections("impala", None).values()
        for name, text in field_docs(group).items()
        if "my_package" in text
    }
    assert said | {"env_kwargs", "trainer"} == set(trust.NAMES_CODE)


@pytest.mark.parametrize("value", [float("nan"), {"a": {"b": [1, None, "x"]}}, "é"])
def test_what_is_signed_is_what_json_says(own, value):
    config = {"env": "my:env", "env_kwargs": {"x": value}, "seed": 3}
    signature = trust.sign(config)
    assert trust.is_own(json.loads(json.dumps(config)), signature)
    assert trust.is_own(dict(reversed(config.items())) | {"seed": 4}, signature)
