"""Sends what the run does now, once a second, to `live.json`, the launcher and the trackers.

Adds to the coordinator's part what only the shell knows: who is connected and
what they say they do, how many rewards wait, and the clock on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from pipeline.checkpoint.saver import Saver
from pipeline.coordinator.coordinator import Coordinator
from pipeline.observability.live_status import PeerStatus, RunStatus, run_status
from pipeline.observability.recorder import Records
from pipeline.stage.missing_engines import MissingEngines
from pipeline.stage.peers import Peers
from pipeline.wire.messages import SAVE
from pipeline.workers.pool import RewardPool


class StatusFeed:
    def __init__(
        self,
        coordinator: Coordinator,
        peers: Peers,
        pool: RewardPool,
        records: Records,
        tell_launcher: Callable[[dict[str, Any]], None],
        missing: MissingEngines,
        saver: Saver,
    ) -> None:
        self._missing, self._saver = missing, saver
        self._coordinator, self._peers, self._pool = coordinator, peers, pool
        self._records, self._tell_launcher = records, tell_launcher

    def show(self, training_seconds: float) -> None:
        """Sends the status. Called once a second, and at the end."""
        now = self._whole(training_seconds, time.monotonic())
        self._records.write_live(now)
        self._tell_launcher({"live": msgspec.to_builtins(now)})

    def _is_writing(self) -> bool:
        """A rank that has a step's work before the checkpoint does not write yet."""
        if (waiting := self._saver.waiting) is None:
            return False
        doing = {peer.join.rank: peer.activity for peer in self._peers.with_role("learner")}
        return all(doing.get(rank) == SAVE for rank in waiting)

    def _whole(self, training_seconds: float, now: float) -> RunStatus:
        rewards, known = self._pool.statistics(), run_status(self._coordinator, training_seconds)
        return msgspec.structs.replace(
            known,
            time=round(time.time(), 2),
            checkpoint_writing=self._is_writing(),
            missing={name: round(now - since, 1) for name, since in self._missing.since.items()},
            rewards_queued=rewards.queued,
            rewards_running=rewards.running,
            refused={**known.refused, **self._peers.rejected_frames.counts},
            peers=tuple(
                PeerStatus(
                    name=peer.name,
                    role=peer.join.role,
                    activity=peer.activity,
                    heard_s=round(now - peer.heard, 2),
                    still_s=round(now - peer.moved, 2),
                )
                for peer in self._peers.by_identity.values()
            ),
        )
