"""Held-out sets: what the configuration asks for, as ranges of one data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.data import eval_sets
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.views import EvalSet
from tests.paths import ROOT


def test_a_task_as_a_set_gives_its_first_256_prompts_or_as_many_as_are_asked_for() -> None:
    sets = "eval.sets={some: deep_sums, more: {path: deep_sums, prompts: 300}}"
    config = load(ROOT / "configs" / "quickstart.yaml", ["data.held_out=mixed_sums", sets])
    found = eval_sets.load_eval_sets(config, Tokenizer(ROOT / "models" / "chain-sums"))
    assert [(of.name, of.count) for of in found.sets] == [("", 256), ("some", 256), ("more", 300)]


@pytest.mark.parametrize("held_out", [0, 2])
def test_sets_are_ranges_behind_the_held_out_prompts(tmp_path: Path, held_out: int) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n' * 3)
    train = "chain_sums" if held_out else file
    config = load(
        ROOT / "configs" / "quickstart.yaml",
        [
            f"data.train={train}",
            f"data.held_out={held_out}",
            "eval.k=[1, 4]",
            f"eval.sets={{all: {file}, few: {{path: {file}, prompts: 2, samples: 8, k: [8]}}}}",
            "eval.best=few/pass@8",
        ],
    )
    found = eval_sets.load_eval_sets(config, Tokenizer(ROOT / "models" / "chain-sums"))
    assert len(found) == held_out + 5
    own = EvalSet(name="", first=0, count=2, samples=4, k=(1, 4))
    assert found.sets == (
        *((own,) if held_out else ()),
        EvalSet(name="all", first=held_out, count=3, samples=4, k=(1, 4)),
        EvalSet(name="few", first=held_out + 3, count=2, samples=8, k=(8,)),
    )
