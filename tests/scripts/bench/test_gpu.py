"""The benchmark of one GPU: its parts, its model, and what it makes of runs; on a CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from pipeline.config.load import load
from scripts.bench.gpu import methods, model, parts, pipeline, run, tail
from tests.scripts.bench.lines import step_line


def test_of_forward_and_backward_what_lies_behind_generation_counts_as_hidden() -> None:
    """A step of 4 s: 2 generation, 0.5 load, 0.5 optimizer and publish, so 1 of 3 after."""
    more = {"tokens_sampled": 800, "tokens_trained": 400, "bubble_engine": 0.25}
    parts = {"backward_s": 3.0, "optimizer_s": 0.3, "publish_s": 0.2, "mismatch": 0.01}
    lines = [step_line(v, 10.0 * v, **parts) | more for v in range(3)]
    lines += [{"what": "served", "version": v, "time": 10.0 * v - 9.5} for v in (1, 2)]
    found = pipeline.run_averages(lines)
    assert found.hidden_share == pytest.approx(2 / 3)
    assert (found.steps, found.tokens_per_s, found.trained_per_s) == (2, 200.0, 100.0)


def test_what_a_gpu_run_lost_is_told_beside_what_it_found() -> None:
    point = {"running": 8, "step_s": 0.02, "tokens_per_s": 400.0}
    engine = {"about": {"device": "cuda"}, "start_s": 5.0, "points": [point]}
    engine |= {"load_s": 0.4, "gap": 1e-3, "peak_gib": 9.0}
    parts = {
        "engine": {"error": "", "found": engine},
        "group": {"error": "not done within 110 s"},
    }
    told = run.gpu_table({"parts": parts})
    assert "| 8 | 20.00 | 400 |" in told
    assert "group: not done within 110 s" in told


def test_a_part_that_hangs_is_ended_in_time_and_one_that_fails_is_told(tmp_path: Path) -> None:
    hangs = ["http.server", "0", "--bind", "127.0.0.1"]
    assert "not done within 1 s" in parts.run_limited(hangs, tmp_path / "log", 1.0)
    assert "status 2" in parts.run_limited(["scripts.bench.gpu.model"], tmp_path / "log", 30.0)


def test_the_padded_tokenizer_has_a_word_for_every_id() -> None:
    source = json.loads((model.TOKENIZER / "tokenizer.json").read_text())
    words = model.padded_tokenizer(source, 40)["model"]["vocab"]
    assert sorted(words.values()) == list(range(40))
    assert {word: words[word] for word in source["model"]["vocab"]} == source["model"]["vocab"]


@pytest.mark.parametrize("name", methods.COMPARED)
@pytest.mark.parametrize("scale", [methods.TINY, methods.VLLM, methods.EAGER, methods.CAPTURED])
def test_every_method_has_a_configuration_for_every_engine(
    tmp_path: Path, name: str, scale: methods.Scale
) -> None:
    file = tmp_path / "methods.yaml"
    tiny = scale is methods.TINY
    settings = methods.method_settings(model.TOKENIZER, scale, tiny, methods.METHOD_STEPS)
    file.write_text(yaml.safe_dump(settings))
    config = load(file, methods.method_overrides(name, settings["engine"]["slots"]))
    assert (config.group.size, config.sampling.max_tokens) == (8, scale.max_tokens)
    assert config.learner.overlap == ("off" if name == "sync" else "group")


def test_methods_are_told_beside_the_synchronous_one_and_what_failed() -> None:
    averages = dict.fromkeys(pipeline.Run.__struct_fields__, 0.5)
    sync = averages | {"steps": 3, "step_s": 8.0, "longest_over_mean": 4.0}
    first_m = averages | {"steps": 5, "step_s": 4.0, "longest_over_mean": None}
    found = {
        "engine": "vLLM",
        "tail": [40, 480],
        "max_tokens": 1536,
        "parts": {
            "sync": {"error": "", "found": sync},
            "first_m": {"error": "", "found": first_m},
            "darts_barrier": {"error": "status 1; see the log"},
        },
    }
    told = methods.methods_table(found)
    assert "| first_m | 5 | 4.00 | 0.50 | 0 | 0 | 50% | - |" in told
    assert any(line.startswith("| sync | 3 | 8.00 | 1.00 |") for line in told)
    assert "darts_barrier: status 1; see the log" in told


def test_a_response_decides_with_its_first_token_how_long_it_may_become(tmp_path: Path) -> None:
    """The model's own probabilities: a quarter long, and a stop after each kind as it was asked."""
    means = tail.Means(short=6, long=72)
    model.make_model(tmp_path / "model", model.TINY, 32, "float32", (means.short, means.long))
    tiny: Any = cast(Any, AutoModelForCausalLM).from_pretrained(tmp_path / "model")
    stops = model.stop_tokens(512, 32)
    prompt = [5, 14, 7, 15]  # of the task's own words
    kinds_V = tail.kinds_of(512, 22, stops)

    def next_V(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return tiny(torch.tensor([tokens])).logits[0, -1].softmax(-1)

    first_V = next_V(prompt)
    assert float(first_V[kinds_V > 0].sum()) == pytest.approx(tail.LONG_SHARE, abs=0.05)
    assert float(first_V[stops].sum()) < 0.06
    for kind, mean in ((-1.0, means.short), (1.0, means.long)):
        own = (kinds_V == kind).nonzero().flatten().tolist()
        after_V = next_V([*prompt, *own[:12]])
        stop = float(after_V[stops].sum())
        assert 1.0 / stop == pytest.approx(mean, rel=0.35)
        assert float(after_V[kinds_V == kind].sum()) / (1.0 - stop) > 0.99


def test_longest_over_mean_is_within_a_group(tmp_path: Path) -> None:
    def group(*tokens: int) -> dict[str, Any]:
        members = [[n, "ended", count, None, 0.0, True] for n, count in enumerate(tokens)]
        line = {"step": 0, "group": 0, "kind": "train", "fate": "trained", "members": members}
        return {"what": "group", **line}

    file = tmp_path / "decisions.jsonl"
    lines = [{"what": "decision"}, group(1, 3), group(2, 2, 2), group(0)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert methods.longest_over_mean(file) == pytest.approx((1.5 + 1.0) / 2)
    assert methods.longest_over_mean(tmp_path / "none") is None


@pytest.mark.long
@pytest.mark.deepspeed
@pytest.mark.timeout(600)
def test_the_methods_run_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    status = run.main(["--out", str(out), "--methods", "--tiny", "--steps", "3"])
    found = json.loads((out / "gpu.json").read_text())
    assert status == 0, found
    sync = found["parts"]["sync"]["found"]
    assert (sync["steps"], sync["hidden_share"]) == (2, 0.0)
    assert sync["sampled"] == sync["trained"]  # nothing is left out
    assert sync["longest_over_mean"] > 2.0
    for name in methods.COMPARED:
        assert found["parts"][name]["found"]["steps"] == 2
