"""What a run writes down, and what a resume forgets of it."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.coordinator.events import Generate, Report, Tick
from pipeline.observability.jsonl_writer import JsonlWriter
from pipeline.observability.live_status import RunStatus
from pipeline.observability.recorder import SAMPLES_SHOWN, Records
from pipeline.plugins.views import Sampled
from pipeline.system.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "r")
    run.make_folders()
    return run


@pytest.fixture
def records(run: RunFolder) -> Iterator[Records]:
    records = Records(run)
    yield records
    records.close()


def sampled(prompt: str, response: str) -> Sampled:
    return Sampled(
        prompt=prompt, response=response, finish="stop", tokens=2, answer="4\ud800", columns={}
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_decisions_and_groups_go_to_one_file_all_else_to_metrics(
    run: RunFolder, records: Records
) -> None:
    records.write("decision", {"step": 0, "action": "Drop"})
    records.write("group", {"step": 0, "group": 4})
    records.write("step", {"step": 0, "reward": 0.5, "ledger": {"open": 3}})
    records.write("wait", {"step": 0, "text": "waiting"})
    records.flush()
    assert [line["what"] for line in lines(run.decisions)] == ["decision", "group"]
    assert [line["what"] for line in lines(run.metrics)] == ["step", "wait"]
    assert all(line["step"] == 0 for line in lines(run.metrics))
    for line in (*lines(run.decisions), *lines(run.metrics)):
        assert line["time"] == pytest.approx(time.time(), abs=60)


def test_a_number_that_is_not_finite_is_still_a_line_of_json(
    run: RunFolder, records: Records
) -> None:
    records.write("step", {"step": 0, "learner": {"norm": float("nan")}})
    records.flush()
    assert lines(run.metrics)[0]["learner"] == {"norm": None}


@pytest.mark.fault("records have lines from after the checkpoint", part="disk", by="file")
def test_a_resume_forgets_what_was_written_after_the_checkpoint(run: RunFolder) -> None:
    """Promise: a resume cuts them off; no step stands there twice.
    Bound: at the resume.
    """
    first = Records(run)
    first.write("step", {"step": 0})
    first.write("decision", {"step": 0})
    sizes = first.sizes()
    first.write("step", {"step": 1})
    first.write("decision", {"step": 1})
    first.close()
    Records.truncate_files(run, sizes)
    second = Records(run)
    second.write("step", {"step": 1, "again": True})
    second.close()
    assert [(line["step"], line.get("again")) for line in lines(run.metrics)] == [
        (0, None),
        (1, True),
    ]
    assert [line["step"] for line in lines(run.decisions)] == [0]


def test_a_run_that_goes_on_after_its_end_is_not_done_any_more(run: RunFolder) -> None:
    run.result.write_text('{"steps": 3}')
    Records.truncate_files(run, {})
    assert not run.result.exists()


def test_a_file_that_the_checkpoint_did_not_know_is_emptied(run: RunFolder) -> None:
    run.decisions.write_text('{"step": 3}\n')
    Records.truncate_files(run, {})
    assert run.decisions.read_text() == ""


def test_a_file_shorter_than_the_checkpoint_says_is_not_filled_with_zeros(run: RunFolder) -> None:
    run.metrics.write_text('{"step": 0}\n')
    Records.truncate_files(run, {"metrics.jsonl": 1000})
    assert run.metrics.read_text() == '{"step": 0}\n'


def test_every_evaluation_keeps_a_response_to_each_of_the_same_prompts(
    run: RunFolder, records: Records
) -> None:
    prompts = [f"{number}+1=" for number in range(SAMPLES_SHOWN + 30)]
    for step, order in ((20, prompts), (40, prompts[::-1])):
        for prompt in (*order, *order):
            records.sample(sampled(prompt, f"#{step}"), 1.0, {})
        records.write("eval", {"step": step, "accuracy": 1.0})
    first, second = ((run.samples / f"step-0000{n}.jsonl").read_text() for n in (20, 40))
    assert len(first.splitlines()) == SAMPLES_SHOWN
    assert first.replace("#20", "#40") == second


def test_samples_have_prompt_response_and_answer_apart(run: RunFolder, records: Records) -> None:
    records.sample(sampled("2+2=", "#5\n#6"), 0.0, {"form": 1.0})
    records.write("eval", {"step": 40, "accuracy": 0.0})
    assert lines(run.samples / "step-000040.jsonl") == [
        {"prompt": "2+2=", "response": "#5\n#6", "answer": "4\\ud800", "reward": 0.0,
         "parts": {"form": 1.0}, "finish": "stop", "tokens": 2}
    ]  # fmt: skip


def test_the_result_appears_whole(run: RunFolder, records: Records) -> None:
    records.result({"accuracy_after": 0.96})
    assert json.loads(run.result.read_text()) == {"accuracy_after": 0.96}
    assert not run.result.with_suffix(".tmp").exists()


class Failing:
    """A tracker whose every call raises."""

    closed = False

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        raise OSError("no space left on device")

    def log_status(self, now: RunStatus) -> None:
        raise OSError("no space left on device")

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        raise OSError("no space left on device")

    def close(self) -> None:
        self.closed = True


@pytest.mark.fault("a tracker fails", part="disk", by="file")
def test_a_tracker_that_fails_ends_no_run_and_is_asked_no_more(run: RunFolder) -> None:
    """Promise: the run's records go on without it.
    Bound: at its first failure.
    """
    failing = Failing()
    records = Records(run, trackers=[failing])
    records.write("step", {"step": 0, "reward": 0.5})
    records.write("step", {"step": 1, "reward": 0.5})
    records.close()
    assert [line["step"] for line in lines(run.metrics)] == [0, 1]


@pytest.mark.fault("the trace cannot be written", part="disk", by="file")
def test_a_trace_that_cannot_be_written_ends_no_run(run: RunFolder) -> None:
    """Promise: the run's records go on.
    Bound: at that write.
    """
    records = Records(run, trace_steps=1)
    run.trace.mkdir()
    place = Generate(
        engine="e0", kind="train", prompt=0, trajectory=1, leg=0, prefix=b"", max_tokens=9, seed=0
    )
    records.record_event(0.0, Tick(), [place], 0.0)
    over = Report(what="step", fields={"step": 0, "seconds": 1.0})
    records.record_event(1.0, Tick(), [over], 1.0)
    records.close()
    assert [line["what"] for line in lines(run.metrics)] == ["timing"]


def test_a_resumed_run_that_ends_before_its_first_step_leaves_the_old_trace(run: RunFolder) -> None:
    run.trace.write_text("the old one")
    records = Records(run, resumed_step=20, trace_steps=5)
    records.record_event(0.0, Tick(), [], 0.0)
    records.close()
    assert run.trace.read_text() == "the old one"


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """No file of this process grows past so many bytes: as on a full disk, the write that meets the
    limit is cut short, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault("no room for metrics, decisions or logs for a while", part="disk", by="file")
