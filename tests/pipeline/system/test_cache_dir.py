"""A machine that knows neither the user's home nor name, as a container may."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.launcher.environment import clean_environment
from learner.deepspeed import build_lock
from pipeline.system import cache_dir, temp_dirs
from pipeline.system.private_dirs import is_ours


def nobody(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_caches_lie_below_the_home_that_is_known_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cache_dir.cache_directory({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c")
    assert cache_dir.cache_directory({"HOME": "/h"}) == Path("/h/.cache")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_dir.cache_directory({}) is None, "no folder named ~ is made"


@pytest.mark.fault("a container's user has no name", part="people", by="direct")
def test_a_user_without_a_name_gets_one_since_libraries_ask_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Promise: where no file of users has the number, the parts of a run get a name for it.
    Bound: at their start.
    """
    assert cache_dir.name_for_a_nameless_user({}) == {}
    monkeypatch.setattr(cache_dir.pwd, "getpwuid", nobody)
    assert clean_environment({"HOME": "/"})["USER"] == f"uid{os.getuid()}"
    assert "USER" not in clean_environment({"LOGNAME": "me"})


@pytest.mark.fault("the environment is closed to its user", part="people", by="file")
def test_extensions_are_compiled_where_this_user_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: DeepSpeed's op is compiled in the user's cache, and without a home in a directory
    that is the user's alone.
    Bound: at the learner's start.
    """
    closed = tmp_path / "environment"
    (closed / "torch_extensions").mkdir(parents=True)
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not Path(path).is_relative_to(closed) and real(path, mode)
    )
    monkeypatch.setattr(build_lock.sys, "prefix", str(closed))
    for name in ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = build_lock.torch_extensions_dir()
    assert found.parent == tmp_path / "home" / ".cache" / "darts" / "torch_extensions"
    monkeypatch.setattr(build_lock, "cache_directory", lambda: None)
    monkeypatch.setattr(build_lock.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    found = build_lock.use_torch_extensions_dir()
    assert found.parent == tmp_path
    assert is_ours(found)
    assert found.stat().st_mode & 0o077 == 0


@pytest.mark.fault("TMPDIR is too long for sockets", part="people", by="file")
def test_sockets_go_where_their_paths_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise: a run's sockets are in the system's own temporary directory then.
    Bound: at its start.
    """
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(temp_dirs, "_SHORT", tmp_path)
    for base in (long, Path("/tmp")):
        monkeypatch.setattr(temp_dirs.tempfile, "tempdir", str(base))
        made = temp_dirs.socket_directory()
        assert made.parent == (tmp_path if base == long else base)
        (made / ".owner").unlink()
        made.rmdir()
