"""Ranks meet through a store that may hold what an earlier round has left."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from launch.torchrun.rendezvous import (
    Assignment,
    Confirmed,
    Hello,
    RendezvousError,
    SharedSecret,
    allowed_keys,
    host_rendezvous,
    join_rendezvous,
    read_secret,
)
from launch.torchrun.roles import RolesError, assign_roles
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import KeyOwner
from tests.paths import ROOT

OPEN = SharedSecret(b"")


class Shelf:
    """A store."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: str, /) -> None:
        with self._lock:
            self.held[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        return self.held[key]

    def check(self, keys: list[str], /) -> bool:
        return all(key in self.held for key in keys)


def hello_of(number: str, key: str = "k") -> Hello:
    return Hello(number=number, node=0, key=key, config="c")


def place_of(round_: str, **changes: str) -> Assignment:
    fields: dict[str, Any] = {
        "name": "e0",
        "run": "/r",
        "resume": "",
        "host": "h",
        "control": "c",
        "data": "d",
    }
    fields |= {"weights": "", "server": ""} | changes
    return Assignment(round=round_, port=1, micro_batch_tokens=1, **fields)


def answers(round_: str, hellos: Mapping[int, Hello], **changes: str) -> dict[int, Assignment]:
    return {rank: place_of(round_, name=f"e{rank}", **changes) for rank in hellos}


def test_every_rank_is_heard_and_gets_its_place() -> None:
    store = Shelf()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(host_rendezvous, store, OPEN, 3, lambda h: answers("1", h), 20)
        others = [
            pool.submit(join_rendezvous, store, OPEN, r, hello_of(f"n{r}"), 20) for r in (1, 2)
        ]
        assert [other.result().name for other in others] == ["e1", "e2"]
        assert first.result() == {1: hello_of("n1"), 2: hello_of("n2")}


@pytest.mark.fault(
    "ranks are started again over what the last round left", part="network", by="direct"
)
def test_what_a_round_before_has_left_is_taken_for_nobody() -> None:
    """Promise: nobody of the round before is taken for one that is there; the new ones meet.
    Bound: when the last new rank has come.
    """
    store = Shelf()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(host_rendezvous, store, OPEN, 2, lambda h: answers("1", h), 20)
        join_rendezvous(store, OPEN, 1, hello_of("old"), 20)
        first.result()
        # All are started again; rank 0 is the first to look.
        second = pool.submit(host_rendezvous, store, OPEN, 2, lambda h: answers("2", h), 20)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.5)
        assert join_rendezvous(store, OPEN, 1, hello_of("new"), 20).round == "2"
        assert second.result() == {1: hello_of("new")}


@pytest.mark.fault("a rank never comes to the meeting", part="network", by="direct")
def test_missing_ranks_are_named() -> None:
    """Promise: rank 0 ends and names those that are missing.
    Bound: `timeouts.join_s` (here 0.2 s).
    """
    store = Shelf()
    store.set("darts/hello/1", OPEN.sign_message("darts/hello/1", hello_of("n1")))
    with pytest.raises(RendezvousError, match=r"ranks \[2\] are missing"):
        host_rendezvous(store, OPEN, 3, lambda h: answers("1", h), 0.2)


class Gone(Shelf):
    """A store whose process has ended: torch's raises errors of several lines."""

    def check(self, keys: list[str], /) -> bool:
        raise RuntimeError("Connection reset by peer\nException raised from recv (a.cpp:1)")


@pytest.mark.fault("rank 0 ends before a rank has its place", part="network", by="direct")
def test_a_rank_whose_store_is_gone_says_where_the_reason_is() -> None:
    """Promise: one line that names rank 0's machine, and no traceback. Bound: at its next look."""
    with pytest.raises(RendezvousError, match="rank 0, .* has ended") as raised:
        join_rendezvous(Gone(), OPEN, 1, hello_of("a"), 20)
    assert "\n" not in str(raised.value)


def test_a_rank_that_is_refused_ends_with_the_reason() -> None:
    store = Shelf()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(host_rendezvous, store, OPEN, 2, lambda h: answers("1", h, refused="no"), 20)
        with pytest.raises(RendezvousError, match="no"):
            join_rendezvous(store, OPEN, 1, hello_of("n1"), 20)


