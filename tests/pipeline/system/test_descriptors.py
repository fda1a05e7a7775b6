"""Limits of open files: raised at the start, and kept from strangers."""

from __future__ import annotations

import subprocess
import sys

from tests.paths import ROOT

CODE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from pipeline.system.descriptors import open_share, raise_limit
print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(200)]
print(round(open_share(), 1))
"""


def said(soft: int, hard: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(soft), str(hard)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_the_soft_limit_is_raised_to_the_hard_one_and_the_share_is_of_it() -> None:
    assert said(256, 1000) == ["1000", "1000", "0.2"]
    assert said(256, 256) == ["256", "256", "0.8"]
