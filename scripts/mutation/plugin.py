"""What pytest is told while mutants are tried: which tests to run, and what they reached.

Two plug-ins of one pytest run each, in a process of its own. `Reach` runs all tests of some
files and notes which functions of the mutated rooms each one enters. `Trial` runs chosen
tests, the fastest first, with a time limit for each.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest

WAITED = 6
"""Seconds on the clock for each second of CPU, on a busy machine."""


class Reached(msgspec.Struct):
    """One test of the clean run."""

    seconds: float
    """Of CPU, with what it starts and waits for."""
    functions: list[str]
    """`file:qualified name` of every function of the rooms that it enters."""
    passed: bool = True


def _use_few_examples() -> None:
    """Property tests: the same examples every time, none looked for after a failure."""
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutation",
        deadline=None,
        database=None,
        derandomize=True,
        max_examples=30,
        phases=(Phase.explicit, Phase.generate),
    )
    settings.load_profile("mutation")


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


class Reach:
    """Notes which functions each test enters, and its seconds, into a JSON file.

    The functions note it themselves (`mutants.noting`). A test that takes more than
    `longest_s` is ended: no trial will run it.
    """

    def __init__(self, longest_s: float, out: Path) -> None:
        self._longest_s, self._out = longest_s, out
        self._seen: set[str] = set()
        self.found: dict[str, Reached] = {}

    def pytest_sessionstart(self) -> None:
        _use_few_examples()
        setattr(builtins, "REACHED", self._seen)  # noqa: B010 - no checker knows it
        signal.signal(signal.SIGPROF, self._end)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The timer counts this process only: one that waits for others ends by the clock."""
        for item in items:
            limit = pytest.mark.timeout(WAITED * self._longest_s, method="signal")
            item.add_marker(limit, append=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._seen.clear()
        begin, clock = _cpu_seconds(), time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, self._longest_s, 1.0)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
            test = self.found.setdefault(item.nodeid, Reached(0.0, []))
            test.seconds, test.functions = _cpu_seconds() - begin, sorted(self._seen)
            if time.monotonic() - clock >= WAITED * self._longest_s:
                test.seconds = max(test.seconds, self._longest_s)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self.found.setdefault(report.nodeid, Reached(0.0, []))
        test.passed = test.passed and not report.failed

    def pytest_sessionfinish(self) -> None:
        self._out.write_bytes(msgspec.json.encode(self.found))

    def _end(self, number: int, frame: FrameType | None) -> None:
        pytest.fail("takes too long for trials of mutants")


class Trial:
    """Runs chosen tests, the fastest first; writes the name of the one that failed."""

    def __init__(self, limits: Mapping[str, float], first: str, out: Path) -> None:
        """`limits`: seconds that each chosen test may take; `first`: one to begin with, or ""."""
        self._limits, self._first, self._out = dict(limits), first, out

    def pytest_sessionstart(self) -> None:
        _use_few_examples()

    def pytest_collection(self) -> None:
        self._out.unlink(missing_ok=True)  # what fails while tests are collected fails in none

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the chosen ones. By file, so that what a file's tests share is made once.

        A mutant may change what there is: parameters come from code too.
        """
        chosen = {item.nodeid: item for item in items if item.nodeid in self._limits}
        files: dict[str, float] = {}
        for name, seconds in self._limits.items():
            file = name.partition("::")[0]
            files[file] = files.get(file, 0.0) + seconds
        items[:] = sorted(
            chosen.values(),
            key=lambda item: (
                item.nodeid != self._first,
                files[item.nodeid.partition("::")[0]],
                item.nodeid.partition("::")[0],
                self._limits[item.nodeid],
            ),
        )
        for item in items:
            item.add_marker(pytest.mark.timeout(self._limits[item.nodeid]), append=False)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Written before, for a test that ends its process says nothing afterwards."""
        self._out.write_text(json.dumps({"test": nodeid}))
