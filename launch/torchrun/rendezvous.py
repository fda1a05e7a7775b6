"""Torchrun's ranks find each other through its store: addresses and public keys, never secrets.

Every other rank posts a hello with a fresh random number, rank 0 answers each hello with an
assignment, and the rank confirms it. So no rank acts on what an earlier round of an elastic restart
has left in the store. Anyone who can write to the store could impersonate a rank: with a shared
secret (`--secret`) both sides sign their messages, and unsigned messages are ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import shlex
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from pipeline.system.untrusted_files import UnreadableFile, decode_json, read_bytes
from pipeline.wire.keys import KeyOwner, KeyPair

POLL_S = 0.1
LEAST_SECRET_BYTES = 16
_SECRET_BYTES = 1 << 16


class Store(Protocol):
    """The part of torch's TCPStore that is used."""

    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


class RendezvousError(Exception):
    """The ranks did not find each other; the message names the missing ranks or the difference."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """A message from a rank to rank 0."""

    number: str  # of this process
    node: int
    key: str  # public
    config: str  # checksum of the whole configuration


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Rank 0's answer to one rank: its role, and where the others are."""

    round: str  # of rank 0's process
    name: str  # "l1", "e0", ...
    run: str
    resume: str  # a checkpoint, or ''
    host: str  # rendezvous of the learner ranks
    port: int
    ranks_store: str = ""  # file that stands for it where there is one machine
    micro_batch_tokens: int  # see `pipeline.system.micro_batch_limit`
    control: str
    data: str
    weights: str  # '': weights are files on this machine
    learners: int = 0  # learner ranks on this rank's machine; they come first there
    server: str  # the stage's public key; '': one machine, no keys
    refused: str = ""  # why this rank cannot take part


class RunPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Rank 0's word to itself after a restart, where no --out names the folder."""

    path: str


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """A rank has taken its assignment."""

    number: str


class SharedSecret:
    """Signs messages and checks signatures; an empty secret signs nothing."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign_message(self, key: str, message: msgspec.Struct) -> str:
        body = msgspec.json.encode(message)
        return f"{self._proof(key, body)} {body.decode()}"

    def verified_message(self, key: str, sealed: bytes) -> bytes | None:
        """Returns the message; None if it is not signed with our secret."""
        proof, _, body = sealed.partition(b" ")
        if not hmac.compare_digest(proof, self._proof(key, body).encode()):
            return None
        return body

    def _proof(self, key: str, body: bytes) -> str:
        if not self._secret:
            return "-"
        return hmac.new(self._secret, key.encode() + b"\0" + body, hashlib.sha256).hexdigest()


def read_secret(path: Path | None) -> SharedSecret:
    """Returns the secret of a file; none without one. Raises RendezvousError if it could be guessed
    or read by others, and UnreadableFile."""
    if path is None:
        return SharedSecret(b"")
    secret = read_bytes(path, _SECRET_BYTES)
    if len(secret) < LEAST_SECRET_BYTES:
        raise RendezvousError(
            f"{path}: holds {len(secret)} bytes, expected at least {LEAST_SECRET_BYTES}: "
            f"head -c 32 /dev/urandom > {shlex.quote(str(path))}"
        )
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise RendezvousError(f"{path}: others may read it: chmod 600 {shlex.quote(str(path))}")
    return SharedSecret(secret)


_T = TypeVar("_T", bound=msgspec.Struct)


def read_message(store: Store, secret: SharedSecret, key: str, kind: type[_T]) -> _T | None:
    """Returns the message under a key; None if there is none, or it is not sealed with our secret,
    or not of this kind: a stranger's word counts as not said."""
    body = secret.verified_message(key, store.get(key)) if store.check([key]) else None
    if body is None:
        return None
    try:
        return decode_json(body, key, kind)
    except UnreadableFile:
        return None


@contextlib.contextmanager
def store_answers() -> Iterator[None]:
    """Raises RendezvousError where the store raises a RuntimeError, as torch's does."""
    try:
        yield
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise RendezvousError(
            "torchrun's store does not answer: rank 0, or the torchrun of its machine, is not "
            f"there or has ended; look at what they say there ({why})"
        ) from error


@store_answers()
def host_rendezvous(
    store: Store,
    secret: SharedSecret,
    ranks: int,
    answer: Callable[[Mapping[int, Hello]], Mapping[int, Assignment]],
    limit_s: float,
) -> dict[int, Hello]:
    """Waits on rank 0 for every other rank, answers, and waits until each has confirmed.

    Args:
        answer: hellos by rank -> their assignments; called again when a rank restarts.

    Raises: RendezvousError naming the ranks that are missing after `limit_s`.
    """
    others = range(1, ranks)
    deadline = time.monotonic() + limit_s
    heard: dict[int, Hello] = {}
    while True:
        now_heard: dict[int, Hello] = {}
        for rank in others:
            if hello := read_message(store, secret, f"darts/hello/{rank}", Hello):
                now_heard[rank] = hello
        assignments: Mapping[int, Assignment] = {}
        if len(now_heard) == len(others):
            assignments = answer(now_heard)
            if now_heard != heard:
                for rank, assignment in assignments.items():
                    key = f"darts/place/{now_heard[rank].number}"
                    store.set(key, secret.sign_message(key, assignment))
                heard = now_heard
            confirmed = [
                rank
                for rank in others
                if read_message(store, secret, _here(assignments[rank], now_heard[rank]), Confirmed)
            ]
            if len(confirmed) == len(others):
                return heard
        if time.monotonic() > deadline:
            silent = [r for r in others if r not in now_heard]
            raise RendezvousError(
                f"after {limit_s:.0f} s ranks {silent or 'that had posted a hello'} are missing "
                "(or have another --secret)"
            )
        time.sleep(POLL_S)


@store_answers()
def join_rendezvous(
    store: Store, secret: SharedSecret, rank: int, hello: Hello, limit_s: float
) -> Assignment:
    """Posts a hello from another rank, waits for the answer, confirms it.

    Raises: RendezvousError.
    """
    said = f"darts/hello/{rank}"
    store.set(said, secret.sign_message(said, hello))
    key = f"darts/place/{hello.number}"
    deadline = time.monotonic() + limit_s
    while (assignment := read_message(store, secret, key, Assignment)) is None:
        if time.monotonic() > deadline:
            raise RendezvousError(
                f"rank 0 has not answered within {limit_s:.0f} s (or has another --secret)"
            )
        time.sleep(POLL_S)
    here = _here(assignment, hello)
    store.set(here, secret.sign_message(here, Confirmed(number=hello.number)))
    if assignment.refused:
        raise RendezvousError(assignment.refused)
    return assignment


def _here(assignment: Assignment, hello: Hello) -> str:
    return f"darts/here/{assignment.round}/{hello.number}"


def allowed_keys(
    names: Mapping[int, str], hellos: Mapping[int, Hello], own: Mapping[str, KeyPair]
) -> dict[str, KeyOwner]:
    """Returns the stage's allow list: every rank's key, and the keys that rank 0 has made."""
    keys = {hello.key: names[rank] for rank, hello in hellos.items()}
    keys |= {pair.public: name for name, pair in own.items()}
    return {key: key_owner(name) for key, name in keys.items()}


def key_owner(name: str) -> KeyOwner:
    """Returns the owner for a role's name; '' is a guest, which may be any other engine.

    >>> key_owner("l2")
    KeyOwner(role='learner', name='l2')
    """
    return KeyOwner("learner" if name.startswith("l") else "engine", name)
