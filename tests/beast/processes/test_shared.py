"""Shared memory without a name: arrays in one block, across processes, and gone afterwards."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from beast.core.data import ArraySpec, flatten
from beast.processes.shared import SharedArrays

FORKSERVER = multiprocessing.get_context("forkserver")  # as the system's own workers
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SPECS = {
    "bytes": ArraySpec((3, 5), np.dtype(np.uint8)),
    "nested": (ArraySpec((2,), np.dtype(np.float64)), {"flag": ArraySpec((1,), np.dtype(bool))}),
    "empty": ArraySpec((0, 4), np.dtype(np.float32)),
    "scalar": ArraySpec((), np.dtype(np.int64)),
}


def some_arrays(size=1000):
    return SharedArrays({"x": ArraySpec((size,), np.dtype(np.int64))})


def in_child(target, *arguments):
    """Run `target(connection, *arguments)` in a child; returns (process, connection)."""
    ours, theirs = FORKSERVER.Pipe()
    process = FORKSERVER.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def answer(connection):
    assert connection.poll(200), "the child said nothing"
    return connection.recv()


@pytest.fixture
def children():
    """Start children through this; they are gone when the test is over."""
    started = []

    def start(target, *arguments):
        started.append(in_child(target, *arguments))
        return started[-1]

    yield start
    for process, connection in started:
        process.kill()
        process.join()
        process.close()
        connection.close()


def block_of(array):
    """(inode, path) of the mapping that an array lies in, from /proc/self/maps."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *path = line.split(maxsplit=5)
        start, end = (int(x, 16) for x in span.split("-"))
        if start <= address < end:
            return int(inode), path[0] if path else ""
    raise AssertionError("not mapped")


def mapped_inodes():
    return {int(line.split(maxsplit=5)[4]) for line in Path("/proc/self/maps").read_text().splitlines()}


def descriptors_of(inode):
    """The descriptors of this process that lead to an inode."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.stat(f"/proc/self/fd/{name}").st_ino == inode:
                found.append(int(name))
        except OSError:
            continue  # the one that listed them
    return found


# -- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_have_the_structure_shapes_and_dtypes_of_their_specs_and_begin_at_zero():
    arrays = SharedArrays(SPECS).arrays
    assert arrays.keys() == SPECS.keys()
    assert isinstance(arrays["nested"], tuple)
    for array, spec in zip(flatten(arrays), flatten(SPECS), strict=True):
        assert array.shape == spec.shape
        assert array.dtype == spec.dtype
        assert not array.any()
        assert array.flags.writeable


def test_arrays_do_not_overlap_and_are_aligned_to_two_cache_lines():
    block = SharedArrays(SPECS)
    leaves = flatten(block.arrays)
    for i, array in enumerate(leaves, start=1):
        array[...] = i
        assert array.__array_interface__["data"][0] % 128 == 0
    for i, array in enumerate(leaves, start=1):
        assert (array == array.dtype.type(i)).all()
    assert block.nbytes >= sum(array.nbytes for array in leaves)


def test_arrays_outlive_the_object_that_made_them():
    array = some_arrays().arrays["x"]
    gc.collect()
    array[:] = 7
    assert array.sum() == 7000


# -- across processes -------------------------------------------------------------------------------------------------


def serve_arrays(connection, block):
    """In a child: say what is there, write into it, then wait."""
    arrays = block.arrays
    connection.send({"bytes": arrays["bytes"].tolist(), "flag": arrays["nested"][1]["flag"].tolist()})
    connection.recv()
    arrays["nested"][0][:] = [1.5, -2.5]
    arrays["scalar"][...] = os.getpid()
    connection.send("written")
    connection.recv()
    connection.send(arrays["bytes"].tolist())


def test_a_child_sees_the_same_memory_and_the_parent_sees_what_it_writes(children):
    block = SharedArrays(SPECS)
    block.arrays["bytes"][...] = np.arange(15).reshape(3, 5)
    block.arrays["nested"][1]["flag"][0] = True
    child, connection = children(serve_arrays, block)
    assert answer(connection) == {"bytes": np.arange(15).reshape(3, 5).tolist(), "flag": [True]}
    connection.send("write")
    assert answer(connection) == "written"
    assert block.arrays["nested"][0].tolist() == [1.5, -2.5]
    assert block.arrays["scalar"] == child.pid
    block.arrays["bytes"][...] = 200  # and what the parent writes now, the child sees
    connection.send("read")
    assert answer(connection) == [[200] * 5] * 3


def write_and_wait(connection, block):
    block.arrays["x"][:3] = 9
    connection.send("written")
    connection.recv()  # for ever


def test_memory_lives_on_in_a_child_when_the_parent_lets_go(children):
    block = SharedArrays(SPECS)
    block.arrays["bytes"][...] = 1
    _, connection = children(serve_arrays, block)
    answer(connection)
    block.arrays["bytes"][...] = 77
    del block
    gc.collect()
    connection.send("write")
    assert answer(connection) == "written"
    connection.send("read")
    assert answer(connection) == [[77] * 5] * 3


def test_a_killed_child_takes_nothing_with_it(children):
    block = some_arrays()
    child, connection = children(write_and_wait, block)
    assert answer(connection) == "written"
    child.kill()
    child.join()
    assert block.arrays["x"].sum() == 27
    block.arrays["x"][:] = 1
    assert block.arrays["x"].sum() == 1000


# -- what it costs, and what is left ----------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("count", [1, 300])
def test_a_block_costs_two_descriptors_however_many_arrays_it_holds(count):
    """One of its own, to hand to children, and the one that Python's mmap keeps."""
    block = SharedArrays({str(i): ArraySpec((4,), np.dtype(np.float32)) for i in range(count)})
    inode, _ = block_of(block.arrays["0"])
    assert 1 <= len(descriptors_of(inode)) <= 2
    assert {block_of(array)[0] for array in flatten(block.arrays)} == {inode}


