"""The port for Prometheus: figures for who asks, and nothing for who only holds it."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.observability import metrics_server
from pipeline.observability.metrics_server import MOST, MetricsServer
from pipeline.observability.peer_user import readers, user_of
from tests.pipeline.observability.test_trackers import free_port

BODY = b"darts_figure 1\n" * 1_500_000  # more than a socket holds at once


@pytest.fixture
def port() -> Iterator[int]:
    port = free_port()
    server = MetricsServer("127.0.0.1", port, lambda: BODY, "text/plain", readers(""))
    yield port
    server.close()


def read(port: int, path: str = "/metrics") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return answer.read()


def test_figures_come_whole_and_other_paths_are_not_there(port: int) -> None:
    assert read(port) == BODY
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(port, "/etc/passwd")


@pytest.mark.fault("strangers hold the metrics' port open", part="peers", by="socket")
@pytest.mark.parametrize("text", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-a: "])
def test_half_sent_requests_hold_neither_threads_nor_files(port: int, text: bytes) -> None:
    """Promise: with 200 of them open a scrape is answered, by one thread and 16 files at most.
    Bound: 20 s.
    """
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    held: list[socket.socket] = []
    for _ in range(200):
        one = socket.socket()
        one.settimeout(0.02)
        held.append(one)
        try:
            one.connect(("127.0.0.1", port))
            one.send(text)
        except OSError:
            pass  # the queue of new connections is full, which is the point
    grown = len(os.listdir("/proc/self/fd")) - files - len(held)
    assert threading.active_count() == threads
    assert grown <= MOST + 2
    for one in held[len(held) // 2 :]:
        one.close()
    assert read(port) == BODY
    for one in held:
        one.close()


def test_who_reads_nothing_is_left_after_a_while(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "DEADLINE_S", 0.2)
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        time.sleep(2.0)
        one.settimeout(5)
        got = 0
        with contextlib.suppress(ConnectionError):
            while more := one.recv(1 << 20):
                got += len(more)
        assert got < len(BODY), "the rest was left out"


def test_the_user_at_the_other_end_is_the_one_that_the_system_names() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as one,
    ):
        there, _ = listening.accept()
        assert user_of(there) == os.getuid()
        one.close()
        assert user_of(there) is None  # root's, says the system of what nobody holds
        there.close()
    ours, theirs = socket.socketpair()
    assert user_of(ours) is None
    ours.close()
    theirs.close()


def test_figures_are_for_their_owner_root_and_the_members_of_the_group() -> None:
    member = pwd.getpwuid(os.getuid())
    other = next((u.pw_uid for u in pwd.getpwall() if u.pw_uid not in (0, os.getuid())), 65534)
    assert readers("")(os.getuid())
    assert readers("")(0)
    assert not readers("")(other)
    assert not readers("")(None)
    assert not readers("no-such-group")(other)
    theirs = grp.getgrgid(pwd.getpwuid(other).pw_gid)
    assert readers(theirs.gr_name)(other)
    assert readers(str(theirs.gr_gid))(other)
    assert not readers(str(theirs.gr_gid))(None)
    assert readers(str(theirs.gr_gid))(member.pw_uid)


@pytest.mark.fault("another user reads the metrics' port", part="peers", by="socket")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_of_the_machine_gets_no_figures(port: int) -> None:
    """Promise: status 403 with the setting that opens them, and not one figure. Bound: at once."""
    ask = (
        "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
        "s.sendall(b'GET /metrics HTTP/1.1\\r\\n\\r\\n'); print(s.recv(4096).decode())"
    )
    interpreter = shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")
    if interpreter is None:
        pytest.skip("no python3 that another user may run")
    done = subprocess.run(
        [interpreter, "-I", "-c", ask, str(port)], user=65534, group=65534, extra_groups=[],
        cwd="/", capture_output=True, text=True,
    )  # fmt: skip
    assert "403 Forbidden" in done.stdout, done
    assert "metrics.group" in done.stdout
    assert "darts_figure" not in done.stdout
