"""Listening sockets are shut to new connections, while those that stand go on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import ROOT

CODE = """
import socket
from pipeline.system.listeners import listening, shut_all
unix = socket.socket(socket.AF_UNIX)
servers = [socket.create_server((host, 0), family=family) for host, family in
             (("127.0.0.1", socket.AF_INET), ("127.0.0.2", socket.AF_INET))]
friends = [socket.create_connection(one.getsockname()) for one in servers]
theirs = [one.accept()[0] for one in servers]
print(len(listening()))
shut_all()
for one in servers:
    try:
        socket.create_connection(one.getsockname(), timeout=0.3)
        print("a stranger came in")
    except TimeoutError:
        print("nobody")
for friend, own in zip(friends, theirs):
    friend.sendall(b"x" * 100_000)
    got = 0
    while got < 100_000:
        got += len(own.recv(1 << 20))
    own.sendall(b"done")
    print(friend.recv(10).decode())
later = socket.create_server(("127.0.0.1", 0))
socket.create_connection(later.getsockname(), timeout=5)
print("a later one is open")
"""


@pytest.mark.fault("strangers connect to gloo or to the ranks' store", part="peers", by="socket")
def test_after_the_ranks_have_met_nobody_else_connects_and_they_notice_nothing() -> None:
    """Promise: a connection from anywhere waits for nothing, holds no descriptor of the rank, and
    sends it no byte; connections of ranks go on. Bound: from the first step on, on CPUs (gloo).
    """
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:-1] == [
        *("2", "nobody", "nobody", "done", "done", "a later one is open")
    ], done.stderr


NARROW = """
import socket
from pipeline.system.listeners import admit_all, admit_only, listening
one = socket.create_server(("0.0.0.0", 0))
other = socket.create_server(("127.0.0.1", 0))
port = one.getsockname()[1]

def comes_in(source, port):
    try:
        with socket.create_connection(("127.0.0.1", port), 0.3, (source, 0)):
            return True
    except TimeoutError:
        return False

print(listening([port]) == [one.fileno()])
for addresses in (("127.0.0.3", "127.0.0.4"), (), None):
    admit_all(listening([port])) if addresses is None else admit_only(listening([port]), addresses)
    print(comes_in("127.0.0.2", port), comes_in("127.0.0.4", port), comes_in("127.0.0.2",
          other.getsockname()[1]))
"""


def test_a_port_takes_connections_from_some_addresses_alone_until_it_is_opened_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NARROW], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        *("True", "False True True", "False False True", "True True True")
    ], done.stderr
