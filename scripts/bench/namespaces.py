"""Simulates two machines by network namespaces with a cable between them (needs root).

Each has its own interfaces, addresses and ports; only the cable connects them, and it can be cut.
Processes, clock and files are shared, except for directories that the second machine replaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
RENDEZVOUS_PORT = 29500


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Machines:
    """Both machines and the cable. Made by `two_machines`.

    Args:
        own: a directory -> its replacement on the second machine.
    """

    def __init__(self, own: Mapping[Path, Path] | None = None) -> None:
        self._own = own or {}
        self.names = [f"darts-{os.getpid()}-{side}" for side in "ab"]
        self._ends = [f"d{os.getpid()}{side}" for side in "ab"]  # 15 characters at most

    def set_up(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        (a, b), (end_a, end_b) = self.names, self._ends
        _ip("link", "add", end_a, "netns", a, "type", "veth", "peer", "name", end_b, "netns", b)
        for name, end, address in zip(self.names, self._ends, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")

    def tear_down(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def cut_cable(self) -> None:
        """Unplugs the cable."""
        _ip("-n", self.names[0], "link", "set", self._ends[0], "down")

    def heal_cable(self) -> None:
        _ip("-n", self.names[0], "link", "set", self._ends[0], "up")

    def block(self, machine: int, port: int) -> None:
        """Blocks a port of the other machine for this one, like a firewall."""
        rule = ["rule", "add", "pref", "1", "ipproto", "tcp", "dport", str(port), "prohibit"]
        _ip("-n", self.names[machine], *rule)

    def command_on(self, machine: int, arguments: Sequence[str]) -> list[str]:
        """Returns the command that runs these arguments on a machine."""
        command = list(arguments)
        for path, other in self._own.items() if machine == 1 else ():
            # The program ip has given it its own mounts.
            bind = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
            command = ["sh", "-c", bind, "sh", str(other), str(path), *command]
        return ["ip", "netns", "exec", self.names[machine], *command]

    def torchrun(
        self,
        machine: int,
        ranks: int,
        arguments: Sequence[str],
        restarts: int = 0,
        module: str = "launch.torchrun",
    ) -> list[str]:
        """Returns one machine's command for torchrun."""
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        command += [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{RENDEZVOUS_PORT}"]
        # A namespace has no host name by which torchrun could tell which machine it is.
        command += [
            f"--rdzv-conf=is_host={int(machine == 0)}",
            f"--local-addr={ADDRESSES[machine]}",
        ]
        return self.command_on(machine, [*command, "-m", module, *arguments])


def environment() -> dict[str, str]:
    """Returns the environment of the commands."""
    # With torchrun's shared store, a machine that returns waits for ever (torch 2.13).
    unshared = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": str(ROOT), **unshared}


def why_not() -> str:
    """Says why namespaces cannot be made here; '' if they can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (iproute2)"
    machines = Machines()
    try:
        machines.set_up()
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"
    finally:
        machines.tear_down()
    return ""


@contextmanager
def two_machines(own: Mapping[Path, Path] | None = None) -> Iterator[Machines]:
    machines = Machines(own)
    machines.set_up()
    try:
        yield machines
    finally:
        machines.tear_down()


class Started:
    """A command on a machine; all its processes end with this context.

    Args:
        variables: of the environment, beside `environment()`.
        output: where it writes to instead of `log`.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        directory: Path = ROOT,
        variables: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment() | dict(variables or {}),
                stdin=subprocess.DEVNULL,
                stdout=output or file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._family: dict[int, psutil.Process] = {}

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.running_processes()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for process in self._family.values():
            if process.is_running():
                process.kill()

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def running_processes(self) -> list[psutil.Process]:
        """Returns its processes that still run."""
        try:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._family[process.pid] = process
        except psutil.NoSuchProcess:
            pass
        return [p for p in self._family.values() if p.is_running() and p.status() != "zombie"]

    def part(self, *words: str) -> psutil.Process:
        """Finds the process whose command line has all these words. Raises LookupError."""
        for process in self.running_processes():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if all(word in line for word in words):
                return process
        raise LookupError(f"no process with {words}")

    def kill_torchrun(self) -> None:
        """Kills only torchrun: its ranks have to notice by themselves."""
        self.running_processes()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait(self, limit_s: float) -> int:
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None:
            self.running_processes()
            if time.monotonic() > deadline:
                raise TimeoutError(f"still running after {limit_s:.0f} s:\n{self.text[-3000:]}")
            time.sleep(0.2)
        return self.process.returncode