@pytest.mark.fault("a rank has another secret", part="network", by="direct")
@pytest.mark.parametrize("other", [b"", b"wrong"])
def test_without_the_secret_nothing_counts_as_said(other: bytes) -> None:
    """Promise: both ends name another `--secret` as the likely reason.
    Bound: the patience of the meeting (here 0.5 s).
    """
    store, ours, theirs = Shelf(), SharedSecret(b"right"), SharedSecret(other)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(host_rendezvous, store, ours, 2, lambda h: answers("1", h), 0.5)
        with pytest.raises(RendezvousError, match="another --secret"):
            join_rendezvous(store, theirs, 1, hello_of("n1"), 0.5)
        with pytest.raises(RendezvousError, match=r"ranks \[1\] are missing .*another --secret"):
            first.result()


@pytest.mark.parametrize(
    "content, mode, why",
    [(b"", 0o600, "holds 0 bytes"), (b"short", 0o600, "at least 16"),
     (b"x" * 32, 0o640, "chmod 600"), (b"x" * 32, 0o604, "chmod 600")],
)  # fmt: skip
def test_a_secret_that_others_know_or_guess_is_refused(
    tmp_path: Path, content: bytes, mode: int, why: str
) -> None:
    path = tmp_path / "a secret"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(RendezvousError, match=why) as found:
        read_secret(path)
    assert str(path) in str(found.value)


def test_a_secret_of_its_owner_alone_is_taken_and_none_signs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x" * 32)
    path.chmod(0o600)
    message = Confirmed(number="1")
    assert read_secret(path).sign_message("k", message) == SharedSecret(b"x" * 32).sign_message(
        "k", message
    )
    assert read_secret(None).sign_message("k", message).startswith("- ")


def test_every_word_of_the_store_is_read_in_one_place_which_checks_its_seal() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for package in ("launch", "learner", "engines")
        for path in (ROOT / package).rglob("*.py")
        for name in reads_of_a_store(ast.parse(path.read_text()))
    }
    assert found == {("launch/torchrun/rendezvous.py", "read_message")}


def reads_of_a_store(tree: ast.Module) -> Iterator[str]:
    """Names of the functions in which something named a store is read."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in ("get", "multi_get", "wait"):
                    owner = node.value
                    name = getattr(owner, "id", getattr(owner, "attr", ""))
                    if name.strip("_") in ("store", "shelf"):
                        yield function.name


def test_sealed_words_cannot_be_moved_to_another_place() -> None:
    seal = SharedSecret(b"right")
    sealed = seal.sign_message("darts/hello/1", hello_of("n1")).encode()
    assert seal.verified_message("darts/hello/1", sealed) is not None
    assert seal.verified_message("darts/hello/2", sealed) is None
    assert seal.verified_message("darts/hello/1", sealed.replace(b"n1", b"n2")) is None


def test_the_allow_list_has_every_ranks_key_and_rank_0s_own() -> None:
    own, guest = new_pair(), new_pair()
    names = {0: "l0", 1: "l1", 2: "e0"}
    found = allowed_keys(
        names, {1: hello_of("a", "K1"), 2: hello_of("b", "K2")}, {"l0": own, "": guest}
    )
    assert found == {
        "K1": KeyOwner("learner", "l1"),
        "K2": KeyOwner("engine", "e0"),
        own.public: KeyOwner("learner", "l0"),
        guest.public: KeyOwner("engine", ""),
    }


# --- who is what ------------------------------------------------------------------------------

TWO = [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "nodes, ranks, learners, expected",
    [
        ([0, 0, 0], 2, "first", "l0 l1 e0"),
        ([0, 0, 0], 1, "spread", "l0 e0 e1"),
        (TWO, 3, "first", "l0 l1 l2 e0 e1 e2"),
        (TWO, 3, "spread", "l0 l1 e0 l2 e1 e2"),
        (TWO, 2, "spread", "l0 e0 e1 l1 e2 e3"),
        ([0, 1, 1, 1, 1], 4, "spread", "l0 l1 l2 l3 e0"),  # the first has room for one
    ],
)
def test_roles_follow_ranks_and_machines(
    nodes: list[int], ranks: int, learners: str, expected: str
) -> None:
    assert " ".join(assign_roles(nodes, ranks, len(nodes) - ranks, learners)) == expected


def test_ranks_that_do_not_fit_are_refused_with_the_sum() -> None:
    with pytest.raises(RolesError, match=r"started 6 ranks, but .* 2 \+ .* 3 are 5"):
        assign_roles(TWO, 2, 3)
