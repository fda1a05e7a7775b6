"""Addresses at which processes listen for TCP, also those of another network namespace."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

_LISTENS = "0A"


def listening(pids: Iterable[int]) -> set[tuple[str, int, int]]:
    """Returns (address, port, pid) of every listening socket."""
    found: set[tuple[str, int, int]] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            inodes = _sockets(pid)
            for name in ("tcp", "tcp6"):
                for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == _LISTENS and fields[9] in inodes:
                        host, _, port = fields[1].partition(":")
                        found.add((_address(host), int(port, 16), pid))
    return found


def _sockets(pid: int) -> set[str]:
    found: set[str] = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")):
                found.add(match[1])
    return found


def _address(written: str) -> str:
    """The system writes addresses as words of four bytes in its own order."""
    words = [int(written[at : at + 8], 16) for at in range(0, len(written), 8)]
    address = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