def test_lines_wait_for_room_and_none_is_cut_in_two(run: RunFolder, records: Records) -> None:
    """Promise: told once; lines wait in memory and are on file, whole and in their order, when
    there is room again; a checkpoint in between counts the whole ones alone.
    Bound: at the next flush.
    """
    for step in range(2):
        records.write("wait", {"step": step})
    assert records.flush() == []
    whole = records.sizes()["metrics.jsonl"]
    with files_of(whole + 10):
        records.write("wait", {"step": 2})
        [told] = records.flush()
        assert "metrics.jsonl: File too large; its lines wait in memory for room" in told
        assert records.flush() == []
        assert run.metrics.stat().st_size == whole + 10, "a part of the line is there"
        assert records.sizes() == {"metrics.jsonl": whole}
    records.write("wait", {"step": 3})
    [told] = records.flush()
    assert told.endswith("there is room again")
    assert [line["step"] for line in lines(run.metrics)] == [0, 1, 2, 3]
    assert records.sizes() == {"metrics.jsonl": run.metrics.stat().st_size}


def test_what_waits_for_room_is_bounded_and_what_is_left_out_is_counted(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.observability.jsonl_writer.MOST_KEPT", 100)
    file = JsonlWriter(run.metrics)
    file.write(b"1\n")
    with files_of(1):
        file.flush()
        for _ in range(10):
            file.write(b"x" * 49 + b"\n")
        file.flush()
        assert (file.full, file.lost) == ("File too large", 9)
    file.close()
    assert run.metrics.read_bytes() == b"1\n" + b"x" * 49 + b"\n"
    assert file.lost == 9
    full = run.path / "full"
    full.symlink_to("/dev/full")
    file = JsonlWriter(full)
    file.write(b"1\n")
    file.close()
    assert (file.full, file.lost) == ("No space left on device", 1)


def test_a_line_that_finds_room_in_three_pieces_is_no_whole_one_before_the_last(
    run: RunFolder,
) -> None:
    file = JsonlWriter(run.metrics)
    file.write(b"1\n")
    file.flush()
    file.write(b"x" * 49 + b"\n")
    for room in (12, 22):
        with files_of(room):
            file.flush()
        assert (run.metrics.stat().st_size, file.size) == (room, 2)
    file.close()
    assert file.size == 52


def test_a_file_that_cannot_be_opened_yet_gets_its_lines_later(run: RunFolder) -> None:
    file = JsonlWriter(run.path / "later" / "metrics.jsonl")
    file.write(b"1\n")
    file.flush()
    assert (file.full, file.size) == ("No such file or directory", 0)
    (run.path / "later").mkdir()
    file.close()
    assert (file.full, file.size, file.lost) == ("", 2, 0)


def test_samples_that_find_no_room_end_no_run(
    run: RunFolder, records: Records, caplog: pytest.LogCaptureFixture
) -> None:
    (run.samples / "step-000003.jsonl").symlink_to("/dev/full")
    records.sample(sampled("1+1=", "2"), 1.0, {})
    records.write("eval", {"step": 3, "accuracy": 0.5})
    assert "no samples of step 3: [Errno 28] No space left on device" in caplog.text
