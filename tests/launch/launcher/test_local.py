"""What the launcher keeps in memory, and what it leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from launch.launcher import local
from launch.launcher import ports as ports_of
from launch.launcher.processes import end_all, engine_environment
from pipeline.config.load import load
from pipeline.system import temp_dirs
from pipeline.system.run_folder import RunFolder
from tests.launch.jobs.jobs import ROOT


def put_away(launcher: local.Launcher) -> None:
    """Closes and removes what a launcher has made that did not run."""
    launcher._ours.close()
    launcher._theirs.close()
    shutil.rmtree(launcher.weights)
    shutil.rmtree(launcher.sockets)


def test_weights_go_below_the_run_when_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temp_dirs, "SHARED_MEMORY", tmp_path / "none")
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    assert local.weights_directory(run, need_bytes=1).parent == run.path


@pytest.mark.fault("/dev/shm cannot be written", part="people", by="file")
def test_weights_go_below_the_run_where_nobody_may_write_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: a run starts all the same: its weights are in its folder.
    Bound: at its start.
    """
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    own = temp_dirs.own_directory

    def closed(tail: str, base: Path) -> Path:
        if base == temp_dirs.SHARED_MEMORY:
            raise PermissionError(13, "Permission denied", str(base))
        return own(tail, base)

    monkeypatch.setattr(temp_dirs, "own_directory", closed)
    assert local.weights_directory(run, need_bytes=1).parent == run.path


def test_who_leaves_with_the_runs_own_reason_is_no_reason_for_it(tmp_path: Path) -> None:
    """Trackers may take seconds at the end; peers that were sent away have ended by then."""
    run, view = RunFolder(tmp_path / "run"), Heard()
    run.make_folders()
    launcher = local.Launcher(load(ROOT / "configs" / "quickstart.yaml"), run, view)
    engine, pipe = launcher.children["e0"], launcher._theirs
    said = "import os; print('e0: stopping: no checkpoint', flush=True); os._exit(1)"
    engine.command = ["timeit", "-n", "1", "-s", said, "pass"]
    engine.start()
    while engine.running:
        time.sleep(0.02)
    pipe.sendall(b'{"ending": "no checkpoint"}\n')
    launcher._receive()
    launcher._watch_children()
    pipe.sendall(b'{"over": "no checkpoint"}\n')
    launcher._receive()
    launcher._report_dead_child()
    assert [line for line in view.lines if "say" in line] == []
    assert engine.next_start == 0.0
    put_away(launcher)


class Failing:
    """A child that this machine cannot start now."""

    name, next_start = "e0", 0.0

    def start(self) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")


@pytest.mark.fault("no process can be started for an engine", part="engines", by="direct")
def test_an_engine_that_cannot_be_started_now_is_tried_again(tmp_path: Path) -> None:
    """Promise: it is told with the reason, and tried again; the others carry on.
    Bound: 10 s between two tries.
    """
    run, view, child = RunFolder(tmp_path / "run"), Heard(), Failing()
    run.make_folders()
    launcher = local.Launcher(load(ROOT / "configs" / "quickstart.yaml"), run, view)
    launcher._start_again(child, 5.0)  # pyright: ignore[reportArgumentType]
    assert child.next_start == 15.0
    assert "e0 cannot be started: [Errno 11] Resource" in view.lines[0]["say"]
    put_away(launcher)


class Heard:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_line(self, line: dict[str, Any]) -> None:
        self.lines.append(line)


