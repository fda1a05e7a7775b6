"""A typed `Config` -> complaints about settings that do not fit together.

The range of a single setting stands where its field does, in `pipeline.config.schema`. Pure, but
for listing the built-in tasks and the arguments of installed engines. Says what was found, the
rule and the cure; `pipeline.config.load` adds where it was written.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from pipeline.config import engine_arguments, eval_rules
from pipeline.config.schema import Config, DataConfig, EngineConfig, LearnerConfig
from pipeline.plugins import registry

_OTHER_KERNELS = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Names of transformers that are known and refused with a reason."""


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """(key, complaint) for every setting that clashes with another."""
    yield from _learner(config.learner)
    yield from _lengths(config)
    yield from _batch_and_loss(config)
    yield from _evaluation(config)
    yield from _data(config.data)
    yield from _engine(config.engine)
    yield from _pace(config)
    yield from _ports(config)
    yield from _ordered(config)
    yield from _stop(config)


def _pace(config: Config) -> Iterator[tuple[str, str]]:
    if config.engine.pace and config.engine.kind == "simulated":
        cure = "take vllm or transformers, or leave the pace out"
        yield "engine.pace", f"engine.kind is simulated, which has a pace of its own; {cure}"
    if config.weights.bytes and not config.weights.pace:
        yield "weights.bytes", "without weights.pace it counts for nothing; set both, or neither"


def _stop(config: Config) -> Iterator[tuple[str, str]]:
    name = config.environment.name
    if config.sampling.stop and name != "single":
        why = f"the environment is {name}, which says itself what ends a turn"
        cure = f"name them in environment.{name}.stop"
        yield "sampling.stop", f"found {', '.join(map(repr, config.sampling.stop))}: {why}; {cure}"


def _ordered(config: Config) -> Iterator[tuple[str, str]]:
    """What depends on how fast an engine or a learner is, whatever the order of events."""
    if not config.debug.ordered:
        return
    if config.learner.max_staleness:
        why = "new weights come in the middle of responses, at a token that no order can fix"
        yield (
            "debug.ordered",
            f"found true, but learner.max_staleness is above 0: {why}; set it to 0",
        )
    if config.learner.overlap == "token":
        why = "forwards of streamed tokens are batched as they come"
        yield "debug.ordered", f"found true, but learner.overlap is token: {why}; take group or off"


def warnings(config: Config) -> Iterator[str]:
    """Lines about settings that are allowed, and change what is learned."""
    section = config.learner
    if 0 < config.step.count < section.warmup_steps:
        yield (
            f"step.count is {config.step.count}, but learner.warmup_steps is "
            f"{section.warmup_steps}: learner.lr is never reached"
        )
    own = getattr(registry.find_plugin("loss", config.loss.name), "own_importance", False)
    if section.max_staleness and section.importance == "off" and not own:
        yield (
            "learner.importance is off, but learner.max_staleness is "
            f"{section.max_staleness}: stale tokens are not weighed by old over behaviour "
            "probability; auto truncates that weight"
        )
    if section.max_staleness and not section.close_s:
        yield (
            "learner.close_s is 0, but learner.max_staleness is "
            f"{section.max_staleness}: stale tokens use the engine's logprobs as old ones"
        )


def _learner(section: LearnerConfig) -> Iterator[tuple[str, str]]:
    if section.attention in _OTHER_KERNELS:
        why = "the learner's calls share a prompt's keys among its responses, which that function"
        cure = "of transformers cannot read; auto takes torch's own fused kernels"
        yield "learner.attention", f"found {section.attention!r}: {why} {cure}"
    if section.dtype == "bfloat16" and section.zero == 0:
        why = "learner.dtype is bfloat16: DeepSpeed keeps float32 master weights at ZeRO 1 to 3"
        cure = "1 takes no more memory on one rank, and less on several"
        yield "learner.zero", f"found 0, but {why}; {cure}"
    if section.lora is not None and section.zero == 3:
        why = "learner.lora is set: adapters are merged with whole weights"
        yield "learner.zero", f"found 3, but {why}; take 0 to 2"


