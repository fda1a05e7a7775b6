"""Old logprobs in a trajectory's record: each token's, under the version that sampled it.

The decoupled objective needs three logprobs of a token: the behaviour logprob (engine), the old
one (learner, same version) and the new one (learner, now). The ratio of new over old is what
staleness and updates have changed, and is clipped; the weight of old over behaviour is the
mismatch of engine and learner, and is truncated. The old one can be computed only while its
version is the learner's, so it is kept here. Pure.
Source: decoupled PPO objective, AReaL, arXiv 2505.24298.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pipeline.coordinator.groups import Group, Trajectory
from pipeline.wire.messages import Piece, floats

Versions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
_NO_VERSION = -1


def token_versions(trajectory: Trajectory, first: int = 0, end: int | None = None) -> Versions:
    """Policy version of each response token in [first, end): shape (end - first,), -1 where the
    environment appended it."""
    end = trajectory.held if end is None else end
    found = np.full(end - first, _NO_VERSION, dtype=np.int64)
    for start, version in trajectory.version_starts:
        found[max(0, start - first) :] = version
    for start, count in trajectory.appended:
        found[max(0, start - first) : max(0, start + count - first)] = _NO_VERSION
    return found


def keep(trajectory: Trajectory, piece: Piece, version: int) -> None:
    """Keep a piece's logprobs of tokens that `version` sampled, where none is known yet, and its
    entropies of tokens that none is known of."""
    values = floats(piece.logprobs)
    first, end = piece.first, piece.first + len(values)
    known = len(trajectory.old) // 4
    if end > known:
        trajectory.old += np.full(end - known, np.nan, dtype="<f4").tobytes()
    held = np.frombuffer(trajectory.old, dtype="<f4")[first:end]  # a view: written in place
    fits = (token_versions(trajectory, first, end) == version) & np.isnan(held)
    held[fits] = values[fits]
    _look(trajectory, first, floats(piece.entropies))


def _look(trajectory: Trajectory, first: int, entropies: Floats) -> None:
    """Add entropies of tokens from `looked` on; those before are known, and a gap is not passed."""
    fresh = entropies[max(0, trajectory.looked - first) :]
    if first > trajectory.looked or not len(fresh):
        return
    sampled = token_versions(
        trajectory, first + len(entropies) - len(fresh), first + len(entropies)
    )
    trajectory.entropy_sum += float(fresh[sampled != _NO_VERSION].sum(dtype=np.float64))
    trajectory.looked += len(fresh)


def lacks(trajectory: Trajectory, version: int) -> bool:
    """Returns True if a token that `version` sampled has no old logprob."""
    return bool((np.isnan(_known(trajectory)) & (token_versions(trajectory) == version)).any())


def for_training(trajectory: Trajectory, version: int) -> bytes:
    """Old logprobs as `TrainMember.old` has them, for a step that begins with `version`.

    A token of an older version whose old logprob is missing gets its behaviour logprob: its
    staleness is clipped nevertheless, and its weight of old over behaviour is 1.
    """
    stale = _stale(trajectory, version)
    if not stale.any():
        return b""
    known, behaviour = _known(trajectory), floats(bytes(trajectory.logprobs))
    old = np.where(np.isnan(known), behaviour, known)
    return np.where(stale, old, np.float32(np.nan)).astype("<f4").tobytes()


def old_counts(groups: Iterable[Group], version: int) -> dict[str, int]:
    """Tokens trained on that are older than the step's version: `old_known`, and `old_missing`,
    which use their behaviour logprobs."""
    counts = {"old_known": 0, "old_missing": 0}
    for group in groups:
        for member in group.members:
            if member.id in group.chosen:
                stale, unknown = _stale(member, version), np.isnan(_known(member))
                counts["old_known"] += int((stale & ~unknown).sum())
                counts["old_missing"] += int((stale & unknown).sum())
    return counts


def _stale(trajectory: Trajectory, version: int) -> npt.NDArray[np.bool_]:
    if trajectory.versions == [version]:
        return np.zeros(trajectory.held, dtype=np.bool_)
    found = token_versions(trajectory)
    return (found != version) & (found != _NO_VERSION)


def _known(trajectory: Trajectory) -> Floats:
    """Old logprobs of all response tokens held, NaN where not known."""
    found = np.full(trajectory.held, np.nan, dtype=np.float32)
    known = floats(bytes(trajectory.old))
    found[: len(known)] = known
    return found
