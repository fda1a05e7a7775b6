"""Closes this process's listening sockets to whoever has not connected yet.

Gloo and the ranks' store listen for as long as they live, without a key, though all ranks have
connected once the process group stands. A stranger's connections would hold descriptors of the
rank, and its bytes would reach gloo. The system drops what arrives at a socket with a filter that
takes nothing; connections that stand are sockets of their own and do not notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import stat
import struct
import sys

log = logging.getLogger("learner")

_SO_ATTACH_FILTER = 26
# One instruction: return 0 bytes of each packet.
_TAKE_NOTHING = struct.pack("@HBBI", 0x06, 0, 0, 0)


def close_listeners() -> int:
    """Let nobody connect to this process's TCP sockets any more; returns how many listen. To be
    called when all that should connect have."""
    if sys.platform != "linux":
        return 0
    closed = 0
    program = ctypes.create_string_buffer(_TAKE_NOTHING, len(_TAKE_NOTHING))
    option = struct.pack("@HP", 1, ctypes.addressof(program))
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                inet = one.family in (socket.AF_INET, socket.AF_INET6)
                if inet and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
                    closed += 1
    return closed