def _lengths(config: Config) -> Iterator[tuple[str, str]]:
    """What is longer than a response."""
    limit = config.sampling.max_tokens
    overlong = config.advantage.options.get("overlong_tokens", 0)
    if overlong > limit:
        why = "a response without any token would be penalised"
        cure = "set it lower, or sampling.max_tokens higher"
        found = f"found {overlong}, expected at most sampling.max_tokens, {limit}"
        yield f"advantage.{config.advantage.name}.overlong_tokens", f"{found}: {why}; {cure}"
    prompt, longest = config.data.max_prompt_tokens, config.engine.vllm.get("max_model_len")
    response = max(limit, config.eval.max_tokens)
    needed = response + max(1, prompt)
    if config.engine.kind == "vllm" and isinstance(longest, int) and 0 < longest < needed:
        key = "sampling" if response == limit else "eval"
        parts = f"{key}.max_tokens and {'data.max_prompt_tokens' if prompt else 'a prompt'}"
        cure = "set it higher, or leave it out: the engine takes what the model does"
        rule = f"expected at least {needed}, {parts}"
        yield "engine.vllm.max_model_len", f"found {longest}, {rule}: {cure}"


def _ports(config: Config) -> Iterator[tuple[str, str]]:
    port, first = config.metrics.prometheus_port, config.nodes.port
    if port and first <= port < first + 4:
        rule = f"one of the four ports from nodes.port ({first}) on"
        yield "metrics.prometheus_port", f"found {port}, {rule}; choose another"


def _batch_and_loss(config: Config) -> Iterator[tuple[str, str]]:
    if config.learner.updates > config.step.prompts >= 1:
        cure = f"at most step.prompts, {config.step.prompts}: a mini-batch needs a group"
        yield "learner.updates", f"found {config.learner.updates}, expected {cure}"
    kl = config.loss.options.get("kl", 0.0)
    if kl and not config.learner.reference:
        cure = "set learner.reference: start, or kl: 0"
        yield f"loss.{config.loss.name}.kl", f"found {kl}, but learner.reference is empty: {cure}"
    if config.loss.options.get("proximal") == "reference" and not config.learner.reference:
        cure = "set learner.reference: average, or proximal: old"
        found = f"found reference, but learner.reference is empty: {cure}"
        yield f"loss.{config.loss.name}.proximal", found
    if config.learner.reference == "average":
        if config.learner.zero == 3:
            cure = "set it to 0, 1 or 2: the average is of weights that are whole on each rank"
            yield "learner.zero", f"found 3, but learner.reference is average: {cure}"
        if config.learner.lora is not None:
            cure = "set learner.reference: start, or lora: null"
            yield "learner.reference", f"found average, but learner.lora is set: {cure}"


def _engine(section: EngineConfig) -> Iterator[tuple[str, str]]:
    if section.kind == "transformers" and section.tensor_parallel > 1:
        found = f"found {section.tensor_parallel}, but engine.kind is transformers"
        cure = "set it to 1, or engine.kind: vllm"
        yield "engine.tensor_parallel", f"{found}, which computes on one GPU: {cure}"
    yield from engine_arguments.problems(section)


def _evaluation(config: Config) -> Iterator[tuple[str, str]]:
    yield from eval_rules.problems(config)
    if config.eval.every:
        if config.data.held_out == 0 and not config.eval.sets:
            yield "data.held_out", "found 0, but eval.every asks for evaluations; or eval.every: 0"


def _data(data: DataConfig) -> Iterator[tuple[str, str]]:
    if data.prompt == data.answer:
        yield "data.answer", f"found {data.answer!r}, the same field as data.prompt; name another"
    if data.train == ():
        yield "data.train", "found an empty list, expected a source at least; name a file"
    for key, value in (("data.system", data.system), ("data.chat_template", data.chat_template)):
        if value and data.chat == "never":
            found = f"found {value!r:.60}, but data.chat is never, so no template is used"
            yield key, f"{found}: leave it out, or set data.chat: always"
    if data.chat_arguments and data.chat == "never":
        found = f"found {', '.join(data.chat_arguments)}, but data.chat is never"
        why = "so no template is used: leave them out, or set data.chat: always"
        yield "data.chat_arguments", f"{found}, {why}"
    for source in () if isinstance(data.train, str) else data.train:
        prompt, answer = source.prompt or data.prompt, source.answer or data.answer
        if prompt == answer and data.prompt != data.answer:
            found = f"found {prompt!r} for both the prompt and the answer of {source.path}"
            yield "data.train", f"{found}; name another"
    for name in ("messages", "tokenize"):
        if name in data.chat_arguments:
            yield "data.chat_arguments", f"found {name}, which darts sets itself; leave it out"


def tasks() -> list[str]:
    """Names of the built-in tasks."""
    package = importlib.import_module("pipeline.tasks")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
