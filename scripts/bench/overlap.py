"""Measures what overlap hides.

    python -m scripts.bench.overlap [--study NAME] [--out FILE]

`backward`: large steps of the quickstart's task, run three ways: `sink` only generates, `off`
learns after generation, `group` learns while other groups are generated. The mean step is compared
with the longer of generation alone and learning alone, plus what cannot overlap: the last group,
the optimizer, the publish, the load and its check.

`barrier`: the same with `dual_end`, whose groups may have to wait for the last one of the step.

`logprobs`: `configs/darts.yaml` with `learner.overlap` `off` and `token`: the share of the forwards
for old logprobs that ran before all groups of their step had come.

Ways are interleaved, each run in fresh processes; the first step of a run is left out. The learning
rate is almost zero in the first two studies, so that all ways generate the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config.load import load
from scripts.bench.engine_overhead import SHORT, metrics_of
from scripts.bench.program import options_parser, ways_in_turn, write_json

_LARGE = ("step.prompts=160", "learner.lr=1e-12")


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration and the ways to run its steps."""

    config: str
    overrides: tuple[str, ...]
    ways: tuple[str, ...]  # values of learner.overlap, and `sink`


STUDIES = {
    "backward": Study(
        config="configs/quickstart.yaml",
        overrides=("selector=first_m", *_LARGE),
        ways=("sink", "off", "group"),
    ),
    "barrier": Study(
        config="configs/quickstart.yaml",
        overrides=("selector=dual_end", *_LARGE),
        ways=("sink", "off", "group"),
    ),
    "logprobs": Study(config="configs/darts.yaml", overrides=(), ways=("off", "token")),
}


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the steps of one run; seconds."""

    step: float
    generation: float  # first request to last token
    learning: float  # forward and backward
    last_group: float  # share of one group in `learning`
    optimizer: float
    publish: float
    load: float  # from the end of a step until an engine has checked its version
    logprobs: float  # forwards for old logprobs
    hidden: float  # of those, before all groups had come


def step_means(lines: Sequence[Mapping[str, Any]]) -> Steps:
    """Averages the lines of a run's metrics, without its first step.

    Raises: ValueError if there are fewer than two steps.
    """
    steps = [line for line in lines if line["what"] == "step"][1:]
    if not steps:
        raise ValueError("a run of two steps or more is needed")
    served = {line["version"]: line["time"] for line in lines if line["what"] == "served"}

    def mean(name: str) -> float:
        return statistics.fmean(line["learner"].get(name, 0.0) for line in steps)

    loads = [served[s["version"] + 1] - s["time"] for s in steps if s["version"] + 1 in served]
    return Steps(
        step=statistics.fmean(line["seconds"] for line in steps),
        generation=statistics.fmean(line["generation_s"] for line in steps),
        learning=mean("backward_s"),
        last_group=statistics.fmean(
            line["learner"].get("backward_s", 0.0) / max(1, line["groups"].get("trained", 0))
            for line in steps
        ),
        optimizer=mean("optimizer_s"),
        publish=mean("publish_s"),
        load=statistics.fmean(loads) if loads else 0.0,
        logprobs=mean("logprob_s"),
        hidden=mean("logprob_hidden_s"),
    )


def bound(sink: Steps, off: Steps) -> dict[str, float]:
    """Returns the lower bound of a step: its longer half plus what cannot overlap.

    Args:
        sink: generation alone.
        off: learning alone, the share of each group, and the serial part.
    """
    serial = off.last_group + off.optimizer + off.publish + off.load
    return {
        "generation": sink.generation,
        "learning": off.learning,
        "serial": serial,
        "bound": max(sink.generation, off.learning) + serial,
    }


def measure_overlap(study: Study, repeats: int, overrides: Sequence[str]) -> dict[str, list[Steps]]:
    """Runs every way, interleaved. Raises BenchError, ConfigError and ValueError."""
    found: dict[str, list[Steps]] = {way: [] for way in study.ways}
    for way, path in ways_in_turn(study.ways, repeats):
        overlap, learner = ("off", "sink") if way == "sink" else (way, "learner")
        given = (*SHORT, *study.overrides, *overrides, f"learner.overlap={overlap}")
        steps = step_means(metrics_of(load(Path(study.config), given), path, learner))
        found[way].append(steps)
        print(
            f"{way:8}{steps.step:7.2f} s a step: generation {steps.generation:.2f}, "
            f"learning {steps.learning:.2f}, logprobs {steps.logprobs:.2f}",
            flush=True,
        )
    return found


def overlap_summary(name: str, found: Mapping[str, Sequence[Steps]]) -> dict[str, Any]:
    """Returns medians over the repetitions; ratios are taken within each."""
    document: dict[str, Any] = {
        way: [msgspec.to_builtins(steps) for steps in runs] for way, runs in found.items()
    }
    if name != "logprobs":
        limits = [bound(*pair) for pair in zip(found["sink"], found["off"], strict=True)]
        document["bounds"] = limits
        for way in ("off", "group"):
            ratios = [s.step / b["bound"] for s, b in zip(found[way], limits, strict=True)]
            document[f"{way}_over_bound"] = statistics.median(ratios)
    else:
        for way, runs in found.items():
            shares = [s.hidden / s.logprobs for s in runs if s.logprobs]
            document[f"{way}_hidden_share"] = statistics.median(shares) if shares else None
        pairs = zip(found["off"], found["token"], strict=True)
        document["speed_up"] = statistics.median(off.step / token.step for off, token in pairs)
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser(__doc__, steps=6, repeats=3, overrides="settings of the study")
    parser.add_argument("--study", choices=list(STUDIES), default="backward", help="see above")
    options = parser.parse_args(arguments)
    given = (f"step.count={options.steps}", "learner.warmup_steps=0", *options.overrides)
    found = overlap_summary(
        options.study, measure_overlap(STUDIES[options.study], options.repeats, given)
    )
    for key, value in found.items():
        if isinstance(value, float):
            print(f"{key}: {value:.3f}")
    write_json(options.out, found)


if __name__ == "__main__":
    main()
