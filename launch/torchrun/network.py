"""This machine's addresses and interfaces."""

from __future__ import annotations

import socket

import psutil

from pipeline.wire.keys import TransportError


def own_address(interface: str, towards: str) -> str:
    """Returns the address to listen at.

    Args:
        interface: a network interface, an address, or '' for the address of `towards`.
        towards: a host name or address of this machine, as others know it.

    Raises: TransportError if there is none.
    """
    found = {
        address.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
    }
    if interface in ("0.0.0.0", "*"):  # noqa: S104  the stage refuses it without nodes.expose
        return interface
    if not interface:
        interface = socket.gethostbyname(towards)
        if interface.startswith("127.") and towards not in ("localhost", interface):
            raise TransportError(
                f"{towards} is {interface} here, which no other machine reaches (/etc/hosts?): set "
                "nodes.interface to the address by which they do"
            )
    if interface in found:
        return interface
    own = [address for address, name in found.items() if name == interface]
    if not own:
        names = ", ".join(f"{name} ({address})" for address, name in found.items())
        raise TransportError(
            f"{interface}: not an interface or address of this machine; it has {names}"
        )
    return own[0]


def interface_towards(host: str) -> str:
    """Returns the interface by which this machine reaches a host, for gloo and NCCL."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        address = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    raise TransportError(f"no interface of this machine has the address {address}")
