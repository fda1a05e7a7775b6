"""Engines that a run lacks are named at every warn interval."""

from __future__ import annotations

import pytest

from pipeline.stage.missing_engines import MissingEngines


@pytest.mark.fault("an engine is lost and does not come back", part="engines", by="direct")
def test_an_engine_that_does_not_come_back_is_named_at_every_interval() -> None:
    """Promise: also while the others carry on, its name, since when and why it was lost.
    Bound: `timeouts.log_wait_s` (here 5 s), and once an interval from then on.
    """
    missing, told = MissingEngines(2, 5.0), dict[int, list[str]]()
    assert not missing.look(0.0, {"e0", "e1"}, works=True)
    missing.lost("e1", "killed by SIGKILL")
    for second in range(1, 17):
        told[second] = missing.look(float(second), {"e0"}, works=True)
    assert [second for second, lines in told.items() if lines] == [6, 11, 16]
    [line] = told[11]
    assert line == "e1 is missing for 10 s (lost: killed by SIGKILL); 1 of 2 engines carry on"
    assert missing.since == {"e1": 1.0}
    assert not missing.look(30.0, {"e0", "e1"}, works=True)
    assert not missing.since


def test_who_stands_in_for_an_engine_ends_the_search_and_a_start_is_not_told_twice() -> None:
    missing = MissingEngines(2, 5.0)
    missing.look(0.0, {"e0"}, works=False)
    assert not missing.look(9.0, {"e0"}, works=False), "the run's start tells of who is missing"
    assert missing.look(10.0, {"e0"}, works=True)
    assert not missing.look(20.0, {"e0", "guest"}, works=True)
