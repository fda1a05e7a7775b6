"""The notebooks of examples/ run from top to bottom, in an empty directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples import run_notebook
from tests.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_there_are_three_and_each_is_clean():
    assert [path.stem for path in NOTEBOOKS] == [
        "first_run",
        "own_reward_and_selector",
        "profile_and_simulate",
    ]
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        assert [cell["id"] for cell in cells if cell.get("outputs")] == [], "outputs are kept"


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_to_its_end(notebook: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, run_notebook.__file__, str(notebook)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
