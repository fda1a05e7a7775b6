"""Another user of the machine: enters no directory, reads no file, and prepares none for us."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.weights import FILE, WeightReceiver, WeightsError
from launch.cli import _joined
from launch.launcher.local import weights_directory
from launch.launcher.processes import Child
from launch.preflight.settings import settings_problems
from pipeline.config.metrics import MetricsConfig
from pipeline.config.schema import Config
from pipeline.system.private_dirs import is_ours, make_private, umask_of
from pipeline.system.run_folder import RunFolder
from pipeline.system.temp_dirs import SHARED_MEMORY
from pipeline.wire.keys import TransportError
from pipeline.wire.messages import Manifest
from pipeline.wire.server import StageServer
from tests.paths import MODEL

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everybody may enter: what guards is what we make in it."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def as_nobody(code: str, *arguments: object) -> str:
    """The name of the exception that this code ends with as another user, or what it prints."""
    interpreter = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    if interpreter is None:
        pytest.skip("no python3 that another user may run")
    wrapped = f"import sys\ntry:\n {code}\nexcept OSError as e:\n print(type(e).__name__)"
    done = subprocess.run(
        [interpreter, "-I", "-c", wrapped, *map(str, arguments)],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LIST = "import os; print(os.listdir(sys.argv[1]))"
READ = "print(open(sys.argv[1]).read())"
CONNECT = "import socket; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print('in')"


@pytest.mark.fault("another user of the machine connects", part="peers", by="socket")
@as_root
async def test_another_user_cannot_connect_to_the_sockets(open_place: Path) -> None:
    """Promise: permission is denied, by the directory and by the socket files alone as well.
    Bound: at once.
    """
    server = StageServer(open_place / "s")
    server.open_sockets()
    for name in ("control", "data"):
        path = open_place / "s" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert as_nobody(CONNECT, path) == "PermissionError"
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(str(path))
    (open_place / "s").chmod(0o755)  # the files alone guard as well
    assert as_nobody(CONNECT, open_place / "s" / "control") == "PermissionError"
    server.close()


@pytest.mark.fault("another user reads weights or the run's folder", part="peers", by="file")
@as_root
def test_another_user_cannot_read_weights_in_memory_nor_the_run(open_place: Path) -> None:
    """Promise: permission is denied in every directory.
    Bound: at once.
    """
    run = RunFolder(open_place / "run")
    run.make_folders()
    weights = weights_directory(run, 1000)
    try:
        assert weights.parent == (SHARED_MEMORY if SHARED_MEMORY.is_dir() else run.path)
        (weights / FILE).write_text("weights")
        for place in (weights, run.path, run.checkpoints, run.logs, run.samples):
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
            assert as_nobody(LIST, place) == "PermissionError"
        assert as_nobody(READ, weights / FILE) == "PermissionError"
    finally:
        shutil.rmtree(weights)


def test_what_a_process_of_a_run_writes_is_for_its_owner(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'file')!r}, 'w').close()"
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))
    (tmp_path / "writes.py").write_text(code)
    child = Child("child", ["writes"], tmp_path / "log", environment)
    child.start()
    assert child._process is not None
    assert child._process.wait(60) == 0
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_directory_that_is_a_link_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(PermissionError, match="belongs to another user, or is a link"):
        make_private(tmp_path / "link")
    server = StageServer(tmp_path / "link")
    with pytest.raises(TransportError, match="belongs to another user, or is a link"):
        server.open_sockets()
    server.close()
    assert not is_ours(tmp_path / "nothing")


@pytest.mark.fault("another user has made the directory first", part="peers", by="file")
@as_root
def test_a_directory_that_another_user_has_prepared_is_refused_everywhere(tmp_path: Path) -> None:
    """Promise: stage, joining parts and readers of weights refuse it.
    Bound: before anything is written or read there.
    """
    squatted = tmp_path / "s"
    squatted.mkdir()
    os.chown(squatted, NOBODY, NOBODY)
    server = StageServer(squatted)
    with pytest.raises(TransportError, match="belongs to another user"):
        server.open_sockets()
    server.close()
    job = tmp_path / "job"
    job.mkdir()
    (job / "address").write_text(f"{squatted}\n")
    with pytest.raises(SystemExit):
        _exit(job)
    (squatted / FILE).write_text("weights")
    os.chown(squatted / FILE, NOBODY, NOBODY)
    manifest = Manifest(
        version=1, directory=str(squatted), bytes=7, checksum="", probe=[], logprobs={}
    )
    with pytest.raises(WeightsError, match="another user's"):
        WeightReceiver().receive(manifest)


def _exit(job: Path) -> None:
    """`fail` raises typer's own exception for an exit."""
    import typer

    try:
        _joined(job)
    except typer.Exit as error:
        sys.exit(error.exit_code)


