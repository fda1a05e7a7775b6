"""What a length value head says, as tokens to come."""

from __future__ import annotations

import pytest

from engines.base import tokens_of_value


@pytest.mark.parametrize("value,tokens", [(-0.259516, 100), (-0.500447, 231), (-0.950437, 1000)])
def test_values_are_those_of_the_published_discount(value: float, tokens: int):
    """Source: LenVM, arXiv 2604.27039, with gamma .997."""
    assert tokens_of_value(value, gamma=0.997) == pytest.approx(tokens, abs=0.01)
    assert -(1 - 0.997**tokens) == pytest.approx(value, abs=1e-6)


def test_an_ended_response_has_none_to_come():
    assert tokens_of_value(0.0, gamma=0.999) == 0
