"""Finds ports that nobody uses, and keeps one from others without listening there."""

from __future__ import annotations

import contextlib
import errno
import random
import socket

LOOPBACK = "127.0.0.1"
_OWN_PORTS = range(20_000, 32_768)
"""Below those that Linux gives to outgoing connections (ip_local_port_range, by default)."""


def free_port(host: str = LOOPBACK) -> int:
    [port] = free_ports(host, 1)
    return port


def free_ports(host: str, count: int) -> list[int]:
    """Returns ports of an address of this machine that are free now. Raises OSError.

    A learner rank listens some ten seconds later: the ports are none of those that the system
    gives to connections meanwhile, unless all others are in use.
    """
    tried = [*random.sample(_OWN_PORTS, len(_OWN_PORTS)), *[0] * count]
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in tried:
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
            found.append(probe.getsockname()[1])
            if len(found) == count:
                break
    if len(found) < count:
        raise OSError(errno.EADDRINUSE, f"{count} free ports are needed at {host}")
    return found


def hold_port(host: str, port: int) -> socket.socket | None:
    """Keeps others from a port until the socket is closed, without listening there: no other run
    of this machine gets the same number. None: somebody has it already."""
    holding = socket.socket()
    try:
        holding.bind((host, port))
    except OSError:
        holding.close()
        return None
    return holding
