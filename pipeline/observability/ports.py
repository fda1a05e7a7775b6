"""The port that figures are read at: on the loopback, and free."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"


class TrackerError(Exception):
    """A tracker that the configuration asks for cannot be used; names its key and the cure."""


def port_complaint(port: int, why: object) -> str:
    """What a user is told of it."""
    return (
        f"metrics.prometheus_port: cannot listen on {LOOPBACK}:{port}: {why}; "
        "choose another port, or 0 for none"
    )


def port_in_use(port: int) -> str:
    """Why nobody can listen there; '' if the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return ""
