"""What a run asks of the C library and the processor."""

from __future__ import annotations

import platform

import psutil
import pytest

POOL = 64 << 20  # bytes: what a thread's own malloc pool reserves at a time, at a multiple of it


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_all_threads_of_a_run_share_one_malloc_pool(start):
    """Each further one gives large blocks back to the kernel at every step (they fit into none): page faults without end."""
    program = start("--num_actors", 4, "--batch_size", 4, "--num_actor_processes", 1, "--report_every", 0.2)  # Pong
    program.wait_for("loss total")
    blocks = [
        [int(address, 16) for address in block.addr.split("-")]
        for block in psutil.Process(program.process.pid).memory_maps(grouped=False)
    ]
    ends = {end for _, end in blocks}
    pools = [
        first
        for first, end in blocks
        if first % POOL == 0 and any(end <= e <= first + POOL and e % POOL == 0 for e in ends)
    ]
    assert not pools
