"""The section `eval` -> complaints: sets, pass@k, and the figure that names the best step."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.config.evaluation import EvalConfig
from pipeline.config.schema import Config
from pipeline.plugins.ranges import did_you_mean

_SET = re.compile(r"[A-Za-z0-9_.-]+")


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """(key, complaint) for what does not fit."""
    section = config.eval
    metrics: list[str] = []
    yield from _sampling(config)
    if config.data.held_out != 0:
        metrics += _metrics("", section.samples, section.k, greedy=section.greedy)
    if over := [k for k in section.k if k > section.samples]:
        rule = f"expected at most eval.samples, {section.samples}"
        yield "eval.k", f"found {max(over)}, {rule}: take a smaller k, or more samples"
    for name, given in section.sets.items():
        key = f"eval.sets.{name}"
        if not _SET.fullmatch(name):
            yield key, f"found the name {name!r}, expected letters, digits, '_', '.' and '-'"
        samples, k = section.samples, section.k
        if not isinstance(given, str):
            samples = given.samples or samples
            k = given.k or (k if samples == section.samples else ())
            if bad := [k for k in given.k if k > samples]:
                yield f"{key}.k", f"found {bad[0]}, expected from 1 to its samples, {samples}"
        metrics += _metrics(f"{name}/", samples, k, greedy=section.greedy)
    if section.best and section.best not in metrics:
        hint = did_you_mean(section.best, metrics)
        yield (
            "eval.best",
            f"found {section.best!r}, expected one of {', '.join(metrics) or 'none'}{hint}",
        )
    if section.best and not section.every:
        yield "eval.best", f"found {section.best!r}, but eval.every is 0: nothing is evaluated"


def _sampling(config: Config) -> Iterator[tuple[str, str]]:
    section = config.eval
    if section.temperature != 0:
        return
    sets = [one.samples for one in section.sets.values() if not isinstance(one, str)]
    if most := max((n for n in (section.samples, *sets) if n > 1), default=0):
        why = f"{most} responses of a prompt would be the same"
        cure = "set eval.samples: 1, or leave the temperature and set eval.greedy: true"
        yield "eval.temperature", f"found 0, and {why}: {cure}"
    for name in ("top_p", "top_k", "min_p"):
        if (value := getattr(section, name)) != getattr(EvalConfig(), name):
            why = "eval.temperature is 0: the likeliest token is always taken"
            yield f"eval.{name}", f"found {value}, but {why}; leave one of them out"


def _metrics(prefix: str, samples: int, k: tuple[int, ...], *, greedy: bool) -> list[str]:
    passes = [f"pass@{one}" for one in k or (samples,)]
    names = ["reward", "accuracy", *passes, *(["greedy"] * greedy)]
    return [prefix + name for name in names]
