"""Limits what a process that runs other people's code can see and use; not a sandbox.

Removes secrets from its environment, and sets resource limits of this process. Such code
still runs as this user: it can read the user's files and use the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import resource
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec

from pipeline.redaction.passwords import secret_in_address

_SECRET = re.compile(
    r"KEY|TOKEN(?!IZ)|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|PRIVATE|NETRC|KRB5|"
    r"^(AWS|AZURE|GOOGLE|GCP|GCLOUD|CLOUDSDK|KUBE|DOCKER|WANDB|OPENAI|ANTHROPIC)_"
)
MARK = "DARTS_REWARD_WORKER"
"""Environment variable that marks all processes that a worker started."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_ROUNDS = 20  # searches for processes that were started during the last round of kills


class ResourceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one process; 0: no limit."""

    memory_gib: float
    cpu_s: float  # of one call, all threads
    file_mib: float
    open_files: int


def without_secrets(environment: Mapping[str, str], keep: Collection[str] = ()) -> dict[str, str]:
    """Remove variables that look like secrets, by name or value; `keep` names exceptions.

    >>> without_secrets({"HF_TOKEN": "x", "TOKENIZERS": "false", "PROXY": "http://me:pw@host"})
    {'TOKENIZERS': 'false'}
    """
    return {
        name: value
        for name, value in environment.items()
        if name in keep or not (_SECRET.search(name.upper()) or secret_in_address(value))
    }


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died before the line above


def confine(limits: ResourceLimits) -> None:
    """Limit this process and all that it starts, for good; set-user-id programs do not help."""
    if sys.platform == "linux":
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _limit(resource.RLIMIT_CORE, 0)
    for what, value in (
        (resource.RLIMIT_AS, limits.memory_gib * 2**30),
        (resource.RLIMIT_FSIZE, limits.file_mib * 2**20),
        (resource.RLIMIT_NOFILE, limits.open_files),
    ):
        if value:
            _limit(what, int(value))


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _limit(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(what, (value, value))


def limit_call(cpu_s: float, used_s: float) -> None:
    """Let this process, which has used `used_s`, use `cpu_s` more seconds of CPU; 0: no limit."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used_s + cpu_s) if cpu_s else resource.RLIM_INFINITY
    if most != resource.RLIM_INFINITY:
        soft = most if soft == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, most))


def kill_marked(mark: str) -> None:
    """Kill every process whose environment has this mark, in any session."""
    for _ in range(_ROUNDS):
        # All are stopped before any is killed: else a process that forks could escape for ever.
        stopped: set[int] = set()
        while new := marked_processes(mark) - stopped:
            _signal(new, signal.SIGSTOP)
            stopped |= new
        if not stopped:
            return
        _signal(stopped, signal.SIGKILL)


def marked_processes(mark: str) -> set[int]:
    """Find the processes whose environment has this mark."""
    return set(_marked(f"{MARK}={mark}".encode()))


def _signal(pids: Collection[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def count_tasks() -> int:
    """Count processes and threads of the machine: cheaper than `marked_processes`."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except OSError:
        return 0


def _marked(entry: bytes) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or ended meanwhile
            if entry in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)
