"""Forward and backward passes of one rank, and the optimizer step over them.

Turns groups into accumulated gradient and sums of metrics, and accumulated
gradient into an applied step or none. Where passes communicate
(`Zero.in_rounds`) all ranks come here together and run equally many: who has
less to do fills up with passes of weight zero. Knows no message but `TrainGroup`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Generator, Iterable, Sequence

import msgspec
import torch

from learner.deepspeed.engine import Zero
from learner.forward.micro_batches import (
    Forward,
    MicroBatch,
    logprobs,
    loss_batch,
    micro_batches,
    pack_whole,
)
from learner.losses import Loss
from learner.step.importance_weights import importance
from learner.streaming.fixed_logprobs import ByTrajectory, laid_out, member_logprobs
from learner.streaming.logprob_stream import Stream
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import TrainGroup

log = logging.getLogger(__name__)
Metrics = dict[str, float]


class NotFinite(Exception):
    """A loss or a logprob is NaN or infinite."""

    def __init__(self, why: str, *, spoiled: bool = False) -> None:
        super().__init__(why)
        self.spoiled = spoiled
        """Whether the gradient holds a part of these groups all the same."""


class Passes:
    """What one rank runs through its model. `reference`: a frozen model, or None."""

    def __init__(
        self,
        zero: Zero,
        loss: Loss,
        section: LearnerConfig,
        *,
        temperature: float,
        reference: Forward | None = None,
        old_stream: Stream | None = None,
        reference_stream: Stream | None = None,
    ) -> None:
        self.zero = zero
        self._loss = loss
        self._section = section
        self._temperature = temperature
        self._model_reference = reference
        # With a reference model its KL is a figure of all members.
        self._some_silent = reference is None and getattr(loss, "silent_without_advantage", False)
        self._cap = section.tokens_per_micro_batch
        self._old: ByTrajectory = {}
        self._reference: ByTrajectory = {}
        self._old_stream, self._reference_stream = old_stream, reference_stream
        self.spans: list[tuple[float, float]] = []
        """Begin and end of every forward for old or reference logprobs, seconds."""

    # --- what stays fixed while weights move ------------------------------------------------

    def compute_reference(self, groups: Sequence[TrainGroup]) -> None:
        """Keep the reference model's logprobs of these groups; any rank alone."""
        if self._model_reference is None:
            return
        with self.timed():
            if self._reference_stream is not None:
                found = self._reference_stream.take(groups)
            else:
                batches = micro_batches(groups, self._cap, self.zero.device)
                found = member_logprobs(self._model_reference, batches, self._temperature)
        _check(found, "a logprob of the reference model")
        self._reference.update(found)

    def compute_old(self, groups: Sequence[TrainGroup]) -> None:
        """Keep the logprobs of these groups under the present weights."""
        groups = self._heard(groups)
        with self.timed():
            if self._old_stream is not None:
                found = self._old_stream.take(groups)
            else:
                found = self._old_of(micro_batches(groups, self._cap, self.zero.device))
        self._old.update(found)
        _check(found, "an old logprob")

    def _old_of(self, batches: Sequence[MicroBatch]) -> ByTrajectory:
        empty = self._empty_passes(len(batches))
        found = member_logprobs(self.zero.engine, batches, self._temperature)
        with torch.no_grad():
            for _ in range(empty):
                self._empty_pass()
        return found

    @contextlib.contextmanager
    def timed(self) -> Generator[None, None, None]:
        """The work inside is a forward for old or reference logprobs."""
        started = time.monotonic()
        yield
        self.spans.append((started, time.monotonic()))

    def forget_streams(self) -> None:
        """The weights are about to change, and with them what was computed ahead."""
        for stream in (self._old_stream, self._reference_stream):
            if stream is not None:
                stream.clear()

    def forget(self, groups: Iterable[TrainGroup]) -> None:
        """Drop what was kept for these groups."""
        for group in groups:
            for member in group.members:
                self._old.pop(member.trajectory, None)
                self._reference.pop(member.trajectory, None)

    # --- the gradient -----------------------------------------------------------------------

    def run(self, groups: Sequence[TrainGroup]) -> Metrics:
        """Forward and backward of these groups. Raises NotFinite.

        The metrics are sums over tokens; `computed` of them went through the loss.

        A loss that is not finite is found before the backward that would spoil
        the gradient; in rounds its backward runs all the same, as the others' do.
        """
        total: Metrics = {"computed": 0.0}
        zero, batches = self.zero, micro_batches(self._heard(groups), self._cap, self.zero.device)
        empty, bad = self._empty_passes(len(batches)), ""
        for index, batch in enumerate(batches):
            loss, metrics = self._forward(batch)
            if not bool(torch.isfinite(loss)):
                bad = f"the loss is {loss.item()}"
                if not zero.in_rounds:
                    raise NotFinite(bad, spoiled=index > 0)
            zero.backward(loss)
            merge(total, metrics)
        for _ in range(empty):
            zero.backward(self._empty_pass() * 0.0)
        if bad:
            raise NotFinite(bad, spoiled=True)
        return total

    def apply(
        self, groups: Sequence[TrainGroup], normaliser: float, version: int, *, built: bool
    ) -> tuple[Metrics, Metrics] | None:
        """One optimizer step over these groups, all ranks together; None: not applied.

        Args:
            groups: this rank's, maybe none.
            normaliser: N, over all ranks.
            version: of the weights before the batch; the warm-up goes by it.
            built: the gradient is there already, from `run`.

        A gradient that is not finite is built once more, in micro-batches of half
        the size; after the second time the weights stay untouched. Every rank goes
        the same way. Returns the sums of the groups' metrics (empty if built before),
        and `grad_norm` and `lr`.
        """
        sums: Metrics | None = {} if built else self._build(groups)
        for attempt in range(2):
            if sums is not None and not self.zero.has_gradient():
                self.zero.backward(self._empty_pass() * 0.0)  # ZeRO 1 fails without a backward
            if self.zero.finite(normaliser, fine_here=sums is not None):
                return sums or {}, self.zero.step(normaliser, version)
            if attempt == 0:
                log.warning("gradient not finite; building it again")
                self.restore_cap()
                self._halve()
                sums = self._build(groups)
        self.zero.zero_gradients()
        return None

    def build(self, groups: Sequence[TrainGroup]) -> bool:
        """The gradient of these groups from nothing; False if a loss is not finite now."""
        return self._build(groups) is not None

    def _build(self, groups: Sequence[TrainGroup]) -> Metrics | None:
        self.zero.zero_gradients()
        try:
            return self.run(groups) if groups or self.zero.in_rounds else {}
        except NotFinite as error:
            log.warning("a group that was finite before: %s", error)
            return None
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not self.out_of_memory(error):
                raise
        return self._build(groups)

    # --- memory -----------------------------------------------------------------------------

    def out_of_memory(self, error: RuntimeError) -> bool:
        """Whether it is that, and smaller micro-batches may help: then they are set.

        Not where passes communicate: the other ranks would wait for ever.
        """
        short = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        halved = self._cap < self._section.tokens_per_micro_batch
        if not short or halved or self.zero.in_rounds:
            return False
        self._halve()
        log.warning("out of memory: micro-batches of %d tokens for this step", self._cap)
        return True

    def restore_cap(self) -> None:
        """Micro-batches of the full size again."""
        self._cap = self._section.tokens_per_micro_batch

    def _halve(self) -> None:
        self._cap = max(1, self._cap // 2)

    # --- one pass ---------------------------------------------------------------------------

    def _heard(self, groups: Sequence[TrainGroup]) -> Sequence[TrainGroup]:
        """The groups without the members that cannot move the loss: late in a run, most of them.

        They count in the normaliser all the same, so the gradient is what it would be.
        """
        if not self._some_silent:
            return groups
        return [
            msgspec.structs.replace(
                group, members=tuple(member for member in group.members if member.advantage != 0)
            )
            for group in groups
        ]

    def _forward(self, batch: MicroBatch) -> tuple[torch.Tensor, Metrics]:
        section = self._section
        found = loss_batch(self.zero.engine, batch, self._temperature, entropy=section.entropy)
        mode, cap = section.importance, section.importance_cap
        old_BT, reference_BT = found.old_logprobs_BT, None
        if self._old:
            old_BT = laid_out(self._old, batch.trajectories, found.mask_BT, old_BT)
        if self._reference:
            reference_BT = laid_out(
                self._reference, batch.trajectories, found.mask_BT, found.logprobs_BT
            )
        # outside the mask the behaviour is a zero that means nothing
        behaviour_BT = found.behaviour_BT.where(found.mask_BT > 0, old_BT)
        importance_BT, cut_BT = importance(old_BT, behaviour_BT, mode=mode, cap=cap)
        full = dataclasses.replace(
            found,
            old_logprobs_BT=old_BT,
            importance_BT=importance_BT,
            reference_BT=reference_BT,
        )
        loss, metrics = self._loss.loss(full)
        count_BT = full.mask_BT * full.weights_B.unsqueeze(1)
        metrics["computed"] = count_BT.sum().item()
        if full.entropy_BT is not None:
            metrics["entropy"] = (full.entropy_BT * count_BT).sum().item()
        if mode != "off":
            metrics["importance"] = (importance_BT * count_BT).sum().item()
            metrics["importance_cut"] = (cut_BT * count_BT).sum().item()
        return loss, metrics

    def _empty_passes(self, own: int) -> int:
        """How many passes this rank must add to its own, so that all run equally many.

        In rounds a collective: asked before the first pass, since passes communicate too.
        """
        return max(1, self.zero.most(own)) - own if self.zero.in_rounds else 0

    def _empty_pass(self) -> torch.Tensor:
        """One token through the whole model: for taking part without work."""
        packed = pack_whole([([0], [[0]])], self.zero.device)
        return logprobs(self.zero.engine, packed, self._temperature).sum()


def merge(total: Metrics, more: Metrics) -> None:
    """Add sums to sums; a name that ends in `_max` is a maximum."""
    for name, value in more.items():
        if name.endswith("_max"):
            total[name] = max(value, total.get(name, value))
        else:
            total[name] = total.get(name, 0.0) + value


def _check(found: ByTrajectory, what: str) -> None:
    for trajectory, values_T in found.items():
        if not bool(torch.isfinite(values_T).all()):
            raise NotFinite(f"{what} of trajectory {trajectory} is not finite")
