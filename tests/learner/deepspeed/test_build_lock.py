import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learner.deepspeed.build_lock import (
    clear_stale_lock,
    no_stale_locks,
    torch_extensions_dir,
    use_torch_extensions_dir,
)


def lock_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lock = folder / "lock"
    lock.touch()
    return lock


def held_lock(folder: Path) -> tuple[Path, subprocess.Popen[bytes]]:
    """A lock, and the process that holds it."""
    lock = folder / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    # As torch.utils.file_baton takes it.
    take = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)"
    code = f"{take}; print(flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    return lock, holder


def test_lock_that_no_process_holds_is_removed_at_both_depths(tmp_path: Path):
    locks = [lock_in(tmp_path / "deepspeed_shm_comm"), lock_in(tmp_path / "py311_cpu" / "other")]
    built = tmp_path / "deepspeed_shm_comm" / "deepspeed_shm_comm.so"
    built.touch()
    assert clear_stale_lock(tmp_path) == locks
    assert not any(lock.exists() for lock in locks)
    assert built.exists()


@pytest.mark.fault(
    "a process is killed while it compiles an extension", part="learner", by="process"
)
def test_lock_that_a_live_process_holds_stays_until_that_process_is_killed(tmp_path: Path):
    """Promise: the lock that it leaves is removed by the next start; that of a live process is not.
    Bound: at the next start.
    """
    lock, holder = held_lock(tmp_path)
    with holder:
        assert clear_stale_lock(tmp_path) == []
        assert lock.exists()
        holder.kill()
    assert clear_stale_lock(tmp_path) == [lock]


@pytest.mark.fault(
    "a process is killed for whose extension another waits", part="learner", by="process"
)
def test_who_waits_for_a_process_that_is_killed_waits_no_longer(tmp_path: Path):
    """Promise: its lock is left alone while it lives, and removed for those that wait already.
    Bound: 5 s.
    """
    lock, holder = held_lock(tmp_path)
    with holder, no_stale_locks(tmp_path):
        time.sleep(1.5)
        assert lock.exists()
        holder.kill()
        holder.wait()
        deadline = time.monotonic() + 5
        while lock.exists():  # as torch waits
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_missing_folder_has_no_locks(tmp_path: Path):
    assert clear_stale_lock(tmp_path / "none") == []


def test_extensions_live_in_the_environment_unless_told_otherwise(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert torch_extensions_dir() == Path(sys.prefix) / "torch_extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert use_torch_extensions_dir() == tmp_path / "mine"
    assert (tmp_path / "mine").is_dir()
    assert os.environ["PATH"] == f"{sys.prefix}/bin:/usr/bin"


def test_importing_buildlock_leaves_torch_unloaded():
    code = (
        "import sys, learner.deepspeed.build_lock; print({'torch', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr
