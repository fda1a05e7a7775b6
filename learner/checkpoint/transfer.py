"""Parts of a checkpoint on their way between rank 0 and machines that lack the run's folder.

Rank 0 stands beside the folder. A rank of another machine that does not share
it (it is *apart*) writes into a directory of its own and sends the files to rank
0, which has them on its disk before the stage hears that they are; at a resume
rank 0 sends it what it needs. Bytes go through the learner's process group, as
gradients do, and are held against their checksums. Knows no format of a file.
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
"""As of weights: what both ends hold of a file."""


class TransferError(Exception):
    """A part did not arrive; the message says whose, and why."""


class _File(msgspec.Struct, frozen=True, array_like=True):
    name: str  # below the checkpoint
    bytes: int
    checksum: str  # xxh3_128


class _FilePart(msgspec.Struct, frozen=True):
    """Precedes the files of one rank."""

    files: tuple[_File, ...] = ()
    error: str = ""  # why there are none


class CheckpointTransfer:
    """All ranks make one together, and enter its contexts together (collectives).

    Args:
        rank: this one's number.
        apart: by rank, whether its machine lacks the run's folder.
        own: where this rank keeps files meanwhile, if it is apart.
    """

    def __init__(
        self,
        rank: int,
        apart: Sequence[bool],
        own: Path | None,
        device: torch.device,
        disk: Disk = SYSTEM,
    ) -> None:
        if apart[0]:
            raise TransferError("rank 0 is apart: it has to run beside the run's folder")
        self._rank, self._own, self._device, self._disk = rank, own, device, disk
        self._apart = [number for number, lacks in enumerate(apart) if lacks]

    @contextlib.contextmanager
    def checkpoint_to_read(
        self, checkpoint: Path | None, needed: Callable[[Path, int], Sequence[Path]]
    ) -> Iterator[Path | None]:
        """Where what this rank needs of the checkpoint can be read; None: there is none.

        Args:
            needed: checkpoint, rank -> files that the rank reads of it.

        Raises: CarryingError if they have not come.
        """
        if checkpoint is None:
            yield None
        elif self._rank in self._apart:
            with self._emptied() as place:
                if problem := self._receive(0, place):
                    raise TransferError(f"{checkpoint}, from rank 0: {problem}")
                yield place
        else:
            for rank in self._apart if self._rank == 0 else ():
                self._send(rank, checkpoint, needed(checkpoint, rank))
            yield checkpoint

    @contextlib.contextmanager
    def directory_to_write(self, checkpoint: Path) -> Iterator[Path]:
        """Where this rank writes its part; left, the part is in the checkpoint's directory.

        Whatever fails, all ranks take part to the end. Raises CarryingError (rank 0).
        """
        if self._rank in self._apart:
            with self._emptied() as place:
                try:
                    yield place
                except Exception as failure:
                    self._tell(0, _FilePart(error=f"{type(failure).__name__}: {failure}"))
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
        """Rank 0 takes the parts of all that are apart; None: they are of no use any more."""
        if self._rank != 0:
            return []
        found = [(rank, self._receive(rank, checkpoint)) for rank in self._apart]
        return [f"the part of rank {rank}: {problem}" for rank, problem in found if problem]

    @contextlib.contextmanager
    def _emptied(self) -> Iterator[Path]:
        """The own directory, without what an earlier process has left; gone afterwards.

        Where it cannot be made, whoever writes there fails, and takes part to the end.
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

    def _tell(self, to: int, parcel: _FilePart) -> None:
        content = torch.frombuffer(bytearray(msgspec.msgpack.encode(parcel)), dtype=torch.uint8)
        torch.distributed.send(torch.tensor([len(content)], device=self._device), to)
        torch.distributed.send(content.to(self._device), to)

    def _hear(self, sender: int) -> _FilePart:
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
            self._tell(to, _FilePart(error=f"{type(failure).__name__}: {failure}"))
            raise
        self._tell(to, _FilePart(tuple(files)))
        for path in paths:
            with path.open("rb") as file:
                while block := bytearray(file.read(PIECE_BYTES)):
                    piece = torch.frombuffer(block, dtype=torch.uint8)
                    torch.distributed.send(piece.to(self._device), to)

    def _receive(self, sender: int, base: Path | None) -> str:
        """All files of a rank's parcel, written and fsynced below `base` (None: nowhere).

        Returns: what went wrong; nothing is left on the way even then.
        """
        parcel = self._hear(sender)
        problem = parcel.error
        for file in parcel.files:
            pieces = self._pieces(sender, file.bytes)
            if base is not None and not problem:
                problem = self._write(pieces, file, base)
            for _ in pieces:
                pass
        return problem

    def _write(self, pieces: Iterator[bytes], file: _File, base: Path) -> str:
        """Returns what went wrong."""
        name = PurePosixPath(file.name)
        if name.is_absolute() or ".." in name.parts:
            return f"{file.name} is outside of the checkpoint"
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
            return f"{file.name}: not what was sent: damaged on the way"
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
    """This rank's carrier, after the ranks have joined (a collective).

    Args:
        own: where a rank that is apart keeps files meanwhile; None: it has the run's folder.
    """
    mine = torch.tensor([own is not None], dtype=torch.uint8, device=device)
    said = [torch.zeros_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(said, mine)
    apart = [bool(one.item()) for one in said]
    return CheckpointTransfer(torch.distributed.get_rank(), apart, own, device, disk)
