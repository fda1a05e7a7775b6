"""Makes the store by which the learner ranks find each other, with nobody else at it.

torch's own store listens on every interface of the machine, and whoever reaches it reads, writes
and fills its memory. So: one rank needs no store but its own memory; several on one machine use a
file in a directory that only their owner may enter; only ranks of several machines use a socket,
bound to the interface that was chosen. Gloo's and NCCL's own sockets stay on the loopback where
all ranks are on one machine.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import MutableMapping
from datetime import timedelta

from torch.distributed import FileStore, HashStore, Store, TCPStore

SHARED = "DARTS_RANKS_STORE"
"""Variable with the path of the file; unset where ranks are on several machines."""
_LIMIT = timedelta(minutes=30)  # as torch's own: ranks may compile for minutes
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def store_of(environment: MutableMapping[str, str]) -> tuple[Store, int, int]:
    """Return (store, rank, world size) from MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE.

    Raises: OSError if rank 0 cannot listen at its address.
    """
    rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    if address.startswith("127.") or address == "localhost":
        for name in _INTERFACES:
            environment.setdefault(name, "lo")
    if world == 1:
        return HashStore(), rank, world
    if path := environment.get(SHARED):
        return FileStore(path, world), rank, world
    return _by_socket(address, int(environment["MASTER_PORT"]), rank, world), rank, world


def _is_number(address: str) -> bool:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return True


def bound_store(address: str, port: int, limit: timedelta, world: int | None = None) -> TCPStore:
    """Return a store of this process that listens at one address, where torch's own would listen on
    every interface. At all of them only where the address is a name: it may stand for the loopback
    here, and for another address elsewhere.

    Raises: OSError if it cannot listen there.
    """
    if _is_number(address):
        listening = socket.create_server((address, port))
    elif socket.has_dualstack_ipv6():
        listening = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listening = socket.create_server(("", port))
    # The store closes the descriptor.
    return TCPStore(
        address, port, world, True, timeout=limit, wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )  # fmt: skip


def _by_socket(address: str, port: int, rank: int, world: int) -> Store:
    if rank:
        return TCPStore(address, port, world, False, timeout=_LIMIT, wait_for_workers=False)
    return bound_store(address, port, _LIMIT, world)