@pytest.mark.fault("a second stage in one directory of sockets", part="stage", by="socket")
async def test_a_second_stage_in_one_directory_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    """Promise: it is refused; the first keeps its sockets, and can be followed when it has closed.
    Bound: at its start.
    """
    first, second = StageServer(tmp_path / "s"), StageServer(tmp_path / "s")
    first.open_sockets()
    with pytest.raises(TransportError, match="another stage is serving there"):
        second.open_sockets()
    second.close()
    assert (tmp_path / "s" / "control").is_socket()
    with socket.socket(socket.AF_UNIX) as own:
        own.connect(str(tmp_path / "s" / "control"))
    first.close()
    third = StageServer(tmp_path / "s")
    third.open_sockets()
    third.close()


def tree(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.rglob("*"))
    }


def a_run(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.make_folders()
    before = os.umask(0o077)
    for name in ("metrics.jsonl", "config.yaml", "logs/stage.log", "join.key", "recordings/r",
                 "checkpoints/step-1/model", "tensorboard/events", "darts-1-2-x/w"):  # fmt: skip
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("x")
    os.umask(before)
    return run


def test_a_setting_opens_what_shows_a_run_to_a_group_and_keeps_the_rest(open_place: Path) -> None:
    run = a_run(open_place / "run")
    outside = open_place / "outside"
    outside.write_text("x")
    outside.chmod(0o600)
    (run.path / "link").symlink_to(outside)
    group = str(os.getegid())
    assert run.share_with(group) == ""
    found = tree(run.path)
    for name in ("metrics.jsonl", "config.yaml", "logs/stage.log", "tensorboard/events"):
        assert found[name] == 0o640, name
    for name in (".", "logs", "samples", "tensorboard"):
        assert found[name] == 0o2750, name
    for name in ("checkpoints", "recordings", "join.key", "darts-1-2-x"):
        assert found[name] & 0o077 == 0, name
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
    # what the stage writes later, with its umask
    before = os.umask(umask_of(group))
    (run.path / "live.json").write_text("x")
    os.umask(before)
    assert tree(run.path)["live.json"] == 0o640
    # and a resume without the setting closes all of it
    assert run.share_with("") == ""
    assert tree(run.path)["."] == 0o700


@as_root
def test_members_of_the_group_read_what_shows_a_run_and_no_checkpoint(open_place: Path) -> None:
    run = a_run(open_place / "run")
    assert as_nobody(READ, run.metrics) == "PermissionError"
    run.share_with(str(NOBODY))
    assert as_nobody(READ, run.metrics) == "x"
    assert as_nobody(READ, run.logs / "stage.log") == "x"
    for name in ("join.key", "checkpoints/step-1/model", "recordings/r"):
        assert as_nobody(READ, run.path / name) == "PermissionError"
    (open_place / "closed").mkdir(mode=0o700)
    inside = a_run(open_place / "closed" / "run")
    assert f"cannot pass {open_place / 'closed'}" in inside.share_with(str(NOBODY))


def test_a_group_that_is_none_is_refused_before_a_run() -> None:
    config = Config(model=str(MODEL), metrics=MetricsConfig(group="no-such-group"))
    [line] = [line for line in settings_problems(config) if "group" in line]
    assert line.startswith("metrics.group: no-such-group: no group of this machine")
