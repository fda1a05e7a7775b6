"""Rewards that look around, or take what is not theirs."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.plugins.views import Sampled

STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.setsid()
if os.fork():
    os._exit(0)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


def by_response(sample: Sampled) -> Any:
    """Does what the response says; `rest` is a file to write down what it has seen."""
    word, _, rest = sample.response.partition(" ")
    match word:
        case "look":
            no_new_privileges = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)
            known = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
            seen = {
                "environ": dict(os.environ),
                "kernel's": Path("/proc/self/environ").read_text(),
                "descriptors": {n: os.readlink(f"/proc/self/fd/{n}") for n in descriptors()},
                "inheritable": [n for n in descriptors() if os.get_inheritable(n)],
                "directory": os.getcwd(),
                "holds": [name for name in os.listdir() if not os.path.islink(name)],
                "session": os.getsid(0) == os.getpid(),
                "no new privileges": no_new_privileges,
                "limits": [resource.getrlimit(what)[0] for what in known],
                "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
                "umask": os.umask(0),
            }
            Path(rest).write_text(json.dumps(seen))
        case "allocate":
            return float(len(bytearray(10 << 30)))
        case "write":
            with open("large", "wb") as file:
                for _ in range(1024):
                    file.write(bytes(1 << 20))
        case "open":
            kept = [socket.socket() for _ in range(5000)]
            return float(len(kept))
        case "spin":
            while True:
                pass
        case "fork":
            for _ in range(2000):  # without end, but for the machine that a failing test runs on
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(60)
                    os._exit(0)
            time.sleep(60)
        case "return":
            return "x" * (100 << 20)
        case "parts":
            return {"score": 1.0} | {f"part {n}": float(n) for n in range(200_000)}
        case "raise":
            raise ValueError("\x1b[2J" + "y" * (100 << 20))
        case "print":
            for _ in range(200):
                print("z" * (1 << 20))
        case "forge":
            os.write(channel(), b"\x08\0\0\0not JSON")
            time.sleep(600)
        case "flood":
            os.write(channel(), (2**31).to_bytes(4, "little"))
            time.sleep(600)
        case "stubborn":
            subprocess.Popen([sys.executable, "-c", STUBBORN, rest])
            while not (os.path.exists(rest) and Path(rest).read_text()):
                time.sleep(0.02)
            if sample.answer == "wait":
                time.sleep(600)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            pass
    return 1.0


def descriptors() -> list[int]:
    """Of this process, without the one that lists them."""
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
            found.append(int(name))
        except OSError:
            pass
    return sorted(found)


def channel() -> int:
    """The socket to the stage: what model-written code finds if it looks for it."""
    return int(sys.argv[1])


def with_torch(sample: Sampled) -> float:
    import torch

    return float(torch.tensor([1.0, 2.0]).sum())
