"""The port for Prometheus: figures for who asks, and nothing for who only holds it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from pipeline.observability import metrics_server
from pipeline.observability.metrics_server import MOST, MetricsServer
from tests.pipeline.observability.test_trackers import free_port

BODY = b"darts_figure 1\n" * 1_500_000  # more than a socket holds at once


@pytest.fixture
def port() -> Iterator[int]:
    port = free_port()
    server = MetricsServer("127.0.0.1", port, lambda: BODY, "text/plain")
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
