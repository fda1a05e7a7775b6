"""`darts status`: the waits of a run, whatever has become of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from launch.cli import app
from pipeline.coordinator.events import Tick
from pipeline.coordinator.timeouts import OverdueAction, Timeouts
from pipeline.observability.live_status import PeerStatus, RunStatus, run_status
from pipeline.system.run_folder import RunFolder
from tests.pipeline.coordinator.bench import Bench


def waiting() -> RunStatus:
    """Of a run in which one engine samples and another loads."""
    bench = Bench(candidates=2, limits=Timeouts(no_token_s=300.0, load_s=60.0))
    bench.begin(engines=2, slots=1)
    bench.handle(Tick())
    bench.now += 8
    bench.tokens(0, 3)
    bench.now += 2
    bench.handle(Tick())
    peer = PeerStatus(name="e0", role="engine", activity="sampling", heard_s=0.2, still_s=0.4)
    return msgspec.structs.replace(
        run_status(bench.coordinator, 1.5), time=time.time(), peers=(peer,), acted={"abort": 2}
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "my runs" / "r")
    run.make_folders()
    run.config.write_text("model: m\n")
    return run


def asked(run: RunFolder, *options: str) -> Result:
    return CliRunner().invoke(app, ["status", str(run.path), *options])


def leave(run: RunFolder, now: RunStatus, age_s: float = 0.0) -> None:
    run.live.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(now, time=time.time() - age_s))
    )


def test_every_wait_says_who_can_end_it_until_when_and_what_happens_then(run: RunFolder) -> None:
    leave(run, waiting())
    told = asked(run)
    assert told.exit_code == 0, told.output
    assert re.search(r"running, 0 of 1 step done; data \d s old", told.output)
    lines = told.output.splitlines()
    [at] = [n for n, line in enumerate(lines) if "trajectory 0, running on e0, 3 tokens" in line]
    assert lines[at].startswith("    10.1 s  step 1 waits for train group 0, which waits for ")
    limit = "no progress for 2.0 of 300 s"
    assert (
        lines[at + 1].strip()
        == f"the engine can end it; {limit}; then {OverdueAction.REQUEUE.value}"
    )
    assert "e0  engine, 'sampling', last report 0.2 s ago, last progress 0.4 s ago" in told.output
    assert lines[-1] == "time limits acted on so far: abort 2"


def test_json_has_the_same_for_programs(run: RunFolder) -> None:
    leave(run, waiting())
    found = json.loads(asked(run, "--json").output)
    assert (found["state"], found["phase"], found["acted"]) == ("running", "training", {"abort": 2})
    kinds = {wait["kind"]: wait for wait in found["waits"]}
    assert kinds["trajectory"]["limit_s"] == 300.0
    assert kinds["engine"]["limit_s"] == 0.0, "without a limit in this run"
    assert kinds["engine"]["then"] == OverdueAction.NONE.value
    assert found["peers"][0]["name"] == "e0"


def test_a_run_that_was_never_started_says_how_to_start_it(run: RunFolder) -> None:
    told = asked(run)
    assert told.exit_code == 1
    start = f"darts train '{run.path}/config.yaml'"  # as a shell reads it
    assert told.output == f"{run.path}: never started; start it with: {start}\n"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert told.exit_code == 2
    assert "not the folder of a run: it has no config.yaml" in told.output


def test_a_run_that_is_done_waits_for_nobody(run: RunFolder) -> None:
    leave(run, msgspec.structs.replace(waiting(), phase="over"), age_s=900)
    run.result.write_text("{}")
    told = asked(run)
    assert (told.exit_code, len(told.output.splitlines())) == (0, 1)
    assert "done, 0 of 1 step done; ENDED: the run is done" in told.output


def test_a_run_whose_processes_were_killed_tells_what_it_last_waited_for(run: RunFolder) -> None:
    leave(run, waiting(), age_s=60)
    told = asked(run)
    assert told.exit_code == 1
    assert "ended, 0 of 1 step done; ENDED without a result; last report 60 s old" in told.output
    assert "in its last report it waited for:" in told.output
    assert "trajectory 0, running on e0" in told.output


def test_a_stage_that_says_nothing_in_a_run_that_is_there_is_told(run: RunFolder) -> None:
    leave(run, waiting(), age_s=60)
    run.hold_lock()
    told = asked(run)
    run.release_lock()
    assert told.exit_code == 1
    assert "silent, 0 of 1 step done; SILENT: the last report is 60 s old" in told.output
    assert "it hangs, is stopped, or is dead. It last waited for:" in told.output


def test_a_run_that_starts_says_where_to_look(run: RunFolder) -> None:
    run.hold_lock()
    told = asked(run)
    run.release_lock()
    assert told.exit_code == 0
    assert "starting, 0 of 0 steps done\nno report from its stage yet; see logs/" in told.output
