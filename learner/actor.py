"""A learner rank: one queue in, one schedule, one gradient.

    python -m learner.actor --directory SOCKETS --config RUN/config.yaml --rank R --world W

The link's thread fills the queue; the main thread does what `Schedule` says and
answers. MASTER_ADDR and MASTER_PORT are the launcher's. All ranks are one
failure unit: whatever is not expected ends this process at once, with a
traceback, and the launcher starts the learner again from its checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.messages import (
    PROTOCOL,
    CloseStep,
    ForgetGroup,
    Join,
    Published,
    Refused,
    Save,
    Saved,
    Shutdown,
    StepDone,
    StepSkipped,
    ToPeer,
    Welcome,
)
from pipeline.transport import Link

if TYPE_CHECKING:
    from learner.accumulate import StepGradient
    from learner.weights import WeightPublisher
    from learner.zero import Zero

log = logging.getLogger("learner")

STEP_LIMIT_S = 300.0
"""How long one piece of work may take before the stage calls this rank stuck."""
LEAVE_S = 5.0
"""From being asked to leave to leaving without being ready (stuck in a collective)."""


class Actor:
    """Carries out the schedule's work for one rank."""

    def __init__(
        self,
        config: Config,
        zero: Zero,
        gradient: StepGradient,
        *,
        directory: Path,
        version: int,
        resumed_step: int,
    ) -> None:
        from learner.schedule import Schedule
        from learner.weights import probe_tokens

        self._config = config
        self._zero = zero
        self._gradient = gradient
        self._version = version
        self._inbox: queue.SimpleQueue[ToPeer] = queue.SimpleQueue()
        self._schedule = Schedule(config.learner.tokens_per_micro_batch)
        self._publisher: WeightPublisher | None = None
        vocabulary, special = vocabulary_of(zero.module)
        self._probe = probe_tokens(vocabulary, special)
        join = Join(
            protocol=PROTOCOL,
            role="learner",
            name=f"l{zero.rank}",
            rank=zero.rank,
            world=zero.world,
            vocabulary=vocabulary,
            resumed_step=resumed_step,
            clock_s=time.monotonic(),
            about=about(zero),
        )
        self._link = Link(directory, join, self.receive)

    def receive(self, message: ToPeer) -> None:
        """Any thread: queue a message of the stage."""
        if isinstance(message, Shutdown):
            # The main thread may be inside a collective that a lost rank never enters.
            timer = threading.Timer(LEAVE_S, os._exit, [0])
            timer.daemon = True
            timer.start()
        self._inbox.put(message)

    def run(self) -> int:
        """Serve until told to leave; returns the exit code."""
        self._link.start()
        try:
            while True:
                while not self._inbox.empty():
                    self._schedule.put(self._inbox.get())
                work = self._schedule.next()
                if work is None:
                    self._link.working("idle", 0)
                    self._schedule.put(self._inbox.get())
                elif isinstance(work, Shutdown):
                    log.info("leaving: %s", work.why or "asked to")
                    return 0
                elif isinstance(work, Refused):
                    log.error("refused by the stage: %s", work.why)
                    return 2
                else:
                    self._do(work)
        finally:
            self._link.close()

    def _do(self, work: Any) -> None:
        from learner.schedule import Train

        match work:
            case Train(groups=groups):
                self._link.working("backward", STEP_LIMIT_S)
                for report in self._gradient.add(groups):
                    self._link.send(report)
                if self._gradient.empty:  # all failed: the stage may go on to another step
                    self._schedule.done()
            case ForgetGroup(group=group):
                if self._gradient.forget(group):
                    self._gradient.clear()
                    self._schedule.done()
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

        self._gradient.clear()
        if self._zero.rank != 0:
            return
        self._link.working("publishing weights", STEP_LIMIT_S)
        self._publisher = WeightPublisher(Path(welcome.weights_directory), self._probe)
        manifest = self._publisher.publish(self._zero.module, self._version)
        self._link.send(Published(manifest=manifest))

    def _close(self, close: CloseStep) -> None:
        self._link.working("optimizer step", STEP_LIMIT_S)
        started = time.monotonic()
        metrics = self._gradient.close(close, self._version)
        self._schedule.done()
        if metrics is None:
            why = "gradient not finite twice"
            log.warning("step %d skipped: %s", close.step, why)
            self._link.send(StepSkipped(step=close.step, why=why))
            return
        self._version += 1
        metrics["optimizer_s"] = time.monotonic() - started
        manifest = None
        if self._publisher is not None:
            self._link.working("publishing weights", STEP_LIMIT_S)
            started = time.monotonic()
            manifest = self._publisher.publish(self._zero.module, self._version)
            metrics["publish_s"] = time.monotonic() - started
        self._link.send(
            StepDone(step=close.step, version=self._version, manifest=manifest, metrics=metrics)
        )

    def _save(self, order: Save) -> None:
        from learner import saving

        self._link.working("writing a checkpoint", STEP_LIMIT_S)
        error = ""
        if order.version != self._version:
            error = f"asked for version {order.version}, but holds {self._version}"
        else:
            try:
                directory = Path(order.directory)
                saving.save(
                    self._zero, Path(self._config.model), directory, order.step, order.version
                )
            except Exception as failure:  # a full disk ends no run: the checkpoint is discarded
                error = f"{type(failure).__name__}: {failure}"
        if error:
            log.error("checkpoint %s: %s", order.directory, error)
        self._link.send(Saved(directory=order.directory, error=error))


