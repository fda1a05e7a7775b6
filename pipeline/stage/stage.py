"""The stage process: sockets, clock, files and reward workers around the coordinator.

Makes events of messages and messages of commands; decides nothing itself. It
holds the data set and adds prompts where the coordinator names them by number.
The launcher, which owns the processes, is reached over a pipe of JSON lines;
without one (torchrun), a peer that has to be restarted is asked to end.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.checkpoint import fingerprint
from pipeline.checkpoint.saver import Saver, size_of
from pipeline.config import rules
from pipeline.config.load import environment_options
from pipeline.config.trained import learner_ranks
from pipeline.coordinator import events, snapshot
from pipeline.coordinator.events import AnyCommand, AnyEvent, Halt, Tick
from pipeline.coordinator.state import PluginFault
from pipeline.recording.frames import encode_value
from pipeline.stage import translate
from pipeline.stage.admission import Admission
from pipeline.stage.arrivals import arrivals_of
from pipeline.stage.build import Parts
from pipeline.stage.environment_calls import EnvironmentCalls, EnvironmentPool
from pipeline.stage.missing_engines import MissingEngines
from pipeline.stage.outbox import CommandBatch, drawings_of
from pipeline.stage.peer_failures import PeerMonitor
from pipeline.stage.peers import Peers
from pipeline.stage.published_weights import PublishedWeights
from pipeline.stage.recorded_coordinator import RecordedCoordinator
from pipeline.stage.run_records import RunRecords
from pipeline.stage.scoring import RewardRequests
from pipeline.stage.status_feed import StatusFeed
from pipeline.wire.codec import decode_tokens, sender_of
from pipeline.wire.messages import (
    AbortLegs,
    Alive,
    CloseStep,
    ForgetGroup,
    FromPeer,
    Heartbeat,
    Join,
    LoadWeights,
    Manifest,
    OutOfMemory,
    Published,
    Saved,
    Shutdown,
    Spans,
    StepDone,
    WireError,
)
from pipeline.workers.pool import RewardPool

log = logging.getLogger("stage")
_POLL_S = 0.25
_STALL_S = 8.0  # a stage that stands still for so long says in its log where its threads are


class StageProcess:
    """`run()` until the coordinator shuts down; returns the run's error ('' when none)."""

    def __init__(
        self,
        parts: Parts,
        pool: RewardPool,
        tell_launcher: Callable[[dict[str, Any]], None],
        environments: EnvironmentPool | None = None,
    ) -> None:
        self.parts, self._tell_launcher = parts, tell_launcher
        self.coordinator = parts.coordinator
        self._server, self._config = parts.server, parts.config
        self._peers = Peers(parts.silence_s)
        self._peer_monitor = PeerMonitor(
            self.coordinator, parts.server, self._peers, self.tell, tell_launcher
        )
        self._outbox = self._peer_monitor.outbox
        self._admission = Admission(
            parts, self._peers, self._outbox, self._peer_monitor.lose, tell_launcher
        )
        self._records = RunRecords(parts, pool.workers)
        self._arrivals = arrivals_of(self._config)
        self._recorded = RecordedCoordinator(parts, self._warn)
        self._handling = False
        self._published = PublishedWeights(parts.weights, parts.spare_weights, self._warn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._saver = Saver(
            self.coordinator,
            parts.run.checkpoints,
            parts.config.checkpoint.keep,
            learner_ranks(parts.config),
            done=self.tell,
            made_for=fingerprint.fingerprint_of(parts.config),
            least=size_of(Path(parts.config.model), "*.safetensors"),
        )
        show = self._records.sample
        self._reward_requests = RewardRequests(
            pool, parts.tokenizer, parts.data, answer=self.tell, show=show
        )
        options = environment_options(self._config)
        self._environment_calls = EnvironmentCalls(
            environments, parts.tokenizer, parts.data, self.tell, options
        )
        self._missing = MissingEngines(self._config.engine.count, self._config.timeouts.log_wait_s)
        self._feed = StatusFeed(
            *(self.coordinator, self._peers, pool, self._records, tell_launcher),
            *(self._missing, self._saver),
        )
        self._over = asyncio.Event()
        self.error = ""
        self._training_s = 0.0

    # --- the loops ----------------------------------------------------------------------

    async def run(self) -> str:
        """Serve until the end. Raises nothing that a run may meet."""
        for note in self.parts.notes:
            self._report("warning", {"text": note})
        for text in rules.warnings(self._config):
            self._report("warning", {"step": self.coordinator.core.step, "text": text})
        self._recorded.begin()
        loops = [
            asyncio.create_task(loop())
            for loop in (
                self._control_loop,
                self._token_loop,
                self._clock_loop,
                self._server.serve_peers,
            )
        ]
        over = asyncio.create_task(self._over.wait())
        try:
            done, _ = await asyncio.wait([*loops, over], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not over and (failure := task.exception()) is not None:
                    self._fail(f"the stage failed: {failure!r}", failure)
        finally:
            for task in (pending := {*loops, over, *self._tasks}):
                task.cancel()
            await asyncio.wait(pending)
            await self._environment_calls.close()
            faulthandler.cancel_dump_traceback_later()
            self._farewell()
        return self.error

    def resume(self, state: snapshot.Snapshot, training_s: float) -> None:
        """Go on from a checkpoint; before `run`."""
        self._training_s = training_s
        now, saved = self._arrivals.now(), encode_value(state)  # a restore takes it apart
        commands = snapshot.restore(self.coordinator, state, now)
        self._records.forget_rollouts(self.coordinator.core)
        self._recorded.begin(saved, now, commands)
        self._arrivals.answered(commands)
        self._carry_out_all(commands)
        self._records.record_event(now, Tick(), commands, time.monotonic())

    async def _control_loop(self) -> None:
        while True:
            try:
                identity, message = await self._server.receive_control()
            except WireError as error:
                self._peer_monitor.refused(
                    "control", self._peers.by_identity.get(error.sender), error
                )
                continue
            self._message(identity, message)

    async def _token_loop(self) -> None:
        while True:
            parts, key = await self._server.receive_tokens()
            try:
                header, tokens, logprobs = decode_tokens(parts, self.parts.tokenizer.vocabulary)
            except WireError as error:
                self._peer_monitor.refused(
                    "tokens", self._admission.sender(key, sender_of(parts)), error
                )
                continue
            if why := self._admission.objection(key, header):
                self._peer_monitor.refused("tokens", None, why)
                continue
            peer = self._peers.named(header.engine)
            offset = peer.clock.offset_s if peer is not None else 0.0
            self.tell(translate.tokens_event(header, tokens, logprobs, time.monotonic(), offset))

    async def _clock_loop(self) -> None:
        last = time.monotonic()
        ticks = 0
        while True:
            await asyncio.sleep(_POLL_S)
            now = time.monotonic()
            late, last = now - last - _POLL_S, now
            if late > 1.0:
                self._peers.extend_deadlines(late)
                log.warning("the stage itself was late by %.1f s", late)
            faulthandler.dump_traceback_later(_STALL_S)  # put off at each turn
            self._peer_monitor.look(now)
            if text := self._server.news_of_strangers():
                self._warn(text)
            ticks += 1
            if ticks % int(1 / _POLL_S) == 0:
                self._outbox.to_all(Alive(clock_s=now))
                for text in self._records.flush():
                    self._tell_launcher({"say": text})
                self.tell(Tick())
                self._look_for_engines(now)
                if line := self._arrivals.overdue(self._config.timeouts.learner_s):
                    self._fail(line, None)
                self._feed.show(self._training_s)

    def _look_for_engines(self, now: float) -> None:
        here = {p.name for p in self._peers.by_identity.values() if p.join.role == "engine"}
        for text in self._missing.look(now, here, works=self.coordinator.run.works):
            self._report("warning", {"step": self.coordinator.core.step, "text": text})

    # --- events in, commands out --------------------------------------------------------

    def halt(self, error: str = "") -> None:
        """Cut a checkpoint and end; `error` if the run failed."""
        self.tell(Halt(error=error))

    def tell(self, event: AnyEvent) -> None:
        """Hand an event to the coordinator and carry out what it answers, in order."""
        self._handling, nested = True, self._handling
        try:
            self._arrivals.put(event)
            if isinstance(event, events.EngineLost):
                self._missing.lost(event.engine, event.why)
            while not (nested or self._over.is_set() or (due := self._arrivals.next()) is None):
                heard, now = due
                commands = self._recorded.handle(heard, now)
                self._arrivals.answered(commands)
                cut = any(isinstance(command, events.Checkpoint) for command in commands)
                if cut:  # the step's timing belongs into the checkpoint
                    self._records.record_event(now, heard, commands, time.monotonic())
                self._carry_out_all(commands)
                if not cut:
                    self._records.record_event(now, heard, commands, time.monotonic())
        except PluginFault as fault:
            self._fail(str(fault), fault)
        except Exception as failure:  # of any task: it would be lost otherwise
            self._fail(f"the stage failed: {failure!r}", failure)
        finally:
            self._handling = nested

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self._tell_launcher({"say": text})

    def _fail(self, error: str, cause: BaseException | None) -> None:
        """The run ends here; its last checkpoint is good."""
        log.error("%s", error, exc_info=cause)
        self.error = error
        self._over.set()

    def _carry_out_all(self, commands: list[AnyCommand]) -> None:
        """Carry out commands in order; what goes to one peer in many pieces travels together."""
        gather = CommandBatch(self.parts.data, drawings_of(self._config))
        others = [command for command in commands if not gather.add(command)]
        gather.send_hints(self._outbox)
        for command in others:
            self._carry_out(command)
        gather.send_requests(self._outbox)

    def _carry_out(self, command: AnyCommand) -> None:
        match command:
            case events.AbortLegs(engine=engine, legs=legs):
                self._outbox.to(engine, AbortLegs(legs=legs))
            case events.RequestReward():
                task = asyncio.ensure_future(self._reward_requests.request(command))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case events.CancelReward(trajectory=trajectory):
                self._reward_requests.cancel(trajectory)
            case events.CallEnvironment():
                self._environment_calls.ask(command)
            case events.CancelEnvironmentCall(trajectory=trajectory):
                self._environment_calls.cancel(trajectory)
            case events.TrainGroup(rank=rank) | events.CloseVersion(rank=rank):
                self._outbox.to_rank(rank, translate.with_prompts(command, self.parts.data))
            case events.ForgetGroup(rank=rank, group=group):
                self._outbox.to_rank(rank, ForgetGroup(group=group))
            case events.CloseStep(step=step, groups=groups, normaliser=normaliser):
                self._outbox.to_learners(CloseStep(step=step, groups=groups, normaliser=normaliser))
            case events.LoadWeights(engine=engine, version=version):
                manifest = self._published.of(version)
                if manifest is None and learner_ranks(self._config):
                    self._fail(f"the learner has published no version {version}", None)
                    return
                self._outbox.to(engine, LoadWeights(manifest=manifest))
            case events.Checkpoint(step=step, version=version):
                self._save(step, version)
            case events.AbandonCheckpoint(seconds=seconds):
                self._saver.give_up(seconds)
            case events.Restart(peer=name, why=why):
                self._peer_monitor.restart(name, why)
            case events.KeepRollouts():
                self._records.keep(command)
            case events.Report(what=what, fields=fields):
                self._report(what, fields)
            case events.Shutdown(error=error):
                self.error = error
                self._over.set()
            case events.Generate() | events.StreamTokens() | events.DropStream():
                raise AssertionError("gathered above")

    def _report(self, what: str, fields: dict[str, Any]) -> None:
        self._records.write(what, fields)
        if what in ("warning", "wait"):
            self._warn(fields["text"])
        elif what in ("step", "eval"):
            self._training_s += fields["seconds"] if what == "step" else 0.0
            self._tell_launcher({what: fields})

    # --- peers --------------------------------------------------------------------------

    def dead(self, name: str, why: str) -> None:
        """The launcher has seen the process end."""
        self._peer_monitor.dead(name, why)

    def _message(self, identity: bytes, message: FromPeer) -> None:
        now = time.monotonic()
        if isinstance(message, Join):
            if (joined := self._admission.enter(identity, message, now)) is not None:
                self.tell(joined)
            return
        peer = self._peers.by_identity.get(identity)
        if peer is None:
            return  # of a peer that was lost and has been asked to end
        peer.heard = now
        places, newest = self._published.places, self.coordinator.core.version
        if why := translate.role_violation(peer.join, message, places, newest):
            self._peer_monitor.refused("role", peer, why)
            return
        match message:
            case Heartbeat():
                self._peers.beat(peer, message, now)
                return
            case Spans(spans=spans, hints=hints):
                here = [translate.to_stage_clock(span, now, peer.clock.offset_s) for span in spans]
                ways = [translate.transit_s(*hint, now, peer.clock.offset_s) for hint in hints]
                self._records.record_work(peer.join.role, peer.name, peer.join.rank, here, ways)
                return
            case Saved(directory=directory, error=error):
                self._saver.rank_saved(Path(directory), peer.join.rank, error)
                return
            case Shutdown(why=why):
                self.halt(f"{peer.name} was asked to end: {why}")
                return
            case Published(manifest=manifest) | StepDone(manifest=Manifest() as manifest):
                self._published.remember(manifest)
            case OutOfMemory(tokens=tokens):  # told first: the run ends with the event
                self._tell_launcher({"micro_batch_tokens": tokens})
            case _:
                pass
        self.tell(translate.event_of(peer.name, peer.join.rank, message))

    def _save(self, step: int, version: int) -> None:
        about = {
            "records": self._records.sizes(),
            "incarnation": self.parts.incarnation,
            "training_seconds": self._training_s,
        }
        message = self._saver.begin_checkpoint(step, version, about)
        if message is not None:
            self._outbox.to_learners(message)

    # --- for people ---------------------------------------------------------------------

    def _farewell(self) -> None:
        """The result, and the end of every peer."""
        self._tell_launcher({"ending": self.error})
        if not self.error and not self.coordinator.unfinished:
            try:
                self._records.result(self.coordinator.outcome(self._training_s))
            except OSError as error:
                self._fail(f"all steps are done, but not the result: {error}", error)
        if imbalance := self.coordinator.core.ledger.imbalance:
            self._report("warning", {"text": f"the ledger is off by {imbalance} tokens: a bug"})
        self._feed.show(self._training_s)
        self._records.close_files()
        self._recorded.close()
        for peer in list(self._peers.by_identity.values()):
            self._outbox.send_best_effort(peer.identity, Shutdown(why=self.error))
        self._published.remove()
        for text in self._records.close():  # last: a tracker may take its time to send what is left
            self._tell_launcher({"say": text})
