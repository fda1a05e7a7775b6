"""The process of one learner rank: trains on groups, steps, publishes weights, saves.

    python -m learner.learner_rank --stage SOCKETS --config RUN/config.yaml --rank R --world W

The client's thread fills a queue; the main thread does the work that `Schedule` returns
and answers. The launcher sets MASTER_ADDR and MASTER_PORT. All ranks fail together: an
unexpected error ends this process at once, with a traceback, and so the run, which goes on
from its checkpoint: resumed by hand or by torchrun, or at once if memory ran out where all
ranks run together and smaller micro-batches may fit.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from learner.asked_to_end import SigtermWatch
from learner.failures import exit_on_any_exception, shortages_reported
from learner.process_setup import leave_engine_cores, parse_arguments
from learner.work_log import WorkLog, hidden_seconds
from pipeline.config.pace import least_seconds
from pipeline.config.schema import Config
from pipeline.system.listeners import shut_all
from pipeline.system.progress import announce
from pipeline.system.python_path import user_folder_last
from pipeline.system.sleep import sleep_until
from pipeline.wire.client import StageClient
from pipeline.wire.clock_sync import boot_id
from pipeline.wire.messages import (
    CLOSE,
    CLOSE_WITH_PASSES,
    FORWARD_BACKWARD,
    OLD_LOGPROBS,
    PROTOCOL,
    PUBLISH,
    SAVE,
    CloseStep,
    CloseVersion,
    ForgetGroup,
    Join,
    Manifest,
    Piece,
    Published,
    Refused,
    Save,
    Saved,
    Shutdown,
    StepDone,
    StepSkipped,
    StreamedTokens,
    ToPeer,
    TrainGroup,
    VersionClosed,
    Welcome,
)

if TYPE_CHECKING:
    import torch

    from learner.build import LearnerParts
    from learner.weights import WeightPublisher

log = logging.getLogger("learner")

STEP_LIMIT_S = 300.0
"""Seconds that one piece of work may take before the stage treats this rank as stuck."""
GATHER_S = 0.05
"""Seconds that a few streamed tokens wait for more."""
LEAST_TOKENS = 256
"""Streamed tokens that make a forward call worth its fixed cost."""
LEAVE_S = 5.0
"""Seconds from a shutdown message to a forced exit (for a rank stuck in a collective)."""


class LearnerRank:
    """Does the schedule's work for one rank."""

    def __init__(self, config: Config, parts: LearnerParts, stage: Path) -> None:
        from learner.build import versions_and_device
        from learner.schedule import Schedule
        from learner.step.close_version import VersionCloser
        from learner.weights import probe_tokens

        self._config = config
        self._zero = zero = parts.zero
        self._step = parts.step
        self._carrier = parts.checkpoint_transfer
        self._version = parts.restored.version
        self._inbox: queue.SimpleQueue[ToPeer] = queue.SimpleQueue()
        # Groups that wait together are one pass: which do, is a matter of time.
        together = 0 if config.debug.ordered else config.learner.tokens_per_micro_batch
        self._schedule = Schedule(together)
        self._passes, self._ahead, self._pace = parts.passes, parts.logprob_stream, parts.pace
        self._answers, self._closer = parts.answers, VersionCloser(parts.passes, self._ahead.own)
        self._backward_s = 0.0  # of the open step, forward included
        self._ahead_s = 0.0  # of the open step, forwards of streamed tokens
        self._last_group = 0.0  # when the step's newest group arrived
        self._work_log = WorkLog()
        # With several updates the passes of training wait for the close.
        self._several = config.learner.updates * config.learner.epochs > 1
        self._publisher: WeightPublisher | None = None
        self._probe = probe_tokens(parts.vocabulary, parts.special)
        join = Join(
            protocol=PROTOCOL,
            role="learner",
            name=f"l{zero.rank}",
            rank=zero.rank,
            world=zero.world,
            vocabulary=parts.vocabulary,
            resumed_step=parts.restored.step,
            clock_s=time.monotonic(),
            boot=boot_id(),
            about=versions_and_device(zero.device),
        )
        self._client = StageClient(stage, join, self.queue_message)

    def queue_message(self, message: ToPeer) -> None:
        """Queue a message of the stage; any thread."""
        if isinstance(message, Shutdown):
            # The main thread may be in a collective that a lost rank never enters.
            timer = threading.Timer(LEAVE_S, os._exit, [0])
            timer.daemon = True
            timer.start()
        elif isinstance(message, TrainGroup):
            self._last_group = time.monotonic()
        self._work_log.record_arrival(message)
        self._inbox.put(message)

    def heed(self, sigterm: SigtermWatch) -> None:
        """Stay for the last checkpoint at SIGTERM."""
        sigterm.serve(self._client, self.queue_message, self._config.timeouts.checkpoint_s)

    def run(self) -> int:
        """Serve until asked to stop; returns the exit code."""
        self._client.start()
        try:
            while True:
                self._take_all_in()
                work = self._schedule.next()
                if work is None:
                    self._stream_or_wait()
                elif isinstance(work, Shutdown):
                    log.info("stopping: %s", work.why or "asked by the stage")
                    return 0
                elif isinstance(work, Refused):
                    log.error("refused by the stage: %s", work.why)
                    return 2
                else:
                    with shortages_reported(self._client, self._inbox):
                        self._do(work)
        finally:
            self._client.close()

    def _take_all_in(self) -> None:
        while not self._inbox.empty():
            self._take_in(self._inbox.get())

    def _take_in(self, message: ToPeer) -> None:
        if isinstance(message, StreamedTokens):
            self._ahead.add_streamed(message)
        else:
            self._schedule.put(message)

    def _stream_or_wait(self) -> None:
        """Compute streamed tokens ahead, in calls worth their cost, or wait for a message."""
        pending = self._ahead.pending_tokens
        if pending < LEAST_TOKENS:
            self._client.set_activity("idle", 0)
            try:
                self._take_in(self._inbox.get(timeout=GATHER_S if pending else None))
                return
            except queue.Empty:
                pass  # few tokens, but no others arrive
        self._client.set_activity("logprobs", STEP_LIMIT_S)
        started = time.monotonic()
        with self._passes.time_logprobs():
            scored = self._ahead.run_calls()
        self._ahead_s += time.monotonic() - started
        self._work_log.record_work("logprobs ahead", started)
        if self._answers:
            from learner.step.close_version import pieces_of

            self._send_old(pieces_of(scored))

    def _send_old(self, pieces: tuple[Piece, ...]) -> None:
        from learner.step.close_version import messages_of

        for message in messages_of(self._version, pieces):
            self._client.send(message)

    def _close_version(self, order: CloseVersion) -> None:
        """Answer with logprobs under the present weights, as long as nothing else waits."""

        def other_work_waits() -> bool:
            self._take_all_in()
            return self._schedule.must_go_on

        self._client.set_activity("closing the version", STEP_LIMIT_S)
        started = time.monotonic()
        if order.version != self._version:
            raise ValueError(f"version {order.version} closes, but {self._version} is here")
        with self._passes.time_logprobs():
            for pieces in self._closer.close(order, other_work_waits):
                self._send_old(pieces)
        self._work_log.record_work("closing the version", started)
        self._client.send(VersionClosed(version=order.version))

    def _do(self, work: Any) -> None:
        from learner.schedule import Train

        match work:
            case Train(groups=groups):
                self._client.set_activity("backward", STEP_LIMIT_S)
                started = time.monotonic()
                reports = self._step.add_groups(groups)
                self._backward_s += time.monotonic() - started
                what = OLD_LOGPROBS if self._several else FORWARD_BACKWARD
                self._work_log.record_work(what, started, groups)
                self._client.send(self._work_log.take_spans())
                for report in reports:
                    self._client.send(report)
                if self._step.is_empty:  # all failed: the stage may begin another step
                    self._schedule.step_done()
            case ForgetGroup(group=group):
                if self._step.forget_group(group):
                    self._step.clear_groups()
                    self._schedule.step_done()
            case CloseVersion():
                self._close_version(work)
            case CloseStep():
                self._close(work)
            case Save():
                self._save(work)
            case Welcome():
                self._begin(work)
            case _:
                raise TypeError(f"no handler for {type(work).__name__}")

    def _begin(self, welcome: Welcome) -> None:
        from learner.weights import WeightPublisher

        self._step.clear_groups()
        if self._zero.rank == 0:
            directory, spare = Path(welcome.weights_directory), welcome.spare_directory
            self._publisher = WeightPublisher(
                directory, self._probe, self._engine_dtype(), Path(spare) if spare else None
            )
        manifest = self._publish()
        if manifest is not None:
            self._client.send(Published(manifest=manifest))

    def _publish(self) -> Manifest | None:
        """Write the weights (rank 0); with collective passes the other ranks take part."""
        from learner.rounded_weights import is_rounded
        from learner.weights import probe_logprobs

        zero, dtype = self._zero, self._engine_dtype()
        rounded_after = is_rounded(zero.module, dtype) and (zero.collective_passes or not dtype)
        if self._publisher is None and not zero.collective_passes:
            return None
        self._client.set_activity("publishing weights", STEP_LIMIT_S)
        # At ZeRO 3 a module's weights are not at hand to be rounded.
        logprobs = probe_logprobs(
            zero.module, self._probe, None if zero.collective_passes else dtype
        )
        with zero.gathered_weights():
            if self._publisher is None:
                return None
            begun_s = time.monotonic()
            manifest = self._publisher.publish_version(
                zero.module, self._version, logprobs, rounded_after=rounded_after
            )
        sleep_until(begun_s + least_seconds(self._config.weights, manifest.bytes))
        return manifest

    def _engine_dtype(self) -> torch.dtype | None:
        """Return the type of the engines' weights; None: each engine chooses."""
        import torch

        dtype = self._config.engine.dtype
        return None if dtype == "auto" else getattr(torch, dtype)

    def _close(self, close: CloseStep) -> None:
        self._client.set_activity("optimizer step", STEP_LIMIT_S)
        started = time.monotonic()
        metrics = self._step.close(close, self._version)
        self._work_log.record_work(CLOSE_WITH_PASSES if self._several else CLOSE, started, [close])
        self._schedule.step_done()
        backward_s, self._backward_s = self._backward_s, 0.0
        if metrics is None:
            why = "gradient not finite twice"
            log.warning("step %d skipped: %s", close.step, why)
            self._client.send(self._work_log.take_spans())
            self._client.send(StepSkipped(step=close.step, why=why))
            return
        self._version += 1
        metrics |= {"backward_s": backward_s, "optimizer_s": time.monotonic() - started}
        metrics |= self._logprob_times() | self._pace.take_late()
        started = time.monotonic()
        manifest = self._publish()
        if manifest is not None:
            metrics["publish_s"] = time.monotonic() - started
            self._work_log.record_work(PUBLISH, started)
        self._client.send(self._work_log.take_spans())
        self._client.send(
            StepDone(step=close.step, version=self._version, manifest=manifest, metrics=metrics)
        )

    def _logprob_times(self) -> dict[str, float]:
        """Return the seconds of forwards for logprobs only, and how many of them ran while
        groups were still to come."""
        spans, ahead_s = self._passes.spans, self._ahead_s
        self._passes.spans, self._ahead_s = [], 0.0
        hidden_s = hidden_seconds(spans, self._last_group)
        total_s = sum(end - begin for begin, end in spans)
        if not spans:
            return {}
        return {"logprob_s": total_s, "logprob_hidden_s": hidden_s, "ahead_s": ahead_s}

    def _save(self, order: Save) -> None:
        from learner.checkpoint import save

        self._client.set_activity(SAVE, STEP_LIMIT_S)
        started = time.monotonic()
        error = ""
        if order.version != self._version:
            error = f"version {order.version} was requested, but this rank holds {self._version}"
        else:
            try:
                with self._carrier.directory_to_write(Path(order.directory)) as directory:
                    save.save_checkpoint(
                        self._zero,
                        Path(self._config.model),
                        directory,
                        order.step,
                        order.version,
                        loss=self._passes.loss_pass.state.saved(),
                        average=self._passes.average,
                    )
            except Exception as failure:  # a full disk, say: the run continues
                error = f"{type(failure).__name__}: {failure}"
        if error:
            log.error("checkpoint %s: %s", order.directory, error)
        self._work_log.record_work(SAVE, started)
        self._client.send(Saved(directory=order.directory, error=error))


