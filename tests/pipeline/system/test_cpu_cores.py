"""Which cores an engine gets, and what is refused."""

from __future__ import annotations

import pytest

from pipeline.system.cpu_cores import CoresError, engine_cores


def test_auto_is_the_first_core_that_may_be_used() -> None:
    assert engine_cores("auto", {4, 2, 3}) == [2]


def test_ranges_and_numbers_are_cores_once_each_in_order() -> None:
    assert engine_cores("3,0-1,1", range(4)) == [0, 1, 3]


@pytest.mark.parametrize("setting", ["7", "0-2", "5-2"])
def test_cores_that_are_not_there_are_refused_with_those_that_are(setting: str) -> None:
    with pytest.raises(CoresError, match=rf"engine.cpu_cores is '{setting}'.* 0, 1$"):
        engine_cores(setting, {0, 1})
