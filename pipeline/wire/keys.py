"""Keys of a run that spans machines: which peers may join, and what a peer needs to do so.

Reads and writes key files, and decides whether a key may use a name. A secret is kept in
a file that only its owner may read, never in an argument, an environment, a
configuration, a log or a trace. Knows no socket.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from pipeline.system.durable_files import naming
from pipeline.system.temp_dirs import SOCKET_PATH
from pipeline.system.untrusted_files import BROKEN, MOST_BYTES, open_regular

IPC_LIMIT = SOCKET_PATH
_Z85 = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{40}$")]  # 32 bytes


class TransportError(Exception):
    """The sockets cannot be used as asked; the message says why and what to do."""


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """A CURVE key pair, as text."""

    public: _Z85
    secret: _Z85

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"  # never print the secret


class KeyOwner(msgspec.Struct, frozen=True, array_like=True):
    """The owner of a key."""

    role: str  # "engine" | "learner"
    name: str = ""  # '': any name of that role that no other key has


class ListenKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The stage's side: where it listens beside its directory, and the allowed keys."""

    control: str
    data: str
    weights: str
    keys: KeyPair
    allowed: dict[_Z85, KeyOwner]  # public key -> owner

    def admits(self, key: str, role: str, name: str) -> bool:
        """Return True if `key` may join under this role and name."""
        owner = self.allowed.get(key)
        if owner is None or owner.role != role:
            return False
        if owner.name:
            return owner.name == name
        return all(name != other.name for other in self.allowed.values())


class PeerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A peer's side: how it reaches its stage."""

    control: str
    data: str
    weights: str = ""  # where to fetch new weights; '': they are files on this machine
    server: _Z85 | None = None  # the stage's public key
    keys: KeyPair | None = None  # None: sockets in a directory that only their owner may enter
    config: str = ""  # the run's configuration, for a guest without access to the run's folder


_File = TypeVar("_File", ListenKeys, PeerKeys)


def addresses(directory: Path) -> tuple[str, str]:
    """Return control and data address in `directory`. Raises TransportError if too long."""
    found = [f"ipc://{directory}/{name}" for name in ("control", "data")]
    if len(os.fsencode(found[0])) - len("ipc://") > IPC_LIMIT:
        raise TransportError(
            f"{directory}: longer than a Unix socket path may be ({IPC_LIMIT}); set TMPDIR to a "
            "shorter one"
        )
    return found[0], found[1]


def peer_keys_of(stage: Path) -> PeerKeys:
    """Return how to reach a stage, by its sockets or a key file. Raises TransportError."""
    if stage.is_file():
        return read_private(stage, PeerKeys)
    control, data = addresses(stage)
    return PeerKeys(control=control, data=data)


def write_private(path: Path, content: ListenKeys | PeerKeys) -> Path:
    """Write a file that only its owner may read; replaces an existing one."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(content))
        os.rename(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    return path


def read_private(path: Path, kind: type[_File]) -> _File:
    """Read a file of `write_private`. Raises TransportError if others could read it."""
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise TransportError(
                    f"{path}: holds a secret key, but others may read it: chmod 600 it, "
                    "as the user who runs this"
                )
            return msgspec.json.decode(file.read(MOST_BYTES), type=kind)
    except (OSError, *BROKEN) as error:
        raise TransportError(f"{path}: not a key file of darts: {error}") from error


def endpoint_problem(endpoint: str, *, exposed: bool = False) -> str:
    """Return why the stage must not listen at an address; '' if it may.

    >>> endpoint_problem("tcp://0.0.0.0:4000")
    'tcp://0.0.0.0:4000 is every interface of this machine: name one, or set nodes.expose'
    >>> endpoint_problem("tcp://10.0.0.1:4000")
    ''
    """
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    if host in ("0.0.0.0", "*", "::", "") and not exposed:  # noqa: S104  refused, not bound
        return f"{endpoint} is every interface of this machine: name one, or set nodes.expose"
    return ""
