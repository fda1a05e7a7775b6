"""Ranks of torchrun find each other through its store: addresses and public keys, never secrets.

Every other rank says hello (with a number of its own, drawn anew), rank 0
answers each hello with its place, and each confirms it. So nobody acts on what
an earlier round of an elastic restart has left in the store. Who can write into
the store could answer in another's name: with a shared secret (`--secret`) both
sides seal what they say, and unsealed words count as none.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from pipeline.wire.keys import KeyOwner, KeyPair

POLL_S = 0.1


class Store(Protocol):
    """What is needed of torch's TCPStore."""

    def set(self, key: str, value: str, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def check(self, keys: list[str], /) -> bool: ...


class RendezvousError(Exception):
    """The ranks do not come together; the message names who is missing or what differs."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Of a rank, to rank 0."""

    number: str  # of this process
    node: int
    key: str  # public
    config: str  # checksum of the whole configuration


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Of rank 0, to one rank: what it is, and where the others are."""

    round: str  # of rank 0's process
    name: str  # "l1", "e0", ...
    run: str
    resume: str  # a checkpoint, or ''
    host: str  # where the learner ranks meet
    port: int
    control: str
    data: str
    weights: str  # '': weights are files on this machine
    learners: int = 0  # learner ranks on this rank's machine, which are its first
    server: str  # the stage's public key; '': one machine, no keys
    refused: str = ""  # why this rank cannot take part


class SharedSecret:
    """What is said, with a proof that its speaker knows the secret ('': no proof)."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign_message(self, key: str, message: msgspec.Struct) -> str:
        body = msgspec.json.encode(message)
        return f"{self._proof(key, body)} {body.decode()}"

    def verified_message(self, key: str, sealed: bytes) -> bytes | None:
        """The message; None if it is not sealed with our secret."""
        proof, _, body = sealed.partition(b" ")
        if not hmac.compare_digest(proof, self._proof(key, body).encode()):
            return None
        return body

    def _proof(self, key: str, body: bytes) -> str:
        if not self._secret:
            return "-"
        return hmac.new(self._secret, key.encode() + b"\0" + body, hashlib.sha256).hexdigest()


def _read(store: Store, seal: SharedSecret, key: str) -> bytes | None:
    return seal.verified_message(key, store.get(key)) if store.check([key]) else None


def host_rendezvous(
    store: Store,
    seal: SharedSecret,
    ranks: int,
    answer: Callable[[Mapping[int, Hello]], Mapping[int, Assignment]],
    limit_s: float,
) -> dict[int, Hello]:
    """Rank 0: hear every other rank, answer, and wait until each has confirmed.

    Args:
        answer: hellos by rank -> a place for each; asked again when a rank starts anew.

    Raises: MeetingError naming the ranks that are missing after `limit_s`.
    """
    others = range(1, ranks)
    deadline = time.monotonic() + limit_s
    heard: dict[int, Hello] = {}
    while True:
        now_heard: dict[int, Hello] = {}
        for rank in others:
            if (body := _read(store, seal, f"darts/hello/{rank}")) is not None:
                now_heard[rank] = msgspec.json.decode(body, type=Hello)
        places: Mapping[int, Assignment] = {}
        if len(now_heard) == len(others):
            places = answer(now_heard)
            if now_heard != heard:
                for rank, place in places.items():
                    key = f"darts/place/{now_heard[rank].number}"
                    store.set(key, seal.sign_message(key, place))
                heard = now_heard
            confirmed = [
                rank
                for rank in others
                if store.check([f"darts/here/{places[rank].round}/{now_heard[rank].number}"])
            ]
            if len(confirmed) == len(others):
                return heard
        if time.monotonic() > deadline:
            silent = [r for r in others if r not in now_heard]
            raise RendezvousError(
                f"after {limit_s:.0f} s ranks {silent or 'that had said hello'} are missing "
                "(or have another --secret)"
            )
        time.sleep(POLL_S)


def join_rendezvous(
    store: Store, seal: SharedSecret, rank: int, hello: Hello, limit_s: float
) -> Assignment:
    """Another rank: say hello, wait for rank 0's answer, confirm it. Raises MeetingError."""
    said = f"darts/hello/{rank}"
    store.set(said, seal.sign_message(said, hello))
    key = f"darts/place/{hello.number}"
    deadline = time.monotonic() + limit_s
    while (body := _read(store, seal, key)) is None:
        if time.monotonic() > deadline:
            raise RendezvousError(
                f"rank 0 has not answered within {limit_s:.0f} s (or has another --secret)"
            )
        time.sleep(POLL_S)
    place = msgspec.json.decode(body, type=Assignment)
    store.set(f"darts/here/{place.round}/{hello.number}", "")
    if place.refused:
        raise RendezvousError(place.refused)
    return place


def allowed_keys(
    names: Mapping[int, str], hellos: Mapping[int, Hello], own: Mapping[str, KeyPair]
) -> dict[str, KeyOwner]:
    """The stage's allow list: every rank's key, and the keys that rank 0 has made."""
    keys = {hello.key: names[rank] for rank, hello in hellos.items()}
    keys |= {pair.public: name for name, pair in own.items()}
    return {key: key_owner(name) for key, name in keys.items()}


def key_owner(name: str) -> KeyOwner:
    """Of a role's name; of '' a guest, who may be any other engine.

    >>> key_owner("l2")
    KeyOwner(role='learner', name='l2')
    """
    return KeyOwner("learner" if name.startswith("l") else "engine", name)
