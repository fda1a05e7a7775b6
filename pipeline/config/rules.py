"""A typed `Config` -> complaints about its values: ranges, choices, and pairs that clash.

Pure, but for listing the tasks of the house and the arguments of installed
engines. Says what was found, the rule and the cure; `pipeline.config.load` adds
where it was written.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from pipeline.config import engine_arguments, eval_rules
from pipeline.config.schema import Config, Data, LearnerSection

_OTHER_KERNELS = ("flash_attention_2", "flash_attention_3", "flex_attention")
"""Names of transformers that are known and refused with a reason."""
CHOICES: dict[str, tuple[str, ...]] = {
    "data.bad_lines": ("stop", "skip"),
    "data.chat": ("auto", "always", "never"),
    "data.long_prompts": ("stop", "drop", "cut"),
    "learner.dtype": ("float32", "bfloat16"),
    "learner.attention": ("auto", "sdpa", "eager", *_OTHER_KERNELS),
    "learner.schedule": ("constant", "linear", "cosine"),
    "learner.overlap": ("off", "group", "token"),
    "learner.stale": ("wait", "drop"),
    "learner.old_logprobs": ("auto", "always"),
    "learner.importance": ("off", "truncate", "mask"),
    "engine.kind": ("vllm", "transformers", "simulated"),
    "nodes.learners": ("first", "spread"),
    "engine.dtype": ("float32", "bfloat16", "auto"),
}


def _at_least(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= low, f"at least {low}"


def _above(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value > low, f"above {low}"


def _is_field(value: str) -> bool:
    return all(value.split("."))


_FIELD = "the name of a field, with dots for one inside another"
_CORES = re.compile(r"auto|\d+(-\d+)?(,\d+(-\d+)?)*")

RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda value: 0 <= value < 2**31, "from 0 to 2147483647"),
    "data.held_out": (lambda value: isinstance(value, str) or value >= 0, "at least 0, or a file"),
    "data.train.*.path": (bool, "a task, a file, a folder or a pattern"),
    "data.train.*.weight": _above(0),
    "data.train.*.prompt": (lambda value: not value or _is_field(value), _FIELD),
    "data.train.*.answer": (lambda value: not value or _is_field(value), _FIELD),
    "data.prompt": (_is_field, _FIELD),
    "data.answer": (lambda value: not value or _is_field(value), f"{_FIELD}, or nothing"),
    "data.max_prompt_tokens": _at_least(0),
    "sampling.temperature": _above(0),
    "sampling.max_tokens": _at_least(1),
    "step.count": _at_least(0),
    "step.prompts": _at_least(1),
    "step.reserve": _at_least(0),
    "step.tries": _at_least(1),
    "group.size": _at_least(2),
    "learner.ranks": _at_least(1),
    "learner.lr": _above(0),
    "learner.betas": (
        lambda value: all(0 <= beta < 1 for beta in value),
        "two numbers from 0 to below 1",
    ),
    "learner.gradient_checkpointing": (lambda value: isinstance(value, bool), "true or false"),
    "learner.lora.rank": _at_least(1),
    "learner.lora.alpha": _above(0),
    "learner.lora.dropout": (
        lambda value: value == 0,
        "0: with dropout the learner's logprobs are not those of what the engines serve",
    ),
    "learner.lora.targets": (
        lambda value: bool(value) and all(value),
        "names of linear layers, or all-linear",
    ),
    "learner.min_lr": (lambda value: 0 <= value <= 1, "a share of learner.lr, from 0 to 1"),
    "learner.eps": _above(0),
    "learner.weight_decay": _at_least(0),
    "learner.no_decay": (all, "parts of parameters' names, none of them empty"),
    "learner.clip_norm": _at_least(0),
    "learner.warmup_steps": _at_least(0),
    "learner.tokens_per_micro_batch": _at_least(1),
    "learner.zero": (lambda value: 0 <= value <= 3, "a stage from 0 to 3"),
    "learner.updates": _at_least(1),
    "learner.epochs": _at_least(1),
    "learner.importance_cap": _at_least(1),
    "learner.kv_tokens": _at_least(1),
    "learner.max_staleness": _at_least(0),
    "learner.entropy": (lambda value: isinstance(value, bool), "true or false"),
    "learner.threads": _at_least(0),
    "engine.count": _at_least(1),
    "engine.slots": _at_least(1),
    "engine.knee": _at_least(0),
    "engine.chunk_tokens": _at_least(1),
    "engine.cpu_cores": (
        lambda value: _CORES.fullmatch(value) is not None,
        'auto, or cores such as "0" or "0-3"',
    ),
    "engine.cpu_kv_gib": _at_least(1),
    "engine.gpu_memory": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "engine.tensor_parallel": _at_least(1),
    "engine.restarts": _at_least(0),
    "eval.every": _at_least(0),
    "eval.samples": _at_least(1),
    "eval.k": (lambda value: all(k >= 1 for k in value), "numbers of at least 1"),
    "eval.greedy": (lambda value: isinstance(value, bool), "true or false"),
    "checkpoint.every": _at_least(0),
    "checkpoint.keep": _at_least(2),
    "audit.every": _at_least(0),
    "audit.alarm": _at_least(0),
    "watch.warn_s": _above(0),
    "watch.lost_s": (lambda value: value >= 2, "at least 2: peers are heard once a second"),
    "watch.join_s": _above(0),
    "watch.load_s": _above(0),
    "watch.abort_s": _above(0),
    "watch.sampling_s": _above(0),
    "watch.still_s": _above(0),
    "watch.reward_s": _above(0),
    "watch.learner_s": _above(0),
    "watch.checkpoint_s": _above(0),
    "watch.stop_s": _above(0),
    "watch.timing": (lambda value: isinstance(value, bool), "true or false"),
    "watch.trace_steps": _at_least(0),
    "nodes.interface": (
        lambda value: not set(value) & set(" /:"),
        "a network interface (eth1), an IPv4 address, or nothing",
    ),
    "nodes.port": (
        lambda value: value == 0 or 1024 <= value < 65533,
        "0, or a port from 1024 to 65532",
    ),
    "nodes.expose": (lambda value: isinstance(value, bool), "true or false"),
    "nodes.patience_s": _above(0),
    "metrics.tensorboard": (lambda value: isinstance(value, bool), "true or false"),
    "metrics.prometheus_port": (
        lambda value: value == 0 or 1024 <= value < 65536,
        "0, or a port from 1024 to 65535",
    ),
    "metrics.wandb": (
        lambda value: not set(value) & set("/\\#?%:"),
        "a project's name, without / \\ # ? % :",
    ),
    "metrics.mlflow": (lambda value: value == value.strip(), "an experiment's name"),
    "metrics.trackio": (
        lambda value: not set(value) & set("/\\"),
        "a project's name, without / \\",
    ),
}


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """(key, complaint) for every value that does not fit."""
    for pattern, choices in CHOICES.items():
        for key, value in values_of(config, pattern):
            if value not in choices:
                near = difflib.get_close_matches(value, choices, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                yield key, f"found {value!r}, expected one of {', '.join(choices)}{hint}"
    for pattern, (fits, rule) in RULES.items():
        for key, value in values_of(config, pattern):
            if not fits(value):
                yield key, f"found {value!r}, expected {rule}"
    yield from _pairs(config)
    yield from engine_arguments.problems(config.engine)


def _learner(section: LearnerSection) -> Iterator[tuple[str, str]]:
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


def _pairs(config: Config) -> Iterator[tuple[str, str]]:
    yield from _learner(config.learner)
    if config.learner.updates > config.step.prompts >= 1:
        cure = f"at most step.prompts, {config.step.prompts}: a mini-batch needs a group"
        yield "learner.updates", f"found {config.learner.updates}, expected {cure}"
    kl = config.loss.options.get("kl", 0.0)
    if kl and not config.learner.reference:
        cure = "set learner.reference: start, or kl: 0"
        yield f"loss.{config.loss.name}.kl", f"found {kl}, but learner.reference is empty: {cure}"
    if config.engine.kind == "transformers" and config.engine.tensor_parallel > 1:
        found = f"found {config.engine.tensor_parallel}, but engine.kind is transformers"
        cure = "set it to 1, or engine.kind: vllm"
        yield "engine.tensor_parallel", f"{found}, which computes on one GPU: {cure}"
    yield from eval_rules.problems(config)
    if config.eval.every:
        if config.data.held_out == 0 and not config.eval.sets:
            yield "data.held_out", "found 0, but eval.every asks for evaluations; or eval.every: 0"
        elif (
            config.data.train not in tasks()
            and config.data.held_out != 0
            and (not isinstance(config.data.held_out, str))
        ):
            cure = "name a file of held-out prompts, or set eval.every: 0"
            what = "a file" if isinstance(config.data.train, str) else "a list of sources"
            found = f"found {config.data.held_out}, but data.train is {what}"
            yield "data.held_out", f"{found}: {cure}"
    yield from _data(config.data)


def _data(data: Data) -> Iterator[tuple[str, str]]:
    if data.prompt == data.answer:
        yield "data.answer", f"found {data.answer!r}, the same field as data.prompt; name another"
    if data.train == ():
        yield "data.train", "found an empty list, expected a source at least; name a file"
    for key, value in (("data.system", data.system), ("data.chat_template", data.chat_template)):
        if value and data.chat == "never":
            found = f"found {value!r:.60}, but data.chat is never, so no template is used"
            yield key, f"{found}: leave it out, or set data.chat: always"
    for name in ("messages", "tokenize"):
        if name in data.chat_arguments:
            yield "data.chat_arguments", f"found {name}, which darts sets itself; leave it out"


def values_of(config: Config, pattern: str) -> list[tuple[str, Any]]:
    """(key, value) of a dotted key; of every entry where it has a `*`, as in `data.train.*.weight`.

    Nothing where a list, a dictionary or a section on the way is absent.
    """
    found: list[tuple[str, Any]] = [("", config)]
    for part in pattern.split("."):
        found = [
            (f"{key}.{name}".lstrip("."), value)
            for key, holder in found
            for name, value in _entries(holder, part)
        ]
    return found


def _entries(holder: Any, part: str) -> Iterable[tuple[str, Any]]:
    if part != "*":
        return [(part, getattr(holder, part))] if hasattr(holder, part) else []
    if isinstance(holder, dict):
        return cast(dict[str, Any], holder).items()
    if isinstance(holder, tuple):
        return ((str(index), item) for index, item in enumerate(cast(tuple[Any, ...], holder)))
    return []


def tasks() -> list[str]:
    """Names of the tasks of the house."""
    package = importlib.import_module("pipeline.tasks")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
