"""Serves one engine to a stage: commands in, tokens out.

Turns commands of the stage into requests and their deltas into `TokenBatch`
frames. Every started leg ends in band exactly once; a chunk has one version;
nothing is sampled before the first weights are loaded. Knows nothing of
groups, rewards or processes (`engines.worker` is the process).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from engines.base import Delta, Engine, EngineError, EngineInfo, Sampling, log_line
from engines.chunker import Chunker, Frame, Key
from engines.epoch import Epoch
from engines.pace import FREE
from engines.stop_strings import generate_until_stop
from engines.text_search import FirstMarker, TextSearch
from engines.weights import Receiver, WeightReceiver, WeightsError, held_file
from engines.weights_probe import WeightsProof, load_spans
from pipeline.config.timeouts import TimeoutsConfig
from pipeline.wire.clock_sync import boot_id
from pipeline.wire.messages import (
    PROTOCOL,
    AbortLegs,
    FromPeer,
    Generate,
    Join,
    LegTimes,
    LoadWeights,
    Manifest,
    Refused,
    Request,
    Shutdown,
    TokenBatch,
    ToPeer,
    WeightsFailed,
    WeightsLoaded,
    Welcome,
    ints,
)

HEARTBEAT_S = 1.0
_SPARE_S = 10.0  # added to the stage's limits: the stage acts first, and names the work
_END_S = 2.0  # wait for the last chunks of aborted legs


class Sender(Protocol):
    """The part of `pipeline.wire.client.StageClient` that the worker uses."""

    def start(self) -> None: ...
    def send(self, message: FromPeer) -> None: ...
    def send_tokens(self, header: TokenBatch, tokens: bytes, logprobs: bytes) -> None: ...
    def set_activity(self, activity: str, budget_s: float) -> None: ...
    def close(self) -> None: ...


class Worker:
    """Serves one engine to one stage.

    Args:
        engine: started; `info` is what `start` returned.
        connect: makes the client from the join message and the function that receives.
        timeouts: how long sampling and loading may stand still.
        receiver: gets new weights; by default they are files on this machine.
        stops: texts that end a turn, beside the engine's stop tokens.
        markers: texts whose first one in a response is told of.
    """

    def __init__(
        self,
        engine: Engine,
        info: EngineInfo,
        connect: Callable[[Join, Callable[[ToPeer], None]], Sender],
        *,
        name: str,
        chunk_tokens: int,
        timeouts: TimeoutsConfig | None = None,
        receiver: Receiver | None = None,
        stops: TextSearch | None = None,
        markers: TextSearch | None = None,
    ) -> None:
        self._engine, self._name, self._chunk_tokens = engine, name, chunk_tokens
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[ToPeer] = asyncio.Queue()
        self._client = connect(
            Join(
                protocol=PROTOCOL,
                role="engine",
                name=name,
                slots=info.slots,
                latency=info.latency,
                vocabulary=info.vocabulary,
                max_model_tokens=info.max_model_tokens,
                clock_s=time.monotonic(),
                boot=boot_id(),
                about=info.about,
            ),
            self._receive,
        )
        self._timeouts = timeouts or TimeoutsConfig()
        self._receiver = receiver or WeightReceiver()
        self._stops, self._markers = stops, markers
        self._epoch: Epoch | None = None
        self._version: int | None = None
        self._wanted = -1  # version that the stage has asked for last
        self._proof = WeightsProof(engine, self.log)
        self._loading = 0  # loads under way or waiting
        self._load_order = asyncio.Lock()
        self._sent_at_s = -math.inf
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[int] = self._loop.create_future()

    async def run(self) -> int:
        """Serve until asked to stop; returns the exit status."""
        self._client.start()
        self._client.set_activity("idle", 0.0)
        self._spawn(self._serve())
        self._spawn(self._beat())
        status = await self._ended
        await self._close()
        return status

    def stop_serving(self, status: int, why: str) -> None:
        """Stop serving in good order, once."""
        if not self._ended.done():
            self.log(f"stopping: {why}")
            self._ended.set_result(status)

    def log(self, line: str) -> None:
        log_line(f"{self._name}: {line}")

    def _receive(self, message: ToPeer) -> None:
        """Called in the client's thread: hand the message to the event loop."""
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, message)
        except RuntimeError:  # the loop has ended, and the worker with it
            pass

    async def _serve(self) -> None:
        while True:
            message = await self._inbox.get()
            match message:
                case Welcome():
                    await self._welcome(message)
                case Generate():
                    for request in message.requests:
                        self._begin(request)
                case AbortLegs():
                    await self._abort(message.legs)
                case LoadWeights(manifest=None):
                    self._keep_own()
                case LoadWeights(manifest=Manifest() as manifest):
                    self._loading += 1
                    self._wanted = manifest.version
                    self._spawn(self._load(manifest, time.monotonic()))
                case Refused():
                    self.stop_serving(1, f"refused by the stage: {message.why}")
                case Shutdown():
                    # A reason means a fault: the launcher starts another process.
                    self.stop_serving(1 if message.why else 0, message.why or "asked by the stage")
                case _:
                    self.log(f"{type(message).__name__} is not a message for an engine; ignored")

    # --- legs ------------------------------------------------------------------------------

    async def _welcome(self, message: Welcome) -> None:
        old, self._epoch = (
            self._epoch,
            Epoch(message.incarnation, message.epoch, Chunker(self._chunk_tokens)),
        )
        if old is not None:
            old.current = False
            await self._engine.abort(list(old.legs.values()))
        self._declare()

    def _begin(self, request: Request) -> None:
        epoch, key = self._epoch, (request.trajectory, request.leg)
        if epoch is None or key in epoch.legs:
            self.log(
                f"leg {key} was requested {'twice' if epoch else 'before the welcome'}; ignored"
            )
            return
        free = "" if request.paced else FREE
        epoch.legs[key] = f"{free}{epoch.number}.{request.trajectory}.{request.leg}"
        epoch.flusher.begin_leg(key, len(ints(request.prefix)))
        epoch.times[key] = (time.monotonic(), 0.0)
        task = self._spawn(self._sample(epoch, key, request))
        epoch.tasks.add(task)
        task.add_done_callback(epoch.tasks.discard)
        self._declare()

    async def _sample(self, epoch: Epoch, key: Key, request: Request) -> None:
        finish = ""
        try:
            if self._version is None:
                raise ValueError("no weights have been loaded yet")
            if key in epoch.aborted:
                self._add(epoch, key, Delta((), (), finish := "abort"))
                return
            sampling = Sampling(
                id=epoch.legs[key],
                tokens=[*ints(request.prompt).tolist(), *ints(request.prefix).tolist()],
                max_tokens=request.max_tokens,
                drawing=request.drawing,
                seed=request.seed,
            )
            if self._markers is not None:
                held = len(ints(request.prefix))
                epoch.markers[key] = FirstMarker(self._markers, sampling.tokens, held)
            deltas = (
                generate_until_stop(self._stops, self._engine, sampling)
                if self._stops is not None
                else self._engine.generate(sampling)
            )
            async for delta in deltas:
                self._add(epoch, key, delta)
                if finish := delta.finish:
                    return
                # An abort may come before the engine knows the request.
                if not epoch.current or key in epoch.aborted:
                    await self._engine.abort([sampling.id])
            raise RuntimeError("the engine ended the request without a finish")
        except EngineError as error:
            self.stop_serving(1, str(error))
        except Exception as error:  # whatever an engine raises for one request
            self.log(f"leg {key}: {type(error).__name__}: {error}")
            if not finish:
                self._add(epoch, key, Delta((), (), "error"))
        finally:
            epoch.legs.pop(key, None)
            epoch.markers.pop(key, None)
            epoch.aborted.discard(key)
            self._declare()

    def _add(self, epoch: Epoch, key: Key, delta: Delta) -> None:
        tokens, finish = delta.tokens, delta.finish
        search = epoch.markers.get(key)
        epoch.flusher.add_tokens(
            key,
            tokens,
            delta.logprobs,
            (self._version or 0) if delta.version is None else delta.version,
            finish,
            delta.score,
            delta.remaining,
            search.look(tokens) if search is not None else None,
        )
        begun_s, first_s = epoch.times[key]
        if tokens and not first_s:
            first_s = time.monotonic()
            epoch.times[key] = (begun_s, first_s)
        if finish:
            del epoch.times[key]
            epoch.ended[key] = LegTimes(*key, begun_s, first_s, time.monotonic())
        if not epoch.flush_planned:
            # At the end of this turn of the loop: one frame for all that it brings.
            epoch.flush_planned = True
            self._loop.call_soon(self._flush, epoch)

    async def _abort(self, legs: tuple[tuple[int, int], ...]) -> None:
        epoch = self._epoch
        known = [key for key in legs if epoch is not None and key in epoch.legs]
        if epoch is not None and known:
            epoch.aborted.update(known)
            await self._engine.abort([epoch.legs[key] for key in known])

    # --- out -------------------------------------------------------------------------------

    def _flush(self, epoch: Epoch, *, empty: bool = False) -> None:
        epoch.flush_planned = False
        frame = epoch.flusher.take_frame() if epoch.current else None
        if frame is not None or not empty:  # a heartbeat shows life, not progress
            self._declare()
        if not epoch.current or (frame is None and not empty):
            return
        self._send(epoch, frame)
        while (frame := epoch.flusher.take_frame()) is not None:
            self._send(epoch, frame)

    def _send(self, epoch: Epoch, frame: Frame | None) -> None:
        chunks = frame.chunks if frame else ()
        ends = ((chunk.trajectory, chunk.leg) for chunk in chunks if chunk.finish)
        header = TokenBatch(
            engine=self._name,
            incarnation=epoch.incarnation,
            epoch=epoch.number,
            sequence=epoch.sequence,
            sampled=epoch.flusher.sent_tokens,
            sent_at_s=time.monotonic(),
            chunks=chunks,
            times=tuple(epoch.ended.pop(key) for key in ends),
        )
        self._client.send_tokens(
            header, frame.tokens if frame else b"", frame.logprobs if frame else b""
        )
        epoch.sequence += 1
        self._sent_at_s = header.sent_at_s

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if why := self._engine.failure():
                self.stop_serving(1, why)
            if self._epoch is not None and time.monotonic() - self._sent_at_s >= HEARTBEAT_S:
                self._flush(self._epoch, empty=True)

    def _declare(self) -> None:
        if self._loading:
            self._client.set_activity("loading weights", self._timeouts.load_s + _SPARE_S)
        elif self._epoch is not None and self._epoch.legs:
            self._client.set_activity("sampling", self._timeouts.sampling_s + _SPARE_S)
        else:
            self._client.set_activity("idle", 0.0)

    # --- weights ---------------------------------------------------------------------------

    async def _load(self, manifest: Manifest, asked_s: float) -> None:
        epoch = self._epoch
        try:
            async with self._load_order:
                if manifest.version != self._wanted:
                    return  # a newer one is asked for: nobody waits for this one
                self._declare()
                moments = [time.monotonic()]
                directory = await asyncio.to_thread(self._receiver.receive, manifest)
                moments.append(time.monotonic())
                with held_file(directory) as held:
                    self._cut()
                    await self._engine.load_weights(str(held), manifest.version)
                    self._version = manifest.version
                    moments.append(time.monotonic())
                    loaded = await self._proof.prove(manifest, str(held))
                paced = await self._engine.take_paced()
                moments.append(time.monotonic())
            if epoch is self._epoch:
                self._client.send(load_spans(manifest.version, asked_s, moments))
                self._client.send(msgspec.structs.replace(loaded, paced=paced))
        except Exception as error:  # the stage decides what a failed load means
            self.log(f"could not load version {manifest.version}: {error}")
            self._client.send(WeightsFailed(version=manifest.version, why=str(error)))
            if not isinstance(error, WeightsError):
                self.stop_serving(1, f"version {manifest.version} may be half loaded")
        finally:
            self._loading -= 1
            self._declare()

    def _keep_own(self) -> None:
        """Serve what the engine began with as version 0: nobody publishes weights."""
        if self._version:
            why = f"weights of version {self._version} have been loaded over the model's own"
            self._client.send(WeightsFailed(version=0, why=why))
            return
        self._version = 0
        self._client.send(WeightsLoaded(version=0, gaps={}, proved=True))

    def _cut(self) -> None:
        """Send all tokens of the present weights before new ones are loaded."""
        if self._epoch is not None:
            self._epoch.flusher.make_all_due()
            self._flush(self._epoch)

    # --- the end ---------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stop_serving(1, f"{type(error).__name__}: {error}")

    async def _close(self) -> None:
        """Abort everything, send the last chunks, close the engine."""
        epoch = self._epoch
        if epoch is not None and epoch.tasks and not self._engine.failure():
            await self._abort(tuple(epoch.legs))
            await asyncio.wait(epoch.tasks, timeout=_END_S)
            self._flush(epoch)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()
        await self._engine.close()
