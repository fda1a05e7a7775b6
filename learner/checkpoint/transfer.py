"""Transfers parts of a checkpoint between rank 0 and ranks that cannot see the run's folder.

Rank 0 runs on the machine of the folder. A rank of a machine that does not share it
(`no_shared_fs`) writes into a directory of its own and sends the files to rank 0, which has
them on its disk before it reports them saved; at a resume rank 0 sends the rank what it
needs. Bytes go through the learner's process group, as gradients do, and their checksums
are checked. Knows no file format.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec
import torch
import torch.distributed
import xxhash

from pipeline.system.durable_files import SYSTEM, Disk, make_durable

PIECE_BYTES = 4 << 20
"""Bytes of a file that both ends hold in memory, as for weights."""


class TransferError(Exception):
    """A part did not arrive; the message says which, and why."""


class _File(msgspec.Struct, frozen=True, array_like=True):
    name: str  # relative to the checkpoint
    bytes: int
    checksum: str  # xxh3_128


class _FilePart(msgspec.Struct, frozen=True):
    """Sent before the files of one rank."""

    files: tuple[_File, ...] = ()
    error: str = ""  # why there are none


class CheckpointTransfer:
    """All ranks make one together, and enter its contexts together (collectives).

    Args:
        rank: number of this rank.
        no_shared_fs: by rank, True if its machine does not share the run's folder.
        own: where this rank keeps files meanwhile, if it does not share the folder.
    """

    def __init__(
        self,
        rank: int,
        no_shared_fs: Sequence[bool],
        own: Path | None,
        device: torch.device,
        disk: Disk = SYSTEM,
    ) -> None:
        if no_shared_fs[0]:
            raise TransferError("rank 0 must run on a machine that has the run's folder")
        self._rank, self._own, self._device, self._disk = rank, own, device, disk
        self._remote = [number for number, lacks in enumerate(no_shared_fs) if lacks]

    @contextlib.contextmanager
    def checkpoint_to_read(
        self, checkpoint: Path | None, needed: Callable[[Path, int], Sequence[Path]]
    ) -> Iterator[Path | None]:
        """Give the directory to restore from, fetched if need be; None: there is no checkpoint.

        Args:
            needed: (checkpoint, rank) -> files that the rank reads.

        Raises: TransferError if they did not arrive.
        """
        if checkpoint is None:
            yield None
        elif self._rank in self._remote:
            with self._emptied() as place:
                if problem := self._receive(0, place):
                    raise TransferError(f"{checkpoint}, from rank 0: {problem}")
                yield place
        else:
            for rank in self._remote if self._rank == 0 else ():
                self._send(rank, checkpoint, needed(checkpoint, rank))
            yield checkpoint

    @contextlib.contextmanager
    def directory_to_write(self, checkpoint: Path) -> Iterator[Path]:
        """Give the directory for this rank's part; at the end the part is in the checkpoint.

        Whatever fails, all ranks take part to the end. Raises TransferError (rank 0).
        """
        if self._rank in self._remote:
            with self._emptied() as place:
                try:
                    yield place
                except Exception as failure:
                    self._send_header(0, _FilePart(error=f"{type(failure).__name__}: {failure}"))
                    raise
                self._send(0, place, [path for path in place.rglob("*") if path.is_file()])
            return
        try:
            yield checkpoint
        except Exception:
            self._collect(None)
            raise
        if problems := self._collect(checkpoint):
            raise TransferError("; ".join(problems))

    def _collect(self, checkpoint: Path | None) -> list[str]:
        """Receive the parts of remote ranks (rank 0); None: receive and discard them."""
        if self._rank != 0:
            return []
        found = [(rank, self._receive(rank, checkpoint)) for rank in self._remote]
        return [f"the part of rank {rank}: {problem}" for rank, problem in found if problem]

    @contextlib.contextmanager
    def _emptied(self) -> Iterator[Path]:
        """Make the own directory anew; it is removed afterwards.

        If it cannot be made, writing there fails, and the rank still takes part to the end.
        """
        assert self._own is not None
        shutil.rmtree(self._own, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._own.mkdir(mode=0o700, parents=True)
        try:
            yield self._own
        finally:
            shutil.rmtree(self._own, ignore_errors=True)

    # --- one rank to another ------------------------------------------------------------

    def _send_header(self, to: int, part: _FilePart) -> None:
        content = torch.frombuffer(bytearray(msgspec.msgpack.encode(part)), dtype=torch.uint8)
        torch.distributed.send(torch.tensor([len(content)], device=self._device), to)
        torch.distributed.send(content.to(self._device), to)

    def _receive_header(self, sender: int) -> _FilePart:
        size = torch.zeros(1, dtype=torch.int64, device=self._device)
        torch.distributed.recv(size, sender)
        return msgspec.msgpack.decode(self._piece(sender, int(size.item())), type=_FilePart)

    def _send(self, to: int, base: Path, paths: Sequence[Path]) -> None:
        try:
            files = [
                _File(path.relative_to(base).as_posix(), path.stat().st_size, _checksum(path))
                for path in paths
            ]
        except OSError as failure:
            self._send_header(to, _FilePart(error=f"{type(failure).__name__}: {failure}"))
            raise
        self._send_header(to, _FilePart(tuple(files)))
        for path in paths:
            with path.open("rb") as file:
                while block := bytearray(file.read(PIECE_BYTES)):
                    piece = torch.frombuffer(block, dtype=torch.uint8)
                    torch.distributed.send(piece.to(self._device), to)

    def _receive(self, sender: int, base: Path | None) -> str:
        """Receive all files of a rank's part, written and fsynced below `base` (None: discarded).

        Returns: what went wrong; every byte is received even then.
        """
        part = self._receive_header(sender)
        problem = part.error
        for file in part.files:
            pieces = self._pieces(sender, file.bytes)
            if base is not None and not problem:
                problem = self._write(pieces, file, base)
            for _ in pieces:
                pass
        return problem

    def _write(self, pieces: Iterator[bytes], file: _File, base: Path) -> str:
        """Write one file; returns what went wrong."""
        name = PurePosixPath(file.name)
        if name.is_absolute() or ".." in name.parts:
            return f"{file.name} is outside the checkpoint"
        path, digest = base / name, xxhash.xxh3_128()
        try:
            if not path.parent.is_dir():
                self._disk.mkdir(path.parent)
            with self._disk.create(path) as out:
                for piece in pieces:
                    digest.update(piece)
                    out.write(piece)
            make_durable(self._disk, path)
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        if digest.hexdigest() != file.checksum:
            return f"{file.name}: not what was sent: damaged in transit"
        return ""

    def _pieces(self, sender: int, size: int) -> Iterator[bytes]:
        for begin in range(0, size, PIECE_BYTES):
            yield self._piece(sender, min(PIECE_BYTES, size - begin))

    def _piece(self, sender: int, size: int) -> bytes:
        piece = torch.empty(size, dtype=torch.uint8, device=self._device)
        torch.distributed.recv(piece, sender)
        return piece.cpu().numpy().tobytes()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def make_transfer(
    own: Path | None, device: torch.device, disk: Disk = SYSTEM
) -> CheckpointTransfer:
    """Make this rank's transfer, after the ranks have joined (a collective).

    Args:
        own: where the rank keeps files meanwhile; None: it shares the run's folder.
    """
    mine = torch.tensor([own is not None], dtype=torch.uint8, device=device)
    answers = [torch.zeros_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(answers, mine)
    no_shared_fs = [bool(one.item()) for one in answers]
    return CheckpointTransfer(torch.distributed.get_rank(), no_shared_fs, own, device, disk)
