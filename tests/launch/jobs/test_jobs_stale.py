"""Whole jobs one version behind train by old logprobs; a selector reads entropies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.launch.jobs.jobs import lines, train
from tests.paths import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("overlap", ["group", "token"])
def test_stale_tokens_train_with_the_old_logprobs_of_their_own_version(
    tmp_path: Path, overlap: str
) -> None:
    """A real engine: engine and learner agree under the version that sampled a token, though
    the batch begins with later weights; the ratio of new over old is what has changed since."""
    run = tmp_path / "behind"
    settings = ["engine.kind=transformers", f"learner.overlap={overlap}", "learner.lr=1e-3"]
    with train(run, tmp_path / "log", *settings, "learner.max_staleness=1") as job:
        assert job.wait() == 0, job.text
    steps = lines(run / "metrics.jsonl", "step")
    known = sum(step["old_known"] for step in steps)
    missing = sum(step["old_missing"] for step in steps)
    share = missing / (known + missing)
    print(f"overlap {overlap}: {known} stale tokens with their old logprob, {share:.1%} without")
    assert known > 0
    assert share < 0.5
    assert not any("old_refused" in step for step in steps)
    assert max(step["close_version_s"] for step in steps) > 0
    stale = [step for step in steps if step["old_known"]]
    assert max(step["learner"]["mismatch_max"] for step in stale) < 1e-3
    assert max(abs(step["learner"]["ratio"] - 1) for step in stale) > 1e-4
    assert max(abs(step["learner"]["importance"] - 1) for step in stale) < 1e-3


PLUGIN = '''
import json
from pathlib import Path

from pipeline.plugins.actions import Finalize
from pipeline.plugins.interfaces import Stateless, Wants

SEEN = Path(__file__).with_name("seen.jsonl")


class Entropies(Stateless):
    """Takes all, once the learner has looked at all of them; says what it saw."""

    wants = Wants(every=4, reward=True, tick=True, entropy=True)

    def decide(self, group, event):
        if group.unended or any(m.entropy is None or m.reward is None for m in group.members):
            return
        if type(event).__name__ == "Ticked":
            seen = [(m.tokens, m.entropy) for m in group.members]
            yield Finalize(tuple(m.id for m in group.members), why=json.dumps(seen))


def reward(sample):
    with SEEN.open("a") as file:
        file.write(json.dumps([sample.prompt, list(sample.ids)]) + "\\n")
    return float(len(sample.ids) % 2)
'''


def prefix_entropies(net: Any, tokenizer: Any, prompt: str, ids: list[int]) -> torch.Tensor:
    """Mean entropy over the first n tokens of a response, for each n."""
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = net(input_ids=torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
    found = torch.distributions.Categorical(logits=logits).entropy()
    return found.cumsum(0) / torch.arange(1, len(ids) + 1)


def test_a_selector_reads_the_mean_entropy_of_what_the_learner_has_looked_at(
    tmp_path: Path,
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "mine.py").write_text(PLUGIN)
    run = tmp_path / "entropies"
    settings = ["engine.kind=simulated", "selector=mine:Entropies", "step.count=1"]
    settings += ["reward.python.function=mine:reward", "learner.overlap=token"]
    settings += ["sampling.temperature=1", "workers.count=1"]
    with train(run, tmp_path / "log", *settings, path=tmp_path) as job:
        assert job.wait() == 0, job.text
    net = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    sampled = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    means = [prefix_entropies(net, tokenizer, prompt, ids) for prompt, ids in sampled]
    decisions = lines(run / "decisions.jsonl", "decision")
    seen = [pair for d in decisions if d["action"] == "Finalize" for pair in json.loads(d["why"])]
    assert len(seen) >= 16
    whole = 0
    for tokens, entropy in seen:
        near = [m for m in means if len(m) == tokens]
        assert min(float((m - entropy).abs().min()) for m in near) < 1e-4
        whole += min(abs(float(m[-1]) - entropy) for m in near) < 1e-4
    assert whole > len(seen) / 2, "most had been looked at to their end"


def test_a_selector_of_entropies_without_streamed_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    settings = ["engine.kind=simulated", "selector=mine:Entropies", "learner.overlap=group"]
    with train(tmp_path / "run", tmp_path / "log", *settings, path=tmp_path) as job:
        assert job.wait() == 2
    assert "set learner.overlap: token, and learner.zero to 0, 1 or 2" in job.text
