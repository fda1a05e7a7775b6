"""A disk that remembers every operation, and the states that a crash may leave of them.

Of what was not fsynced any part may be lost: content of a file (then it is empty,
half, or zeros) and each change of names in a directory, in any combination. A
rename is one change. That is more than any one file system loses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import subprocess
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.checkpoint import store
from pipeline.checkpoint.store import CheckpointError
from pipeline.system.durable_files import System

COMMITTED = "committed "
"""Begins the mark of a checkpoint that was reported as committed; its content follows."""
SUBSETS = 64
_ALL_SUBSETS = 6  # pending effects up to which every subset is tried


@dataclass(eq=False)
class Node:
    """A file (names is None) or a directory, whatever it is called."""

    names: dict[str, Node] | None = None
    content: bytes = b""


@dataclass(frozen=True)
class Data:
    node: Node
    content: bytes


@dataclass(frozen=True)
class Names:
    node: Node  # the directory
    changes: tuple[tuple[str, Node | None], ...]


@dataclass(frozen=True)
class Sync:
    node: Node
    name: str  # for people


@dataclass(frozen=True)
class Mark:
    text: str


Entry = Data | Names | Sync | Mark


def copy_of(node: Node, known: dict[Node, Node]) -> Node:
    """A tree of its own; `known` tells which node of it stands for which."""
    names = None if node.names is None else {n: copy_of(c, known) for n, c in node.names.items()}
    known[node] = Node(names, node.content)
    return known[node]


class Recorder(System):
    """Does everything for real below `root`, and writes it down; what others write there (the
    libraries of the learner) is seen before the next operation.

    Args:
        broken: this fsync, counted from 0, fails; nothing becomes durable by it.
    """

    def __init__(self, root: Path, broken: int = -1) -> None:
        self.root, self._broken, self._syncs = root, broken, 0
        self.tree = self._read(root)
        self._copies: dict[Node, Node] = {}
        self.first = copy_of(self.tree, self._copies)  # all of it is on disk
        self.log: list[Entry] = []

    def _read(self, path: Path) -> Node:
        if path.is_dir():
            return Node({child.name: self._read(child) for child in path.iterdir()})
        return Node(None, path.read_bytes())

    def _node(self, path: Path) -> Node:
        node = self.tree
        for part in path.relative_to(self.root).parts:
            assert node.names is not None
            node = node.names[part]
        return node

    def mark(self, text: str) -> None:
        self._look(self.root, self.tree)
        self.log.append(Mark(text))

    def _look(self, path: Path, node: Node) -> None:
        """Write down what was written without a word."""
        if node.names is None:
            if (content := path.read_bytes()) != node.content:
                node.content = content
                self.log.append(Data(node, content))
            return
        found = {child.name for child in path.iterdir()}
        assert found >= set(node.names), f"gone behind our back: {set(node.names) - found}"
        for name in sorted(found - set(node.names)):
            assert (path / name).is_file(), f"made behind our back: {path / name}"
            self._name(node, (name, Node()))
        for name, child in node.names.items():
            self._look(path / name, child)

    def _name(self, directory: Node, *changes: tuple[str, Node | None]) -> None:
        assert directory.names is not None
        for name, child in changes:
            if child is None:
                del directory.names[name]
            else:
                directory.names[name] = child
        self.log.append(Names(directory, changes))

    def mkdir(self, path: Path) -> None:
        self._look(self.root, self.tree)
        super().mkdir(path)
        self._name(self._node(path.parent), (path.name, Node({})))

    def create(self, path: Path) -> BinaryIO:
        self._look(self.root, self.tree)
        file = super().create(path)
        self._name(self._node(path.parent), (path.name, Node()))
        return file

    def fsync(self, path: Path) -> None:
        self._look(self.root, self.tree)
        self._syncs += 1
        if self._syncs - 1 == self._broken:
            raise OSError(5, "Input/output error", str(path))
        self.log.append(Sync(self._node(path), str(path.relative_to(self.root))))

    def rename(self, path: Path, to: Path) -> None:
        self._look(self.root, self.tree)
        super().rename(path, to)
        assert path.parent == to.parent
        moved = self._node(path)
        self._name(self._node(path.parent), (path.name, None), (to.name, moved))

    def unlink(self, path: Path) -> None:
        self._look(self.root, self.tree)
        super().unlink(path)
        self._name(self._node(path.parent), (path.name, None))

    def rmdir(self, path: Path) -> None:
        self._look(self.root, self.tree)
        super().rmdir(path)
        self._name(self._node(path.parent), (path.name, None))


class Quick(System):
    """For looking at thousands of states: nothing has to last."""

    def fsync(self, path: Path) -> None:
        pass


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Generator[Path, None, None]:
    """A file system of so many bytes where one may be made, else a limit on the size of files."""
    folder.mkdir(mode=0o700)
    options = ["-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    if os.geteuid() == 0 and not subprocess.run(["mount", *options], check=False).returncode:
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass(frozen=True)
class State:
    """What is on the disk after a crash."""

    files: dict[str, bytes | None] = field(default_factory=dict[str, bytes | None])  # None: folder
    said: frozenset[str] = frozenset()  # marks that were passed

    @property
    def key(self) -> tuple[object, ...]:
        return (*sorted(self.files.items()), self.said)

    def put(self, root: Path) -> None:
        root.mkdir()
        for name, content in self.files.items():  # a folder comes before what is in it
            if content is None:
                (root / name).mkdir(mode=0o700)
            else:
                (root / name).write_bytes(content)
                (root / name).chmod(0o600)  # whatever the umask: else it is refused for that


def _state(recorder: Recorder, log: list[Entry], kept: set[int], rng: random.Random) -> State:
    """The effects that are durable, and those of `kept` (positions in the log)."""
    known: dict[Node, Node] = {}
    tree = copy_of(recorder.first, known)
    of_first = {live: known[copy] for live, copy in recorder._copies.items()}

    def here(node: Node) -> Node:
        if node not in of_first:
            of_first[node] = Node(None if node.names is None else {})
        return of_first[node]

    for at, entry in enumerate(log):
        if isinstance(entry, Names) and at in kept:
            names = here(entry.node).names
            assert names is not None
            for name, child in entry.changes:
                names.pop(name, None)
                if child is not None:
                    names[name] = here(child)
        elif isinstance(entry, Data):
            half, zeros = entry.content[: len(entry.content) // 2], bytes(len(entry.content))
            lost = rng.choice((here(entry.node).content, half, zeros))
            here(entry.node).content = entry.content if at in kept else lost
    files: dict[str, bytes | None] = {}
    _list(tree, "", files)
    return State(files, frozenset(e.text for e in log if isinstance(e, Mark)))


def _list(node: Node, path: str, into: dict[str, bytes | None]) -> None:
    assert node.names is not None
    for name, child in sorted(node.names.items()):
        into[path + name] = None if child.names is not None else child.content
        if child.names is not None:
            _list(child, f"{path}{name}/", into)


def _subsets(pending: list[int], rng: random.Random) -> Iterator[set[int]]:
    if len(pending) <= _ALL_SUBSETS:
        for size in range(len(pending) + 1):
            yield from map(set, itertools.combinations(pending, size))
        return
    yield set()
    yield set(pending)
    for one in pending:
        yield set(pending) - {one}
        yield {one}
    for _ in range(SUBSETS):
        share = rng.random()
        yield {at for at in pending if rng.random() < share}


def states(recorder: Recorder, without: int = -1, seed: int = 0) -> Iterator[State]:
    """Every state that a crash may leave, each once, the latest moments first.

    Args:
        without: leave this entry of the log out, an fsync: what a writer that forgot it does.
    """
    rng = random.Random(seed)
    log = [entry for at, entry in enumerate(recorder.log) if at != without]
    seen: set[tuple[object, ...]] = set()
    for end in range(len(log), -1, -1):
        synced: dict[Node, int] = {}
        for at, entry in enumerate(log[:end]):
            if isinstance(entry, Sync):
                synced[entry.node] = at
        effects = [at for at, entry in enumerate(log[:end]) if isinstance(entry, Data | Names)]
        safe = {at for at in effects if at < synced.get(log[at].node, -1)}  # type: ignore[union-attr]
        for kept in _subsets([at for at in effects if at not in safe], rng):
            state = _state(recorder, log[:end], safe | kept, rng)
            if state.key not in seen:
                seen.add(state.key)
                yield state


def syncs(recorder: Recorder) -> list[int]:
    """Positions of the fsyncs in the log."""
    return [at for at, entry in enumerate(recorder.log) if isinstance(entry, Sync)]


# --- what must hold of a checkpoint --------------------------------------------------------------


def wrong(found: State, folder: Path, allowed: str, content_of: Callable[[Path], str]) -> str:
    """What does not hold of a state after a crash, '' if everything does.

    Args:
        allowed: contents of checkpoints that were begun, in order; what has been
            reported as committed, or a later one, has to be there. "-" is none at all.
        content_of: tells which of them a checkpoint is.
    """
    found.put(folder)
    checkpoints = folder / "checkpoints"
    said = [text.removeprefix(COMMITTED) for text in found.said]
    allowed = allowed[max((allowed.index(content) for content in said), default=0) :]
    try:
        for directory in store.committed(checkpoints):
            store.verify(directory)
        directory, _, complaints = store.newest(checkpoints, Quick())
    except CheckpointError as error:
        return "" if allowed[0] == "-" and "no complete checkpoint" in str(error) else str(error)
    content = content_of(directory)
    left = [p.name for p in checkpoints.iterdir() if p.name.startswith(".")]
    if complaints or left:
        return f"{complaints} {left}"
    return "" if content in allowed else f"{content!r} is used, not one of {allowed!r}"


def forgotten(
    recorder: Recorder, tmp_path: Path, allowed: str, content_of: Callable[[Path], str]
) -> list[str]:
    """The fsyncs that could be left out, and no state after a crash would be wrong."""
    missed: list[str] = []
    for position in syncs(recorder):
        tried = (
            wrong(found, tmp_path / f"without-{position}-{number}", allowed, content_of)
            for number, found in enumerate(states(recorder, without=position))
        )
        if not any(tried):
            missed.append(f"{position}: {recorder.log[position]}")
    return missed