def main() -> None:
    given = parse_arguments(__doc__)

    exit_on_any_exception()
    user_folder_last()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher answers Ctrl-C
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s l{given.rank} %(levelname)s %(message)s",
    )
    sigterm = SigtermWatch()
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(given.rank), str(given.world)
    os.environ.setdefault("LOCAL_RANK", str(given.rank))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a directory
    from pipeline.config.load import load

    config = load(given.config)
    if 0 < (most := given.micro_batch_tokens) < config.learner.tokens_per_micro_batch:
        config = replace(config, learner=replace(config.learner, tokens_per_micro_batch=most))
        log.warning("micro-batches of %d tokens: memory ran out before", most)
    announce("importing torch and DeepSpeed")
    import torch

    if not torch.cuda.is_available():
        leave_engine_cores(config)
    from learner.build import build_learner

    parts = build_learner(config, given.resume, int(os.environ["LOCAL_RANK"]), given.no_shared_fs)
    if torch.distributed.get_backend() == "gloo":  # NCCL connects later, too
        shut_all()
    learner = LearnerRank(config, parts, given.stage)
    learner.heed(sigterm)
    announce("")
    code = learner.run()
    with contextlib.suppress(OSError):  # a full disk loses the log's last lines, nothing else
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # not sys.exit: it may wait for other ranks for ever


if __name__ == "__main__":
    main()
