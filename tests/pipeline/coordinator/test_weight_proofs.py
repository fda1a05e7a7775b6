"""Loads of weights by engines: which are admitted, and how they are counted."""

from __future__ import annotations

import pytest

from pipeline.config.load import load
from pipeline.coordinator.events import (
    GroupTrained,
    LoadWeights,
    Published,
    Report,
    StepDone,
    WeightsLoaded,
)
from pipeline.stage.build import coordinator_settings
from pipeline.stage.translate import event_of
from pipeline.wire import messages
from tests.paths import ROOT
from tests.pipeline.coordinator.bench import Bench, Wire, only


def loaded(
    engine: str, version: int, *, proved: bool, checked: int = 0, tensors: int = 35
) -> WeightsLoaded:
    return WeightsLoaded(
        engine=engine,
        version=version,
        gap=1e-6,
        proved=proved,
        tensors_checked=checked,
        tensors=tensors,
    )


def finish_step(bench: Bench, group: int) -> dict[str, object]:
    """Train on one group; returns the record of the step."""
    step = bench.core.step
    bench.train_one(group)
    bench.handle(GroupTrained(rank=0, group=group, tokens=7.0))
    bench.handle(StepDone(rank=0, step=step, version=step + 1))
    reports = [r.fields for r in only(bench.everything, Report) if r.what == "step"]
    assert len(reports) == step + 1
    return reports[-1]


def test_a_steps_record_counts_its_loads_by_what_the_engines_could_tell() -> None:
    bench = Bench(steps=2, need=1)
    bench.begin(engines=0)
    bench.wires |= {name: Wire() for name in ("e0", "e1")}
    for name in ("e0", "e1"):
        bench.coordinator.scheduler.join(name, 0, 8)
    bench.handle(loaded("e0", 0, proved=False, checked=34))
    bench.handle(loaded("e1", 0, proved=True, checked=35))
    record = finish_step(bench, 0)
    assert {name: record[name] for name in ("weights_proved", "weights_unsure")} == {
        "weights_proved": 1,
        "weights_unsure": 1,
    }
    assert (record["tensors_checked"], record["tensors_published"]) == (34, 35)


def test_a_result_sums_the_loads_of_all_steps() -> None:
    bench = Bench()
    bench.begin(engines=2)
    bench.handle(Published(version=1))
    bench.handle(loaded("e0", 1, proved=True, checked=35))
    bench.handle(loaded("e1", 1, proved=True, checked=35))
    result = bench.coordinator.outcome(1.0)
    assert (result["weights_proved"], result["weights_unsure"]) == (2, 2)
    served = [r.fields for r in only(bench.everything, Report) if r.what == "served"]
    assert [one["proved"] for one in served] == [False, False, True, True]


def test_what_an_engine_could_tell_crosses_the_wire() -> None:
    message = messages.WeightsLoaded(
        version=3, gaps={"1.0": 2e-6, "0.7": 3e-6}, proved=True, tensors_checked=28, tensors=30
    )
    assert event_of("e0", 0, message) == WeightsLoaded(
        engine="e0", version=3, gap=3e-6, proved=True, tensors_checked=28, tensors=30
    )


@pytest.mark.fault(
    "an engine computes other logprobs with the right weights", part="engines", by="direct"
)
@pytest.mark.parametrize(
    "overrides, right, wrong",
    [
        (("engine.dtype=float32",), 4e-6, 2e-3),
        (("engine.dtype=bfloat16",), 0.7, 2.1),
        (("engine.dtype=auto",), 0.7, 2.1),
        (("learner.dtype=bfloat16", "learner.zero=1", "engine.dtype=bfloat16"), 0.7, 2.1),
    ],
)
def test_an_engine_with_the_right_tensors_and_a_wrong_function_is_not_admitted(
    overrides: tuple[str, ...], right: float, wrong: float
) -> None:
    """Promise: whatever its tensors are, an engine is refused above 1e-3 nats in float32 and 2 in
    bfloat16, far above rounding (4e-6 and 0.7) and below a wrong temperature (6).
    Bound: the first load.
    """
    limit = coordinator_settings(
        load(ROOT / "configs/quickstart.yaml", overrides), prompts=50, stop_tokens=frozenset()
    ).gap_limit
    for gap, admitted in ((right, True), (wrong, False)):
        bench = Bench(gap_limit=limit)
        bench.begin(engines=0)
        bench.coordinator.scheduler.join("e0", 0, 8)
        proof = messages.WeightsLoaded(
            version=0, gaps={"1.0": 0.0, "0.7": gap}, proved=True, tensors_checked=35, tensors=35
        )
        commands = bench.handle(event_of("e0", 0, proof))
        assert bool(bench.coordinator.scheduler.serving()) is admitted
        loads = len(only(commands, LoadWeights))  # the first is of its join
        assert loads == (1 if admitted else 2), "it is to load again"
