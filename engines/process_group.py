"""Makes sure that no process of an engine outlives its worker, however the worker ends.

`lead_own_group` puts the worker and what it starts into one group;
`end_group` kills the rest of the group when the worker ends by itself;
`die_with_parent`, called in the children, covers the worker's `kill -9`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

import psutil

_PR_SET_PDEATHSIG = 1


def lead_own_group() -> None:
    """Become the leader of a process group, unless it is one."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)


def die_with_parent() -> None:
    """Be killed when the process that started this one dies.

    The kernel watches the *thread* that started it: that thread must live as long.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it died before it was watched
        os.kill(os.getpid(), signal.SIGKILL)


def end_group() -> None:
    """Kill the other processes of this process's own group, by id, and wait for their end."""
    left: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and os.getpgid(process.pid) == os.getpid():
                # It ends with us, after it has removed the shared memory of the others.
                if "multiprocessing.resource_tracker" not in " ".join(process.cmdline()):
                    process.kill()
                    left.append(process)
    psutil.wait_procs(left, timeout=2)
