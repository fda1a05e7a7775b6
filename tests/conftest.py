"""Settings of all tests, and the order in which several workers share them.

No deadline for examples, for a busy machine is no bug.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings

settings.register_profile("darts", deadline=None)
settings.load_profile("darts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: with several workers none is left with one at the end.

    Stable, so that each file's tests stay together and in their order.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