@linux
def test_the_block_has_no_name_anywhere():
    block = some_arrays()
    inode, path = block_of(block.arrays["x"])
    assert path.endswith("(deleted)")
    assert not path.startswith("/dev/shm")
    assert inode not in [entry.inode() for entry in os.scandir("/dev/shm")]
    links = [os.fstat(fd).st_nlink for fd in descriptors_of(inode)]
    assert links
    assert not any(links)


@linux
def test_nothing_is_left_when_the_last_user_lets_go():
    block = some_arrays()
    inode, _ = block_of(block.arrays["x"])
    assert inode in mapped_inodes()
    assert descriptors_of(inode)
    array = block.arrays["x"]
    del block
    gc.collect()
    assert inode in mapped_inodes()  # an array still holds it
    del array
    gc.collect()
    assert inode not in mapped_inodes()
    assert not descriptors_of(inode)


def leave_at_once(connection, block):
    connection.send(int(block.arrays["x"][0]))


@linux
def test_handing_a_block_to_children_costs_the_parent_nothing(children):
    block = some_arrays()
    block.arrays["x"][0] = 3
    inode, _ = block_of(block.arrays["x"])
    before = len(descriptors_of(inode))
    for _ in range(2):
        _, connection = children(leave_at_once, block)
        assert answer(connection) == 3
    assert len(descriptors_of(inode)) == before


def test_too_little_memory_is_said_at_birth_with_what_to_do(monkeypatch):
    def refuse(fd, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(MemoryError, match=r"no shared memory of 8 MB .*No space left.*--num_buffers"):
        some_arrays(1_000_000)


def test_systems_without_memfd_use_an_unlinked_file(monkeypatch, children):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    block = some_arrays()
    _, path = block_of(block.arrays["x"]) if sys.platform == "linux" else (0, "(deleted)")
    assert path.endswith("(deleted)")
    assert not os.path.exists(path)
    _, connection = children(write_and_wait, block)
    assert answer(connection) == "written"
    assert block.arrays["x"].sum() == 27
