"""Settings that are each in their range: pairs that make no sense together are refused, those of
which one has no effect are told before a run, and those that a user may well want are neither."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.preflight.without_effect import without_effect
from pipeline.config import rules
from pipeline.config.load import ConfigError, load
from tests.paths import ROOT

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
NO_EVALUATION = ("data.held_out=0", "eval.every=0")
BROUGHT = ("model=models/chain-sums", "data.train=chain_sums", "data.held_out=8")


def overrides_for(path: Path, *more: str) -> list[str]:
    """Files that are not shipped are replaced."""
    return [*(BROUGHT if path.name.startswith("qwen") else ()), *more]


REFUSED: list[tuple[Sequence[str], str, str]] = [
    # settings, the key of the complaint, what it says
    (
        ["eval.temperature=0"],
        "eval.temperature",
        (
            "found 0, and 4 responses of a prompt would be the same: set eval.samples: 1, or leave "
            "the temperature and set eval.greedy: true"
        ),
    ),
    (
        ["eval.temperature=0", "eval.samples=1", "eval.top_k=5"],
        "eval.top_k",
        (
            "found 5, but eval.temperature is 0: the likeliest token is always taken; leave one of "
            "them out"
        ),
    ),
    (
        ["sampling.stop=['</a>']", "environment=calculator"],
        "sampling.stop",
        (
            "found '</a>': the environment is calculator, which says itself what ends a turn; name "
            "them in environment.calculator.stop"
        ),
    ),
    (
        ["engine.vllm.max_model_len=200", "eval.max_tokens=300"],
        "engine.vllm.max_model_len",
        (
            "found 200, expected at least 301, eval.max_tokens and a prompt: set it higher, or "
            "leave it out: the engine takes what the model does"
        ),
    ),
    (
        ["advantage.overlong_tokens=129"],
        "advantage.grpo.overlong_tokens",
        (
            "found 129, expected at most sampling.max_tokens, 128: a response without any "
            "token would be penalised; set it lower, or sampling.max_tokens higher"
        ),
    ),
    (
        ["engine.vllm.max_model_len=128"],
        "engine.vllm.max_model_len",
        "found 128, expected at least 129, sampling.max_tokens and a prompt",
    ),
    (
        ["engine.vllm.max_model_len=150", "data.max_prompt_tokens=30"],
        "engine.vllm.max_model_len",
        "found 150, expected at least 158, sampling.max_tokens and data.max_prompt_tokens",
    ),
    (
        ["nodes.port=5000", "metrics.prometheus_port=5003"],
        "metrics.prometheus_port",
        "found 5003, one of the four ports from nodes.port (5000) on; choose another",
    ),
    (
        ["data.chat=never", "data.chat_arguments.enable_thinking=false"],
        "data.chat_arguments",
        "found enable_thinking, but data.chat is never, so no template is used",
    ),
    (
        [
            "data.train=[{path: chain_sums, prompt: q, answer: q}]",
            "data.held_out=0",
            "eval.every=0",
        ],
        "data.train",
        "found 'q' for both the prompt and the answer of chain_sums; name another",
    ),
    (
        ["data.train=[{path: chain_sums, answer: prompt}]", *NO_EVALUATION],
        "data.train",
        "found 'prompt' for both the prompt and the answer of chain_sums; name another",
    ),
    (["learner.updates=17"], "learner.updates", "found 17, expected at most step.prompts, 16"),
    (
        ["loss.decoupled_ppo.proximal=reference"],
        "loss.decoupled_ppo.proximal",
        "found reference, but learner.reference is empty",
    ),
    (
        ["learner.reference=average", "learner.zero=3"],
        "learner.zero",
        "found 3, but learner.reference is average",
    ),
    (["loss.dapo.kl=0.1"], "loss.dapo.kl", "found 0.1, but learner.reference is empty"),
    (["eval.every=0", "eval.best=accuracy"], "eval.best", "but eval.every is 0"),
    (["selector.longest=8"], "selector.dual_end", "longest is 8, but group.size is 8: at most 7"),
    (["batch.quorum.size=9"], "batch.quorum", "size is 9, but group.size is 8: from 2 to 8"),
    (["budget.length_variance.spare=9"], "budget.length_variance", "spare is 9, but most allows"),
]


@pytest.mark.parametrize(
    "settings,key,says", REFUSED, ids=[" ".join(settings) for settings, *_ in REFUSED]
)
def test_what_makes_no_sense_together_is_refused(settings: Sequence[str], key: str, says: str):
    with pytest.raises(ConfigError) as raised:
        load(QUICKSTART, settings)
    [line] = [line for line in raised.value.problems if f" {key}: " in line]
    assert says in line
    assert raised.value.problems == [line]


def test_a_warm_up_that_is_longer_than_the_run_is_told_and_no_reason_to_refuse():
    config = load(QUICKSTART, ["step.count=3", "learner.warmup_steps=4"])
    assert list(rules.warnings(config)) == [
        "step.count is 3, but learner.warmup_steps is 4: learner.lr is never reached"
    ]
    assert not list(rules.warnings(load(QUICKSTART, ["step.count=4", "learner.warmup_steps=4"])))


def refused(path: Path, *settings: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path, settings)
    [line] = raised.value.problems
    return line


NOTED: list[tuple[Sequence[str], str]] = [
    (
        ["audit.every=61"],
        "audit.every is 61, but step.count is 60: no step is audited",
    ),
    (
        ["audit.every=10", "selector=all"],
        "audit.every is 10, but the selector all trains on every candidate",
    ),
    (
        ["eval.every=0", "eval.sets.more=chain_sums"],
        "eval.sets is given (more), but eval.every is 0",
    ),
    (["eval.every=0", "eval.greedy=true"], "eval.greedy is true, but eval.every is 0"),
    (["eval.every=0", "eval.top_p=0.9"], "eval.top_p is 0.9, but eval.every is 0"),
    (
        ["metrics.timing=false", "metrics.trace_steps=9"],
        "metrics.trace_steps is 9, but metrics.timing is false: no trace is written",
    ),
    (
        ["learner.overlap=token"],
        "learner.overlap is token, but no old or reference logprobs are wanted: as with group",
    ),
    (
        ["learner.overlap=token", "learner.updates=2", "learner.zero=3"],
        "learner.overlap is token, but with learner.zero 3 all ranks compute together: as off",
    ),
    (
        ["learner.overlap=token", "learner.updates=2", "engine.chunk_tokens=128"],
        (
            "learner.overlap is token, but engine.chunk_tokens is 128, and a response has at "
            "most 128: none is streamed before its end"
        ),
    ),
    (
        ["learner.overlap=token", "learner.updates=2", "learner.kv_tokens=127"],
        (
            "learner.overlap is token, but learner.kv_tokens is 127, and a response may have "
            "128: the longest are computed when their group comes"
        ),
    ),
    (["learner.min_lr=0.1"], "learner.min_lr is 0.1, but learner.schedule is constant"),
    (
        ["learner.importance=truncate", "loss=vcpo"],
        (
            "learner.importance is truncate, but the loss vcpo corrects for stale tokens "
            "itself, or not at all"
        ),
    ),
    (
        ["loss=kl_cov"],
        (
            "loss is kl_cov, but with one update and no stale tokens every ratio is 1: no "
            "token is held near the old policy"
        ),
    ),
    (
        ["learner.schedule=cosine", "learner.warmup_steps=60"],
        (
            "learner.schedule is cosine, but learner.warmup_steps is 60, and the run has no "
            "step after them"
        ),
    ),
    (
        ["learner.no_decay=[bias]"],
        "learner.no_decay is bias, but learner.weight_decay is 0",
    ),
    (
        ["learner.tokens_per_micro_batch=150", "data.max_prompt_tokens=30"],
        (
            "learner.tokens_per_micro_batch is 150, but a prompt and its response may have "
            "158: longer ones are computed alone, above this limit"
        ),
    ),
    (
        ["learner.ranks=4", "learner.updates=5"],
        (
            "learner.ranks is 4, but there are 5 mini-batch(es) of a step with 16 prompt(s): "
            "some ranks have no group"
        ),
    ),
    (
        ["budget.top_up=fewest", "budget.redundancy=2"],
        (
            "budget.uniform.top_up is fewest, but a group begins with at least 16 "
            "candidates, and most allows 16"
        ),
    ),
    (
        ["budget.length_variance.top_up=fewest", "budget.most=1"],
        (
            "budget.length_variance.top_up is fewest, but a group begins with at least 8 "
            "candidates, and most allows 8"
        ),
    ),
    (
        ["selector.prune_at=2"],
        (
            "selector.dual_end.prune_at is 2, but budget.uniform gives a group at most 12 "
            "candidates, for 8 trained on"
        ),
    ),
    (
        ["engine.knee=32"],
        "engine.knee is 32, but budget.uniform gives no candidates by top_up",
    ),
    (
        ["budget.length_variance.mean=1.25", "budget.time_weight=0.4"],
        "budget.length_variance.time_weight is 0.4, but mean is 1.25, so no utility is maximised",
    ),
    (
        ["selector.concise_confident.depth=none", "selector.longest=2"],
        "selector.concise_confident.longest is 2, but depth is none",
    ),
    (
        ["selector.concise_confident.slack=2"],
        "selector.concise_confident.slack is 2, but depth is step",
    ),
    (
        ["step.reserve=17"],
        (
            "step.reserve is 17, but step.tries allows 32 groups, and 16 are trained on: at "
            "most 16 are in reserve"
        ),
    ),
    (
        ["step.tries=1", "advantage.drop_equal=true"],
        (
            "advantage.grpo.drop_equal is true, but step.tries allows 16 groups, as many as "
            "are trained on: dropped groups are not replaced, and steps are smaller"
        ),
    ),
    (
        ["batch.quorum.share=1"],
        "batch.quorum.share is 1: no group may close with fewer members, as with fifo",
    ),
    (["batch.quorum.size=8"], "batch.quorum.size is 8, which is group.size: as with fifo"),
    (["batch=replay"], "batch.replay.fresh is 0.5, but step.keep is 0: nothing is there to replay"),
    (["step.keep=16"], "step.keep is 16, but batch fifo replays nothing"),
    (["step.hold=3"], "step.hold is 3, but selector dual_end holds no group"),
    (
        ["learner.reference=start", "learner.reference_decay=0.5"],
        "learner.reference_decay is 0.5, but learner.reference is not average",
    ),
    (
        ["environment.calculator.turn_tokens=128"],
        "environment.calculator.turn_tokens is 128, but a whole response has at most 128",
    ),
    (
        ["engine.kind=simulated", "engine.vllm.enforce_eager=true"],
        "engine.vllm is given (enforce_eager), but engine.kind is simulated",
    ),
]


@pytest.mark.parametrize("settings,note", NOTED, ids=[" ".join(settings) for settings, _ in NOTED])
def test_what_has_no_effect_beside_another_is_told(settings: Sequence[str], note: str):
    assert without_effect(load(QUICKSTART, settings)) == [f"note: {note}"]


LEGITIMATE: list[Sequence[str]] = [
    ["eval.every=500"],  # before the first and after the last
    ["checkpoint.every=500"],  # after the last, and at Ctrl-C
    ["eval.best=accuracy", "checkpoint.every=0"],  # the best step has a checkpoint of its own
    ["learner.warmup_steps=60"],  # reached in the last step
    ["step.count=0"],  # evaluates
    ["eval.temperature=0.6", "eval.top_p=0.95", "eval.top_k=20", "eval.min_p=0.01"],
    ["eval.temperature=0", "eval.samples=1"],
    ["sampling.stop=['</answer>']", "eval.max_tokens=400"],
    ["advantage.overlong_tokens=128"],
    ["engine.chunk_tokens=500"],  # whole responses, but nothing is streamed to the learner
    ["engine.slots=2"],  # candidates queue
    ["learner.reference=average"],
    ["placement.order=longest", "placement.kv_tokens=4096"],
    ["budget.top_up=slowest"],
    ["learner.reference=start"],  # a divergence that is measured
    ["learner.overlap=token", "learner.reference=start"],
    ["learner.zero=3", "learner.overlap=token", "learner.reference=start"],
    ["budget.redundancy=1"],  # nothing to select from: a baseline
    ["budget.redundancy=3"],  # `most` is for top_up
    ["budget.length_variance.top_up=fewest"],
    ["selector.prune_at=1.5"],
    ["budget.top_up=fewest", "selector.prune_at=2", "engine.knee=16"],
    ["selector.longest=0"],
    ["step.tries=1"],
    ["step.reserve=16"],
    ["metrics.timing=false"],
    ["audit.alarm=0"],
    ["audit.every=60"],
    ["nodes.port=5000", "metrics.prometheus_port=5004"],
    ["engine.vllm.max_model_len=129"],
    ["engine.kind=transformers", "engine.tensor_parallel=1"],
    ["prompt_order.shuffled.epochs=1"],
    ["batch=replay", "step.keep=16"],
]


@pytest.mark.parametrize("settings", LEGITIMATE, ids=" ".join)
def test_what_a_user_may_want_is_neither_refused_nor_told(settings: Sequence[str]):
    assert without_effect(load(QUICKSTART, settings)) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_configuration_has_no_setting_without_effect(path: Path):
    if path.name == "simulate.yaml":
        pytest.skip("nothing is trained with it")
    assert without_effect(load(path, overrides_for(path))) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_configuration_can_be_cut_to_two_steps(path: Path):
    whole = load(path, overrides_for(path))
    config = load(path, overrides_for(path, "step.count=2"))
    assert (config.step.count, config.checkpoint.every) == (2, whole.checkpoint.every)
    never = any("learner.lr is never reached" in line for line in rules.warnings(config))
    assert never == (whole.learner.warmup_steps > 2)
