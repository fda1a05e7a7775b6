"""The methods that `darts bench compare` holds against each other.

A method is a name, its settings and a line that describes it. It sets budget, selector and
overlap, so that it does not change with the defaults of darts. A recipe, or a file of the user's,
is a method too: what it does not set is the configuration's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from pipeline.config import recipes

BASELINE = "sync"
"""The method that ratios refer to."""


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of settings."""

    name: str
    about: str
    overrides: tuple[str, ...]


def _method(name: str, about: str, *overrides: str) -> Method:
    streamed = () if any(o.startswith("learner.overlap=") for o in overrides) else (_STREAMED,)
    return Method(name=name, about=about, overrides=(*overrides, *streamed))


_STREAMED = "learner.overlap=group"
_UNIFORM = ("budget=uniform", "budget.redundancy=1.5")
_NO_SPARE = ("budget=uniform", "budget.redundancy=1", "selector=all")
_TOP_UP = ("budget=uniform", "budget.redundancy=1", "budget.top_up=fewest", "selector=first_m")
_DEFERRED = (
    "prompt_order=tail_batching",
    "prompt_order.tail_batching.speculate=true",
    "step.reserve_share=0.25",
)
_STALE = ("learner.max_staleness=1",)

METHODS = {
    method.name: method
    for method in (
        _method(
            BASELINE,
            "GRPO as verl does it: sample 8, wait for all, then learn",
            *_NO_SPARE,
            "learner.overlap=off",
        ),
        _method("sync_streamed", "the same, backward of a group while others generate", *_NO_SPARE),
        _method(
            "darts_published",
            "7 shortest and the longest of 12, each group waits for its longest",
            *_UNIFORM,
            "selector.dual_end.long_wait=group",
        ),
        _method(
            "darts_barrier",
            "7 shortest and the longest of 12 that has ended when the step's last group is enough",
            *_UNIFORM,
            "selector.dual_end.long_wait=step",
        ),
        _method(
            "concise_confident",
            "short and confident ones of 12, and the longest at the step barrier",
            *_UNIFORM,
            "selector.concise_confident.depth=step",
        ),
        _method(
            "darts_adaptive",
            "the paper's: as darts_published, more candidates where lengths vary more, up to 16; "
            "a group of 16 keeps the first 8",
            "budget=length_variance",
            "selector.dual_end.long_wait=group",
            "selector.dual_end.prune_at=2",
        ),
        _method(
            "barrier_adaptive",
            "as darts_barrier, more candidates where lengths vary more, up to 16",
            "budget=length_variance",
            "selector.dual_end.long_wait=step",
            "selector.dual_end.prune_at=2",
        ),
        *(
            _method(
                f"{base}_{8 - longest}_{longest}",
                f"as {whole}, {8 - longest} shortest and {longest} longest",
                *_UNIFORM,
                f"selector.dual_end.long_wait={wait}",
                f"selector.dual_end.longest={longest}",
            )
            for base, whole, wait in (
                ("darts", "darts_published", "group"),
                ("barrier", "darts_barrier", "step"),
            )
            for longest in (2, 4)
        ),
        _method("first_m", "the first 8 of 12 to finish", *_UNIFORM, "selector=first_m"),
        _method(
            "tail_batching",
            "a quarter more prompts and candidates; late ones wait for long rounds",
            "recipe=tail_batching",
        ),
        _method("top_up", "first 8, sample 8: idle slots get more, up to 16", *_TOP_UP),
        _method(
            "top_up_quorum",
            "the same; once 90% of the groups have closed, the others close with 6",
            *_TOP_UP,
            "batch=quorum",
        ),
        _method(
            "top_up_deferred",
            "top_up with a quarter more prompts; late ones wait for long rounds",
            *_TOP_UP,
            *_DEFERRED,
        ),
        _method(
            "top_up_deferred_quorum",
            "the same; once 90% of the groups have closed, the others close with 6",
            *_TOP_UP,
            *_DEFERRED,
            "batch=quorum",
        ),
        _method(
            "k1",
            "sample 8, wait for all, one version of staleness, truncated importance weights",
            *_NO_SPARE,
            *_STALE,
        ),
        _method("k1_top_up", "top_up with one version of staleness", *_TOP_UP, *_STALE),
    )
}

QUICK = (BASELINE, "darts_barrier", "top_up_quorum")
"""Synchronous, DARTS with the step barrier, and our fastest method."""

SETS = {
    "all": tuple(METHODS),
    "quick": QUICK,
    # the paper's table, in its order: streamed passes, dual-end selection, allocation
    "ablation": (BASELINE, "sync_streamed", "darts_published", "darts_adaptive"),
    "ablation_barrier": (BASELINE, "sync_streamed", "darts_barrier", "barrier_adaptive"),
    "ends_barrier": (BASELINE, "darts_barrier", "barrier_6_2", "barrier_4_4"),
    "ends": (BASELINE, "darts_published", "darts_6_2", "darts_4_4"),  # K:L of 7:1, 6:2, 4:4
}
"""Names that stand for several methods."""


def methods_named(text: str, seeds: int) -> dict[str, int]:
    """Parses names of methods and sets, separated by commas; each once, in their order, with its
    number of seeds: `seeds`, or what stands after a colon. Raises ValueError for another word.

    >>> methods_named("ends, sync:5, mine=mine.yaml", seeds=3)
    {'sync': 5, 'darts_published': 3, 'darts_6_2': 3, 'darts_4_4': 3, 'mine': 3}
    """
    found: dict[str, int] = {}
    for name, _, own in _words(text):
        for method in SETS.get(name, (name,)):
            if own or method not in found:
                found[method] = int(own) if own else seeds
    return found


def own_methods(text: str) -> dict[str, Method]:
    """Methods of the user's in the same text: `mine=path.yaml` is the settings of that file.

    Raises: ValueError if there is no such file, or the name is another method's.
    """
    found: dict[str, Method] = {}
    for name, path, _ in _words(text):
        if not path:
            continue
        if name in METHODS or name in SETS or name in found:
            raise ValueError(f"{name}={path}: there is a method of this name; choose another")
        found[name] = _of_file(name, Path(path))
    return found


def recipe_methods(text: str, seeds: int) -> tuple[dict[str, Method], dict[str, int]]:
    """Recipes as methods: by name, separated by commas, or `all` of them.

    Returns: the methods, and the number of seeds of each, as of `methods_named`.
    Raises: ValueError for an unknown name.
    """
    found: dict[str, Method] = {}
    counts: dict[str, int] = {}
    for word, _, own in _words(text):
        for name in recipes.builtin_names() if word == "all" else (word,):
            path = recipes.recipe_path(name)
            if path is None:
                raise ValueError(f"{name}: no such recipe; darts config recipes lists them")
            known = path.stem
            found[known] = _of_file(known, path)
            if own or known not in counts:
                counts[known] = int(own) if own else seeds
    return found, counts


def _of_file(name: str, path: Path) -> Method:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    about = recipes.about(path).sentence or f"the settings of {path}"
    return Method(name=name, about=about, overrides=(f"recipe={path.resolve()}",))


def _words(text: str) -> Iterator[tuple[str, str, str]]:
    """(name, path, number of seeds) of each `name`, `name:5`, `name=path` or `name=path:5`."""
    for word in text.split(","):
        rest, colon, count = word.strip().rpartition(":")
        rest, own = (rest, count) if colon else (count, "")
        name, _, path = rest.partition("=")
        yield name, path, own
