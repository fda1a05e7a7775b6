"""Lines of responses: texts, ids and reasons; bounded memory, and news where something is lost."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.rollouts import RolloutsConfig
from pipeline.coordinator.events import KeepRollouts
from pipeline.coordinator.rollouts import Rollout
from pipeline.data.dataset import Dataset, Item
from pipeline.data.tokenizer import Tokenizer
from pipeline.observability.rollout_files import RolloutLine, file_of, read_rollouts
from pipeline.stage import rollout_writer
from pipeline.stage.rollout_writer import RolloutWriter
from pipeline.system.run_folder import RunFolder
from tests.paths import MODEL


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "r")
    run.make_folders()
    return run


def writer_of(run: RunFolder, tokenizer: Tokenizer, **given: Any) -> RolloutWriter:
    item = Item(prompt="7+9=", tokens=b"", answer="16", columns={})
    tables = given.pop("tables", False)
    return RolloutWriter(
        run, RolloutsConfig(**given), Dataset("rows", [item]), tokenizer, tables=tables
    )


def rollout(
    tokenizer: Tokenizer, number: int, text: str, reward: float = 1.0, **more: Any
) -> Rollout:
    tokens = np.array(tokenizer.encode(text), "<i4")
    logprobs = np.full(len(tokens), -0.25, "<f4")
    return Rollout(
        id=number,
        state="finished",
        finish="stop",
        fate="trained",
        why="",
        reward=reward,
        tokens=tokens.tobytes(),
        logprobs=logprobs.tobytes(),
        **more,
    )


def keep(step: int, *rollouts: Rollout) -> KeepRollouts:
    return KeepRollouts(step=step, group=2, prompt=0, attempt=0, version=step, fate="trained",
                        why="all", rollouts=rollouts)  # fmt: skip


def read(run: RunFolder, step: int) -> list[RolloutLine]:
    return list(read_rollouts(file_of(run.rollouts, step)))


def test_a_line_has_prompt_answer_pieces_ids_and_what_became_of_it(
    run: RunFolder, tokenizer: Tokenizer
) -> None:
    writer = writer_of(run, tokenizer)
    turns = rollout(tokenizer, 8, "7+9=;16;#16", 0.5, appended=((4, 3),), parts={"math": 0.5})
    writer.keep(keep(0, turns))
    writer.close()
    [line] = read(run, 0)
    assert (line.prompt_text, line.answer, line.response) == ("7+9=", "16", "7+9=;16;#16")
    assert line.pieces == (("7+9=", True), (";16", False), (";#16", True))
    assert line.token_ids == tuple(tokenizer.encode("7+9=;16;#16"))
    assert (line.tokens, line.appended, line.logprobs) == (8, ((4, 3),), ())
    assert (line.id, line.group, line.fate, line.group_why) == (8, 2, "trained", "all")
    assert (line.reward, line.parts) == (0.5, {"math": 0.5})
    assert writer.news() == []


def test_logprobs_are_kept_on_request(run: RunFolder, tokenizer: Tokenizer) -> None:
    writer = writer_of(run, tokenizer, logprobs=True)
    writer.keep(keep(0, rollout(tokenizer, 1, "#16")))
    writer.close()
    assert read(run, 0)[0].logprobs == (-0.25, -0.25, -0.25)


def test_files_are_their_owner_s_alone(run: RunFolder, tokenizer: Tokenizer) -> None:
    writer = writer_of(run, tokenizer)
    writer.keep(keep(0, rollout(tokenizer, 1, "#16")))
    writer.close()
    assert stat.S_IMODE(run.rollouts.stat().st_mode) == 0o700


def test_trackers_get_the_worst_and_the_best_of_every_step(
    run: RunFolder, tokenizer: Tokenizer
) -> None:
    writer = writer_of(run, tokenizer, tables=True)
    for step in range(2):
        writer.keep(keep(step, *(rollout(tokenizer, n, "#16", float(n)) for n in range(30))))
    writer.close()
    tables = {step: [line.id for line in lines] for step, lines in writer.tables()}
    assert tables == {step: [*range(8), *range(22, 30)] for step in range(2)}
    assert [len(read(run, step)) for step in range(2)] == [30, 30]


def test_with_a_disk_that_is_too_slow_groups_are_left_out_and_counted(
    run: RunFolder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_writer, "MOST_WAITING", 20)
    writer = writer_of(run, tokenizer)
    for number in range(3):
        writer.keep(keep(0, rollout(tokenizer, number, "1+1=2;1+1=2")))
    writer.close()
    assert writer.news() == [f"{run.rollouts}: too slow: 3 groups were left out"]
    assert writer.news() == []


def test_a_step_that_finds_no_room_is_said_once(run: RunFolder, tokenizer: Tokenizer) -> None:
    writer = writer_of(run, tokenizer, max_gib=1e-9)
    for step in (0, 0, 1):
        writer.keep(keep(step, rollout(tokenizer, step, "#16")))
    writer.close()
    assert [line.partition(": they need")[0] for line in writer.news()] == [
        "rollouts of step 1", "rollouts of step 2",
    ]  # fmt: skip


def test_a_failure_of_its_own_ends_no_run_and_is_said(run: RunFolder, tokenizer: Tokenizer) -> None:
    writer = writer_of(run, tokenizer)
    run.rollouts.rmdir()
    run.rollouts.write_text("no folder")
    writer.keep(keep(0, rollout(tokenizer, 1, "#16")))
    writer.close()
    [said] = writer.news()
    assert "left out" in said or "no more responses are kept" in said
