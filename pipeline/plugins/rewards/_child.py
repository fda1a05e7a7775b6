"""A child process that answers questions, and is ended where it takes too long.

For computations in C that no signal interrupts, such as powers of powers. The child is forked when
first asked, with everything that is loaded by then, and again after one that had to be ended or
died. Questions and answers are lines of JSON. A question that no child answered has no answer.
Time is what the child computes: on a busy machine it waits for a core, which is not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

_BYTES = 65536
_MEMORY = 1 << 30
"""Bytes of address space that answers may take beyond what the parent had."""
_WAIT_S = 3.0
"""Seconds that a question may take beyond those that it computes."""


class Child:
    """Asks one function.

    Args:
        answer: question -> answer, both of JSON's types; what it raises is no answer.
        limit_s: seconds that one question may compute.
    """

    def __init__(self, answer: Callable[[Any], Any], limit_s: float) -> None:
        self._answer, self._limit_s = answer, limit_s
        self.starved = False
        """Whether the last question took too long because the child had no core to compute on."""
        self._pid = 0  # 0: there is none
        self._process: psutil.Process | None = None  # the child's, to see what it computes
        self._owner = 0
        self._to = self._from = -1

    def ask(self, question: Any) -> Any:
        """The answer; None if there is none. A child that dies is replaced once: it may have died
        of what it did before."""
        for _ in range(2):
            if not self._pid or self._owner != os.getpid():
                self._fork()
            line = self._asked(json.dumps(question).encode() + b"\n")
            if line is not None:
                return json.loads(line) if line else None
        return None

    def close(self) -> None:
        """End the child; it is forked again when it is asked."""
        if self._pid and self._owner == os.getpid():
            os.close(self._to)
            os.close(self._from)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = 0

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):  # at the interpreter's end
            self.close()

    def _asked(self, line: bytes) -> bytes | None:
        """A line of the child; b"": it took too long; None: it died."""
        self.starved = False
        used, answer = 0.0, b""
        try:
            used, deadline = self._used_s(), time.monotonic() + self._limit_s + _WAIT_S
            while line:  # it may be longer than a pipe holds
                self._wait([], [self._to], used, deadline)
                line = line[os.write(self._to, line[:4096]) :]
            while not answer.endswith(b"\n"):
                self._wait([self._from], [], used, deadline)
                found = os.read(self._from, _BYTES)
                if not found:
                    raise BrokenPipeError
                answer += found
        except TimeoutError:
            self.starved = self._used_s() - used < self._limit_s / 2
            self.close()
            return b""
        except (OSError, psutil.Error):
            self.close()
            return None
        return answer

    def _wait(self, read: list[int], write: list[int], used: float, deadline: float) -> None:
        """Until one of them is ready. Raises TimeoutError."""
        while True:
            left = min(self._limit_s - (self._used_s() - used), deadline - time.monotonic())
            if any(select.select(read, write, [], max(0.0, left))[:2]):
                return
            if left <= 0:
                raise TimeoutError

    def _used_s(self) -> float:
        """Seconds that the child has computed in all."""
        assert self._process is not None
        times = self._process.cpu_times()
        return times.user + times.system

    def _fork(self) -> None:
        self._pid = 0  # that of a parent's child, if this process was forked itself
        questions, self._to = os.pipe()
        self._from, answers = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _serve(questions, answers, self._answer)
            finally:
                os._exit(0)
        os.close(questions)
        os.close(answers)
        self._pid, self._owner = pid, os.getpid()
        self._process = psutil.Process(pid)


def _serve(questions: int, answers: int, answer: Callable[[Any], Any]) -> None:
    """In the child: answer until the parent is gone. Keeps none of the parent's descriptors: who
    reads what the parent writes is to see its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    least, most = sorted((questions, answers))
    os.closerange(3, least)
    os.closerange(least + 1, most)
    os.closerange(most + 1, os.sysconf("SC_OPEN_MAX"))
    _confine()
    with os.fdopen(questions, "rb") as lines, os.fdopen(answers, "wb", buffering=0) as out:
        for line in lines:
            try:
                found = answer(json.loads(line))
            except Exception:
                found = None
            out.write(json.dumps(found).encode() + b"\n")


def _confine() -> None:
    with contextlib.suppress(OSError, ValueError):  # no /proc
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = used + _MEMORY
        if soft == resource.RLIM_INFINITY or most < soft:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