@pytest.mark.fault("memory is full when a run is started", part="disk", by="file")
def test_weights_go_below_the_run_when_memory_takes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: the weights go into the run's folder, and nothing is left in memory; where that is
    full, too, the message names the file. Bound: before anything starts.
    """
    run, memory = RunFolder(tmp_path / "run"), tmp_path / "memory"
    run.make_folders()
    memory.mkdir()
    monkeypatch.setattr(temp_dirs, "SHARED_MEMORY", memory)
    real, full = Path.write_bytes, [memory]

    def write_bytes(path: Path, *arguments: Any, **options: Any) -> int:
        if any(path.is_relative_to(place) for place in full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert local.weights_directory(run, need_bytes=1).parent == run.path
    assert list(memory.iterdir()) == []
    full.append(run.path)
    with pytest.raises(OSError, match=r"No space left on device: '.*/\.owner'"):
        local.weights_directory(run, need_bytes=1)


@pytest.mark.fault("the stage's process lives and says nothing", part="stage", by="process")
def test_a_stage_that_stops_speaking_is_told_of_with_where_to_look(tmp_path: Path) -> None:
    """Promise: the launcher says so, with the log to look into, once a limit.
    Bound: `timeouts.log_wait_s` (here 1 s).
    """
    run, view = RunFolder(tmp_path / "run"), Heard()
    run.make_folders()
    config = load(ROOT / "configs" / "quickstart.yaml", ["timeouts.log_wait_s=1"])
    launcher = local.Launcher(config, run, view)
    said = "import time; print('up'); time.sleep(60)"
    stage = launcher.children["stage"]
    stage.command = ["timeit", "-n", "1", "-s", said, "pass"]  # alive, and without a word
    pipe = launcher._theirs
    pipe.sendall(b'{"live": {}}\n')
    stage.start()
    launcher._deadline = time.monotonic() + 3.0
    launcher._serve()
    end_all([stage], 0.0)
    put_away(launcher)
    told = [line["say"] for line in view.lines if "say" in line]
    assert told[0].startswith("the stage has been silent for 1 s; see ")
    assert told[0].endswith("stage.log")
    assert len(told) <= 3, "once a limit, not at every look"


def test_sockets_of_vllm_lie_where_the_run_removes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temp_dirs, "SHARED_MEMORY", tmp_path)
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    launcher = local.Launcher(load(ROOT / "configs" / "quickstart.yaml"), run, Heard())
    try:
        place = launcher.children["e0"].environment["VLLM_RPC_BASE_PATH"]
        assert place == str(launcher.sockets)
        assert "VLLM_RPC_BASE_PATH" not in launcher.children["l0"].environment
    finally:
        put_away(launcher)
    assert engine_environment(Path("/" + "x" * 71)) == {}, "too long for a socket below it"


@pytest.mark.fault("a last checkpoint takes longer than the end may", part="people", by="process")
@pytest.mark.parametrize("writing", [True, False])
def test_a_checkpoint_that_is_being_written_is_waited_for(tmp_path: Path, writing: bool) -> None:
    """Promise: also the first one of a run, whose time nobody knows: as long as every rank that is
    waited for writes, the end waits, says so, and a second Ctrl-C ends it at once. A rank that
    does something else is not waited for.
    Bound: `timeouts.checkpoint_s`.
    """
    run, view = RunFolder(tmp_path / "run"), Heard()
    run.make_folders()
    launcher = local.Launcher(load(ROOT / "configs" / "quickstart.yaml"), run, view)
    stage, pipe = launcher.children["stage"], launcher._theirs
    stage.command = ["timeit", "-n", "1", "-s", "import time; time.sleep(60)", "pass"]
    stage.start()
    pipe.sendall(json.dumps({"live": {"checkpoint_writing": writing}}).encode() + b"\n")
    over = threading.Timer(1.0, pipe.sendall, [b'{"over": ""}\n'])
    over.start()
    launcher._interrupt(signal.SIGINT, None)
    launcher._deadline = time.monotonic()
    launcher._serve()
    over.join()
    end_all([stage], 0.0)
    put_away(launcher)
    told = [line["say"] for line in view.lines if "say" in line]
    assert (launcher.error == "") == writing
    assert any("is still being written" in text for text in told) == writing


def test_a_third_interrupt_kills_who_has_not_left_yet(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.make_folders()
    launcher = local.Launcher(load(ROOT / "configs" / "quickstart.yaml"), run, Heard())
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')"
    stage = launcher.children["stage"]
    stage.command = ["timeit", "-n", "1", "-s", f"{deaf}; import time; time.sleep(60)", "pass"]
    try:
        stage.start()
        while not stage.tail():
            time.sleep(0.05)
        for _ in range(2):
            launcher._interrupt(signal.SIGINT, None)
        time.sleep(0.3)
        assert stage.running
        launcher._interrupt(signal.SIGINT, None)
        deadline = time.monotonic() + 10
        while stage.running and time.monotonic() < deadline:
            time.sleep(0.05)
        assert stage.exit_text() == "killed by SIGKILL"
    finally:
        end_all([stage], 0.0)
        put_away(launcher)


def test_ports_of_a_job_are_none_that_a_connection_is_given() -> None:
    """The learner listens seconds after its port was chosen: meanwhile another process may connect
    to something, from whatever port the system gives it."""
    low, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    ports = [port for _ in range(50) for port in ports_of.free_ports(ports_of.LOOPBACK, 4)]
    assert all(1024 < port < int(low) for port in ports)
    assert len(set(ports)) > 150, "drawn anew each time"
