"""Unrolls in files: what was learned from is what is read, and a folder of somebody else's runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_one_line

from beast.core.errors import ConfigError
from beast.run import recordings
from beast.run.assemble import assemble
from beast.run.resolve import resolve_config

FLAGS = {
    "env": "CartPole-v1",
    "preset": "classic",
    "num_actor_processes": 0,
    "num_actors": 4,
    "batch_size": 4,
    "unroll_length": 10,
}


def run(**flags):
    """A run that has ended, and the batches that it learned from."""
    trainer, batches = assemble(*resolve_config(FLAGS | flags), None, live=False), []
    of = trainer.learning.gradients.of
    trainer.learning.gradients.of = lambda staged: batches.append(staged.batch) or of(staged)
    assert trainer.run() == 0
    return trainer, batches


@pytest.fixture
def folder(tmp_path):
    """Recordings of a short run: eight unrolls in one file."""
    run(total_steps=80, record_unrolls=str(tmp_path / "rec"))
    return tmp_path / "rec"


def files(folder):
    return sorted(folder.glob("unrolls_*.npz"))


def rewrite(path, name, array=None, data=None, **settings):
    """Put another array, or other bytes, in the place of one in a file."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    if array is not None:
        out = io.BytesIO()
        np.save(out, array, allow_pickle=True)
        data = out.getvalue()
    members[f"{name}.npy"] = data
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def refused(folder, *said, **flags):
    with pytest.raises(ConfigError) as caught:
        run(demonstrations=str(folder), total_steps=80, **flags)
    message = str(caught.value)
    assert "\n" not in message
    for text in said:
        assert text in message, message


def test_what_was_learned_from_is_in_the_files_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "FILE_SIZE", 6_000)  # a few unrolls
    ended, batches = run(total_steps=400, replay_capacity=8, use_lstm=True, record_unrolls=str(tmp_path / "a/b"))
    written = [np.load(file) for file in files(tmp_path / "a/b")]  # NumPy's own reader, which unpickles nothing
    assert len(written) > 3
    assert all(file.stat().st_size < 20_000 for file in files(tmp_path / "a/b"))
    read = {name: np.concatenate([file[name] for file in written]) for name in written[0]}
    fresh = [(batch, i) for batch in batches for i in range(2)]  # the other two of each were replayed
    assert len(read["reward"]) == len(fresh) == 40
    for place, (batch, i) in enumerate(fresh):
        assert np.array_equal(read["observation"][place], batch.observation[:, i])
        assert np.array_equal(read["behaviour_logits"][place], batch.behaviour_logits[:, i])
        assert np.array_equal(read["core_state/1"][place], batch.core_state[1][i])
        assert read["actor"][place] == batch.actor[i]
    spec = json.loads((tmp_path / "a/b" / "spec.json").read_text())
    assert spec["environment"] == "CartPole-v1"
    assert {name: tuple(field["shape"]) for name, field in spec["fields"].items()} == {
        name: array.shape[1:] for name, array in read.items()
    }
    assert ended.learner.updates == 20


def test_stacked_frames_are_recorded_once(tmp_path):
    flags = {"env": "PongNoFrameskip-v4", "num_actors": 2, "batch_size": 2, "unroll_length": 3, "total_steps": 12}
    _, batches = run(**flags, record_unrolls=str(tmp_path / "rec"))
    (file,) = files(tmp_path / "rec")
    assert np.load(file)["observation"].shape == (4, 4 + 3 + 1, 84, 84)
    assert np.array_equal(np.load(file)["observation"][:2], batches[0].observation)
    _, batches = run(**flags, demonstrations=str(tmp_path / "rec"))
    shown = torch.from_numpy(np.load(file)["observation"])
    assert all((shown == batch.observation[1]).flatten(1).all(1).any() for batch in batches)


def test_a_limit_ends_the_recording_and_not_the_run(tmp_path, capsys):
    run(total_steps=400, record_unrolls=str(tmp_path), record_limit=13)
    assert sum(len(np.load(file)["reward"]) for file in files(tmp_path)) == 13
    assert capsys.readouterr().out.count("as many unrolls are recorded as --record_limit allows") == 1
    (left := tmp_path / ".unrolls_000002_abcdef.npz.0a1b2c3d").touch()  # by a writer that was killed
    run(total_steps=80, record_unrolls=str(tmp_path))  # another run beside it
    assert not left.exists()
    assert recordings.open_recordings(tmp_path, *spec_of()).count == 21
    assert [file.name[:14] for file in files(tmp_path)] == ["unrolls_000001", "unrolls_000002"]


def spec_of(**flags):
    config, task = resolve_config(FLAGS | flags)
    return task.unroll, config.actors.unroll_length


def test_demonstrations_are_learned_from_and_do_not_count(folder, tmp_path):
    (file,) = files(folder)
    shown = {row.tobytes() for row in np.load(file)["behaviour_logits"]}
    ended, batches = run(total_steps=400, seed=9, demonstrations=str(folder))
    assert (ended.learner.steps, ended.learner.updates) == (400, 20)
    for batch in batches:
        logits = [batch.behaviour_logits[:, i].contiguous().numpy().tobytes() for i in range(4)]
        assert [text in shown for text in logits] == [False, False, True, True]
    _, batches = run(total_steps=4000, seed=9, demonstrations=str(folder), replay_capacity=8)
    replayed = [batch.behaviour_logits[:, i].contiguous().numpy().tobytes() for batch in batches[8:] for i in (2, 3)]
    assert 0.4 < sum(text in shown for text in replayed) / len(replayed) < 0.6  # as many of them as of the others