def vocabulary_of(model: Any) -> tuple[int, set[int]]:
    """Rows of the embedding, and the ids of EOS and padding."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    special: set[int] = set()
    for settings in (model.config, model.generation_config):
        for value in (settings.eos_token_id, settings.pad_token_id):
            if value is not None:
                special.update(value if isinstance(value, list) else [value])
    return rows, special


def about(zero: Zero) -> dict[str, str]:
    import deepspeed
    import torch
    import transformers

    return {
        "device": str(zero.device),
        "torch": str(torch.__version__),
        "deepspeed": deepspeed.__version__,
        "transformers": transformers.__version__,
        "threads": str(torch.get_num_threads()),
    }


def build(config: Config, directory: Path, resume: Path | None, local_rank: int) -> Actor:
    """Load the model, form the process group, restore: everything before the first message."""
    import msgspec
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as chatter

    from learner import saving, zero
    from learner.accumulate import StepGradient
    from pipeline import plugins

    if config.learner.threads:
        torch.set_num_threads(config.learner.threads)
    torch.manual_seed(config.seed)
    device = zero.device_of(local_rank)
    source = Path(config.model) if resume is None else resume / saving.MODEL
    log.info("loading %s", source)
    chatter.disable_progress_bar()
    # float32 everywhere: bfloat16 is ten times slower on a CPU, and drifts from the engine.
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.to(device)
    zero.join_ranks()
    trainer = zero.Zero(model, config.learner)
    restored = saving.Restored(-1, 0) if resume is None else saving.load(trainer, resume)
    cls = plugins.find("loss", config.loss.name)
    options = msgspec.convert(config.loss.options, plugins.options_type(cls))
    gradient = StepGradient(
        trainer,
        cls(options),
        temperature=config.sampling.temperature,
        token_cap=config.learner.tokens_per_micro_batch,
        importance_cap=config.learner.importance_cap,
    )
    return Actor(
        config,
        trainer,
        gradient,
        directory=directory,
        version=restored.version,
        resumed_step=restored.step,
    )


def keep_off_the_engines_core(config: Config) -> None:
    """On one machine without a GPU the engine has core 0 to itself."""
    cores = os.sched_getaffinity(0)
    if config.engine.cpu_cores == "auto" and len(cores) >= 2 and 0 in cores:
        os.sched_setaffinity(0, cores - {0})


def die_loudly() -> None:
    """An exception anywhere ends the process: at exit, communication may drain for ever."""

    def report(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        traceback.print_exception(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    sys.excepthook = report
    threading.excepthook = lambda args: report(args.exc_type, args.exc_value, args.exc_traceback)


def main() -> None:
    parser = argparse.ArgumentParser(prog="learner.actor", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="the stage's sockets")
    parser.add_argument("--config", type=Path, required=True, help="the run's config.yaml")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="a checkpoint directory")
    given = parser.parse_args()

    die_loudly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to carry out
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s l{given.rank} %(levelname)s %(message)s",
    )
    threading.Thread(
        target=leave_at_sigterm, args=(sigterm_pipe(),), name="sigterm", daemon=True
    ).start()
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(given.rank), str(given.world)
    os.environ.setdefault("LOCAL_RANK", str(given.rank))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is a directory
    from pipeline.configfile import load

    config = load(given.config)
    import torch

    if not torch.cuda.is_available():
        keep_off_the_engines_core(config)
    actor = build(config, given.directory, given.resume, int(os.environ["LOCAL_RANK"]))
    running.append(actor)
    code = actor.run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: waiting for other ranks at exit may last for ever


running: list[Actor] = []
"""The actor once it is built: before that SIGTERM has nothing to finish."""


def sigterm_pipe() -> int:
    """A descriptor that has something to read when SIGTERM has come.

    A Python handler waits for the main thread, which may be inside a collective;
    what is written here arrives at once, in whichever thread the signal lands.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    return reader


def leave_at_sigterm(reader: int) -> None:
    """A thread of its own: wait for SIGTERM, then have the actor leave."""
    while os.read(reader, 1)[0] != signal.SIGTERM:
        pass
    if running:
        running[0].receive(Shutdown(why="SIGTERM"))
    else:
        os._exit(0)


if __name__ == "__main__":
    main()
