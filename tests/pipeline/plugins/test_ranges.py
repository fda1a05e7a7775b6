"""The ranges of options: where each begins and ends."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from pipeline.plugins import ranges


@pytest.mark.parametrize(
    "range_, inside, outside",
    [
        (ranges.PositiveInt, (1, 2), (0, -1)),
        (ranges.NonNegativeInt, (0, 1), (-1,)),
        (ranges.PositiveFloat, (1e-9, 0.5), (0.0, -0.5)),
        (ranges.NonNegativeFloat, (0.0, 0.5), (-1e-9,)),
        (ranges.AtLeastOne, (1.0, 1.5), (math.nextafter(1.0, 0.0), 0.0)),
        (ranges.Share, (0.0, 0.5, 1.0), (-1e-9, 1.001)),
        (ranges.PositiveShare, (1e-9, 1.0), (0.0, 1.001)),
        (ranges.NonEmpty, ("a",), ("",)),
    ],
)
def test_a_range_holds_its_ends_and_nothing_beyond(range_: Any, inside: Any, outside: Any):
    for value in inside:
        assert msgspec.convert(value, range_) == value
    for value in outside:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, range_)
