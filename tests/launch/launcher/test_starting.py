"""What a slow start says: compiling, importing and loading are told of while they last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.launcher.processes import Child
from launch.launcher.starting import FIRST_S, StartingParts
from pipeline.system import progress


def test_a_part_that_takes_its_time_is_told_of_and_again_each_interval() -> None:
    parts = StartingParts(every_s=20.0)
    doing = {"stage": "", "l0": "compiling", "l1": "compiling", "e0": "importing"}
    assert parts.look(0.0, doing) == []
    told = parts.look(FIRST_S, doing)
    assert told == ["l0, l1: compiling (5 s so far)", "e0: importing (5 s so far)"]
    assert parts.look(24.0, doing) == []
    doing["e0"] = "loading"
    assert parts.look(25.0, doing) == ["l0, l1: compiling (25 s so far)"]
    assert parts.look(26.0, {"l0": "", "l1": ""}) == []


@pytest.mark.fault("a start takes minutes to compile or to import", part="people", by="process")
def test_what_a_child_announces_is_read_while_it_runs(tmp_path: Path) -> None:
    """Promise: the terminal names who does what, and for how long so far.
    Bound: 5 s, and once each `timeouts.log_wait_s` from then on.
    """
    (tmp_path / "slow_start.py").write_text(
        "import sys, time\nfrom pipeline.system.progress import announce\n"
        "announce('compiling')\nprint('of a library')\nsys.stdin = None\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    child = Child("l0", ["slow_start"], tmp_path / "log", {**os.environ, "PYTHONPATH": path})
    child.log.write_text(f"{progress.MARK}of the start before\n")
    child.start()
    try:
        while child.running and child.doing() == "":
            pass
        assert child.doing() == "compiling"
    finally:
        child.signal_all(9)
    while child.running:
        pass
    assert child.doing() == ""


def test_what_was_announced_last_counts() -> None:
    assert progress.newest("") == ""
    assert progress.newest("now: importing\nnow: \nready") == ""
    assert progress.newest("now: importing\nnow: loading\nready") == "loading"
