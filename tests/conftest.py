"""Settings of all tests, and how several workers share them.

No deadline for examples, for a busy machine is no bug.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # a path that is not there is no question to the hub

settings.register_profile("darts", deadline=None)
settings.load_profile("darts")

TOGETHER = "tests/engines/"
"""One worker has all of its files: they share a vLLM, which takes half a minute to start."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run tests marked long as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: in the end no worker is left alone with a long one.

    Stable, so that each file's tests stay together and in their order. Long ones are left to
    `make test-long`.
    """
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By file, as with `--dist loadfile`, but for those that belong together; in our order."""
    from xdist.scheduler import LoadFileScheduling  # only there with `-n`

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER if nodeid.startswith(TOGETHER) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)
