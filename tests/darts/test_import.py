"""The package that users import: light, and with everything that a plug-in's author needs."""

import json
import subprocess
import sys

import pytest

import darts
import darts.plugins
import darts.plugins.testing
import pipeline.plugins
import pipeline.plugins.testing
from tests.paths import ROOT

HEAVY = {"torch", "vllm", "deepspeed", "transformers", "zmq"}


@pytest.mark.parametrize("module", ["darts", "darts.plugins", "darts.plugins.testing"])
def test_importing_it_loads_nothing_heavy(module: str):
    code = f"import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert {name.split(".")[0] for name in json.loads(done.stdout)} & HEAVY == set()


@pytest.mark.parametrize("module", [darts, darts.plugins, darts.plugins.testing])
def test_all_that_it_lists_is_there(module: object):
    assert [name for name in module.__all__ if not hasattr(module, name)] == []  # type: ignore


def test_both_names_of_the_plugin_package_offer_the_same():
    assert darts.plugins.__all__ is pipeline.plugins.__all__
    for name in set(darts.plugins.__all__) - {"testing"}:
        assert getattr(darts.plugins, name) is getattr(pipeline.plugins, name)
    assert darts.plugins.testing.group_of is pipeline.plugins.testing.group_of
