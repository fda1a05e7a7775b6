"""Every shipped configuration is accepted, with files in place of those that are not shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from tests.paths import ROOT

SHIPPED = [
    path for path in sorted((ROOT / "configs").glob("*.yaml")) if path.name != "simulate.yaml"
]


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.stem)
def test_dry_run_accepts_it(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    lines = tmp_path / "data.jsonl"
    lines.write_text(json.dumps({"prompt": "1+2", "answer": "3"}) + "\n")
    brought = (
        [f"model={ROOT / 'models/chain-sums'}", f"data.train={lines}", f"data.held_out={lines}"]
        if config.stem.startswith("qwen")
        else []
    )
    if brought:  # the tiny model's context is short
        brought += ["sampling.max_tokens=64", "data.max_prompt_tokens=32"]
        brought += ["advantage.overlong_tokens=16"]
    result = CliRunner().invoke(app, ["train", str(config), "--dry-run", *brought])
    assert result.exit_code == 0, result.output
    assert "nothing was started" in result.output
