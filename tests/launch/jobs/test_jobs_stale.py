"""Whole jobs one version behind train by old logprobs; a selector reads entropies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.launch.jobs.jobs import lines, train
from tests.paths import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("overlap", [pytest.param("group", marks=pytest.mark.long), "token"])
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
    assert share < 0.8, "what the engine samples while weights are on their way, and no more"
    assert not any("old_refused" in step for step in steps)
    assert max(step["close_version_s"] for step in steps) > 0
    stale = [step for step in steps if step["old_known"]]
    assert max(step["learner"]["mismatch_max"] for step in stale) < 1e-3
    assert max(abs(step["learner"]["ratio"] - 1) for step in stale) > 1e-4
    assert max(abs(step["learner"]["importance"] - 1) for step in stale) < 1e-3


PLUGIN = """
import json
from pathlib import Path

from pipeline.plugins.actions import Finalize
from pipeline.plugins.interfaces import Every, Stateless, Wants

HERE = Path(__file__).parent


def note(file, line):
    with (HERE / file).open("a") as opened:
        opened.write(json.dumps(line) + "\\n")


class Entropies(Stateless):
    "Takes all; notes every entropy that it is shown."

    wants = Wants(every=4, reward=True, entropy=True)

    def decide(self, group, event):
        for member in group.members:
            if member.entropy is not None:
                ended = member.state in ("finished", "truncated")
                note("shown", [member.tokens, ended, member.entropy, isinstance(event, Every)])
        if not group.unended and all(member.reward is not None for member in group.members):
            yield Finalize(tuple(member.id for member in group.members))


def reward(sample):
    note("sampled", [sample.prompt, list(sample.ids)])
    return float(len(sample.ids) % 2)
"""


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

    def noted(name: str) -> list[Any]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    (tmp_path / "mine.py").write_text(PLUGIN)
    run = tmp_path / "entropies"
    settings = ["engine.kind=simulated", "selector=mine:Entropies", "sampling.temperature=1"]
    settings += ["reward.python.function=mine:reward", "learner.overlap=token", "workers.count=1"]
    settings += ["learner.lr=1e-12"]  # so that the weights stay those that are compared with
    with train(run, tmp_path / "log", *settings, path=tmp_path) as job:
        assert job.wait() == 0, job.text
    net = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    means = [prefix_entropies(net, tokenizer, *response) for response in noted("sampled")]
    shown = {tuple(line) for line in noted("shown")}
    assert len(shown) >= 30
    assert any(every for *_, every in shown), "of running members too"
    for tokens, ended, entropy, _ in shown:
        fit = [m[:tokens] for m in means if len(m) == tokens or (len(m) > tokens and not ended)]
        assert min(float((m - entropy).abs().min()) for m in fit) < 2e-5


def test_a_selector_of_entropies_without_streamed_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    settings = ["engine.kind=simulated", "selector=mine:Entropies", "learner.overlap=group"]
    with train(tmp_path / "run", tmp_path / "log", *settings, path=tmp_path) as job:
        assert job.wait() == 2
    assert "set learner.overlap: token, and learner.zero to 0, 1 or 2" in job.text
