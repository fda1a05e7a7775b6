"""TCP sockets at which this process listens, and whose connections they take for now.

What has no key, or has one but must accept a connection before it can ask for it, is open to
everybody's connections, each of which holds a descriptor. The system drops what arrives at a
listening socket with a filter; connections that stand are sockets of their own and do not notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
# The system's packet filters (BPF): instructions of (code, jump if true, if not, number).
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_SOURCE = (-0x100000 + 12) & 0xFFFFFFFF  # of the packet, in its IPv4 header
_WHOLE = 0xFFFFFFFF
_MOST_ADDRESSES = 256  # the system limits a filter's memory


def listening(ports: Collection[int] = ()) -> list[int]:
    """Return the descriptors of this process's listening TCP sockets; all, or those at `ports`."""
    found: list[int] = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with _borrowed(int(name)) as one:
                inet = one.family in (socket.AF_INET, socket.AF_INET6)
                if (
                    inet
                    and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    and (not ports or one.getsockname()[1] in ports)
                ):
                    found.append(int(name))
    return found


def admit_only(descriptors: Collection[int], addresses: Collection[str] = ()) -> None:
    """Have listening sockets take new connections from these IPv4 addresses alone; from nobody
    without one. Raises OSError where the system has no such filters."""
    first, last = (_LOAD, 0, 0, _SOURCE), (_RETURN, 0, 0, 0)
    known = [
        line
        for address in list(addresses)[-_MOST_ADDRESSES:]
        for line in (
            (_EQUAL, 0, 1, int(ipaddress.IPv4Address(address))),
            (_RETURN, 0, 0, _WHOLE),
        )
    ]
    lines = [first, *known, last] if known else [last]
    content = b"".join(struct.pack("@HBBI", *line) for line in lines)
    program = ctypes.create_string_buffer(content, len(content))
    option = struct.pack("@HP", len(lines), ctypes.addressof(program))
    for descriptor in descriptors:
        with _borrowed(descriptor) as one:
            one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)


def shut_all() -> None:
    """Let nobody connect to this process any more, where the system can. For the learner's ranks:
    gloo and their store listen on without a key, though all ranks have connected."""
    with contextlib.suppress(OSError):  # no such filters, or no /proc
        admit_only(listening())


def admit_all(descriptors: Collection[int]) -> None:
    """Undo `admit_only`."""
    for descriptor in descriptors:
        with _borrowed(descriptor) as one, contextlib.suppress(FileNotFoundError):  # none is there
            one.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Give the socket of a descriptor, without a copy: there may be no descriptor left for one."""
    one = socket.socket(fileno=descriptor)
    try:
        yield one
    finally:
        one.detach()
