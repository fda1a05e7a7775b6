"""Tells which user of this machine is at the other end of a connection over the loopback.

The system lists the sockets of a network namespace with their users. What is not listed (another
machine, another namespace, a process that has left already) is nobody known.
"""

from __future__ import annotations

import os
import pwd
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.system.private_dirs import look_up_group

_LISTS = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}


def user_of(connection: socket.socket) -> int | None:
    """Return the number of the user who holds the other end; None if it is not known."""
    try:
        wanted = [_written(connection.getpeername()), _written(connection.getsockname())]
        listed = _LISTS[connection.family].read_text(encoding="ascii")
    except (OSError, KeyError, ValueError):
        return None
    for line in listed.splitlines()[1:]:
        fields = line.split()
        # A socket that no process holds any more has no inode, and root as its user.
        if fields[1:3] == wanted and fields[9] != "0":
            return int(fields[7])
    return None


def _written(place: tuple[str, int]) -> str:
    """An address and a port as the system lists them: words of four bytes in its own order.

    >>> _written(("127.0.0.1", 80)) if sys.byteorder == "little" else "0100007F:0050"
    '0100007F:0050'
    """
    host, port = place[:2]
    content = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = [content[at : at + 4] for at in range(0, len(content), 4)]
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{port:04X}"


def readers(group: str) -> Callable[[int | None], bool]:
    """Return whether a user may read what is this user's own, or open to a group."""

    def may_read(user: int | None) -> bool:
        return user is not None and (user in (0, os.getuid()) or _is_member(user, group))

    return may_read


def _is_member(user: int, group: str) -> bool:
    if not group:
        return False
    try:
        entry = pwd.getpwuid(user)
        number = look_up_group(group)
    except (KeyError, ValueError):
        return False
    return number in os.getgrouplist(entry.pw_name, entry.pw_gid)