def test_a_full_disk_costs_unrolls_and_not_the_run(tmp_path, monkeypatch, capsys):
    real, calls = recordings.write_atomically, []

    def write(path, what):
        calls.append(path)
        if len(calls) < 3:
            raise OSError(28, "No space left on device")
        real(path, what)

    monkeypatch.setattr(recordings, "write_atomically", write)
    monkeypatch.setattr(recordings, "FILE_SIZE", 6_000)
    run(total_steps=800, record_unrolls=str(tmp_path))
    assert capsys.readouterr().out.count("could not be recorded") == 1
    assert len(files(tmp_path)) == len(calls) - 2 > 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"unroll_length": 20}, "its 'observation' is '<f4' [11, 4], here it is '<f4' [21, 4]"),
        ({"use_lstm": True}, "'core_state/0' is missing"),
        ({"env": "Acrobot-v1"}, "recorded from 'CartPole-v1', its 'observation'"),
    ],
)
def test_another_task_or_network_is_refused(folder, flags, said):
    refused(folder, said, "environment, network and --unroll_length must be the same", **flags)
    with pytest.raises(ConfigError, match="--record_unrolls"):
        run(record_unrolls=str(folder), **flags)


def test_folders_that_are_none(folder, tmp_path):
    refused(tmp_path / "none", "there is no such folder")
    refused(tmp_path, "it holds no spec.json")
    (file,) = files(folder)
    moved = file.rename(tmp_path / file.name)
    refused(folder, "it holds no unrolls")
    os.mkfifo(folder / "unrolls_000007_ab.npz")  # nobody waits for it
    refused(folder, "it holds no unrolls")
    moved.rename(file)
    refused(folder, "it holds 8 unrolls, each batch draws 16", batch_size=32)
    spec = (folder / "spec.json").read_text()
    for text, said in (("{", "damaged"), ("[" * 10**5, "damaged"), ("[1]", "damaged"), ("{}", "damaged"),
                       (spec.replace('"format": 1', '"format": 2'), "format is 2, this program knows 1"),
                       (spec.replace('"reward"', '"\\u001b[2J"'), "its 'reward' is missing")):  # fmt: skip
        (folder / "spec.json").write_text(text)
        refused(folder, said)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_foreign_is_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file,) = files(folder)
    rewrite(file, "reward", np.array([Bomb()] * 8, dtype=object))
    refused(folder, file.name, "damaged, or no recording")
    rewrite(file, "reward", data=pickle.dumps(Bomb()))
    refused(folder, file.name, "damaged, or no recording")
    file.write_bytes(pickle.dumps(Bomb()))
    refused(folder, file.name, "damaged, or no recording")
    torch.save({"reward": Bomb()}, file)
    refused(folder, file.name, "damaged, or no recording")
    assert not Path("exploded").exists()


def test_damaged_files_are_named_and_nothing_is_made(folder, tmp_path, call, monkeypatch):
    (file,) = files(folder)
    whole = file.read_bytes()

    def is_refused(*said):
        refused(folder, file.name, *said)
        file.write_bytes(whole)

    for data in (b"", whole[: len(whole) // 2], whole[:-10]):
        file.write_bytes(data)
        is_refused()
    at = whole.index(b"observation.npy") + 1000
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    is_refused("CRC")
    good = np.load(io.BytesIO(whole))
    for name, array in (
        ("reward", good["reward"][:7]), ("reward", good["reward"].astype(np.float64)), ("actor", good["actor"][:0]),
        ("observation", np.full_like(good["observation"], np.nan)), ("reward", good["reward"] + np.inf),
        ("action", np.full_like(good["action"], 2)), ("action", np.full_like(good["action"], -1)),
        ("observation", np.asfortranarray(good["observation"])),
    ):  # fmt: skip
        rewrite(file, name, array)
        is_refused()
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 11)})
    rewrite(file, "reward", data=out.getvalue())  # says that it is larger than any memory
    is_refused("different lengths")
    rewrite(
        file, "reward", np.zeros(10**8, np.uint8), compression=zipfile.ZIP_DEFLATED
    )  # and unpacks to more than it says
    is_refused("reward")
    monkeypatch.chdir(tmp_path)
    file.write_bytes(b"")
    done = call("--env", "CartPole-v1", "--preset", "classic", "--unroll_length", 10, "--demonstrations", folder)
    assert_one_line(done, file.name, "damaged, or no recording")
    assert not (tmp_path / "runs").exists()


def test_recording_goes_on_only_when_asked_again(call, tmp_path):
    flags = ["--env", "Catch-v0", "--num_actor_processes", 0, "--num_actors", 2, "--batch_size", 2, "--xpid", "r"]
    assert call(*flags, "--total_steps", 400, "--record_unrolls", "rec").code == 0
    before = files(tmp_path / "rec")
    assert before
    done = call("--resume", "r", "--total_steps", 800)
    assert (done.code, done.err) == (0, "")
    assert "unrolls are no longer recorded: give --record_unrolls 'rec' again" in done.out
    assert files(tmp_path / "rec") == before
    done = call("--resume", "r", "--total_steps", 1200, "--record_unrolls", "rec")
    assert (done.code, done.err) == (0, "")
    assert len(files(tmp_path / "rec")) == len(before) + 1
    assert_one_line(call(*flags[:-1], "q", "--record_unrolls", "/proc/there"), "--record_unrolls: cannot write to")
