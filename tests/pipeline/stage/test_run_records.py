"""What a stage writes into its run's folder beside its records: the responses of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.config.load import load
from pipeline.coordinator.events import KeepRollouts
from pipeline.data.dataset import Dataset, Item
from pipeline.data.tokenizer import Tokenizer
from pipeline.observability.live_status import RunStatus
from pipeline.observability.rollout_files import file_of, read_rollouts
from pipeline.stage.build import Parts
from pipeline.stage.run_records import RunRecords
from pipeline.system.run_folder import RunFolder
from tests.paths import MODEL, ROOT
from tests.pipeline.coordinator.bench import Bench, only


class Table:
    """A tracker that keeps the responses that it gets."""

    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None: ...

    def log_status(self, now: RunStatus) -> None: ...

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows[step] = [row["id"] for row in rows]

    def close(self) -> None: ...


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    run = RunFolder(tmp_path / "r")
    run.make_folders()
    item = Item(prompt="7+9=", tokens=b"", answer="16", columns={})
    return Parts(
        config=load(ROOT / "configs/quickstart.yaml", ["metrics.wandb=mine"]),
        run=run,
        server=cast(Any, None),
        coordinator=cast(Any, None),
        tokenizer=Tokenizer(MODEL),
        data={"train": Dataset("rows", [item] * 9)},
        incarnation=1,
        weights=tmp_path,
        spare_weights=tmp_path,
        resumed_step=-1,
        trackers=[Table()],
    )


def test_responses_are_kept_and_sent_and_what_ends_again_after_a_resume_is_there_once(
    parts: Parts,
) -> None:
    bench = Bench(candidates=2, rollouts_every=1, steps=2, prompts=9)
    bench.begin()
    bench.learn(bench.train_one(0))
    at_cut = list(only(bench.everything, KeepRollouts))
    live, following = {*bench.core.trajectories}, bench.core.next_trajectory
    step = bench.core.step
    bench.serve()
    bench.learn(bench.train_one(1))
    after = only(bench.everything, KeepRollouts)[len(at_cut) :]
    first = RunRecords(parts, reward_workers=1)
    for command in (*at_cut, *after):
        first.keep(command)
    first.close()
    assert cast(Table, parts.trackers[0]).rows == {0: [1, 0], 1: [3, 2]}, "the worst first"

    bench.core.trajectories = dict.fromkeys(live)  # type: ignore[assignment]
    bench.core.next_trajectory, bench.core.step = following, step
    again = RunRecords(parts, reward_workers=1)
    again.forget_rollouts(bench.core)
    for command in after:
        again.keep(command)
    again.close()
    ids = [line.id for n in (0, 1) for line in read_rollouts(file_of(parts.run.rollouts, n))]
    assert ids == [0, 1, 2, 3]
