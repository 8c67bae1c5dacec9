"""Imported first by the fork server, for its effect: on Linux the kernel then ends it as soon as its parent is gone.

By itself it would notice only after all its other imports, seconds later. (The kernel goes by the thread that started it:
that must be one that lives as long as the run.)
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
if str(os.getppid()) != os.environ.pop("BEAST_PARENT", str(os.getppid())):  # it was gone before that
    os._exit(1)
