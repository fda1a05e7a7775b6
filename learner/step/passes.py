"""Runs forward and backward passes of one rank, and the optimizer step over them.

Turns groups into accumulated gradient and sums of metrics, and accumulated
gradient into an applied step or none. Where passes communicate
(`Zero.collective_passes`) all ranks run together and equally often: a rank with
fewer passes adds some of weight zero. Knows no message but `TrainGroup`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import msgspec
import torch

from learner.deepspeed.engine import Zero
from learner.forward.memory import MemoryShortage, MicroBatchLimit, ran_out_of_memory
from learner.forward.micro_batches import (
    Forward,
    MicroBatch,
    micro_batches,
    pack_whole,
    response_logprobs,
)
from learner.losses import Loss
from learner.moving_average import MovingAverage
from learner.pace import PassPace
from learner.step.loss_pass import LossPass, Metrics, reported
from learner.streaming.fixed_logprobs import ByTrajectory, member_logprobs
from learner.streaming.logprob_stream import ModelStream
from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import TrainGroup

log = logging.getLogger(__name__)


class NotFinite(Exception):
    """A loss or a logprob is NaN or infinite."""

    def __init__(self, why: str, *, spoiled: bool = False) -> None:
        super().__init__(why)
        self.spoiled = spoiled
        """The gradient already holds a part of these groups."""


class Passes:
    """The passes of one rank. `reference`: a frozen model, or None; `average`: the same model, if
    it follows the weights."""

    def __init__(
        self,
        zero: Zero,
        loss: Loss,
        section: LearnerConfig,
        *,
        temperature: float,
        max_tokens: int = 0,
        reference: Forward | None = None,
        average: MovingAverage | None = None,
        old_stream: ModelStream | None = None,
        reference_stream: ModelStream | None = None,
        pace: PassPace | None = None,
    ) -> None:
        self.zero = zero
        self._temperature = temperature
        self._model_reference = reference
        self.average = average
        self.loss_pass = LossPass(
            loss,
            section,
            temperature=temperature,
            max_tokens=max_tokens,
            reference=reference is not None,
        )
        self._sums: Metrics = {}  # of the loss over what is in the gradient
        self.limit = MicroBatchLimit(
            section.tokens_per_micro_batch, whole_groups=self.loss_pass.whole_groups
        )
        self._old: ByTrajectory = {}
        self._reference: ByTrajectory = {}
        self._old_stream, self._reference_stream = old_stream, reference_stream
        self._pace = pace or PassPace(None)
        self.spans: list[tuple[float, float]] = []
        """(begin, end) of every forward for old or reference logprobs, seconds."""

    # --- what stays fixed while weights move ------------------------------------------------

    def compute_reference(self, groups: Sequence[TrainGroup]) -> None:
        """Compute and keep the reference model's logprobs of these groups; not a collective."""
        if self._model_reference is None:
            return
        with self.time_logprobs():
            found = self._streamed(self._reference_stream, groups)
            if found is None:
                found = self._logprobs(self._model_reference, self._micro_batches(groups))
        _check(found, "a logprob of the reference model")
        self._reference.update(found)

    def compute_old(self, groups: Sequence[TrainGroup]) -> None:
        """Compute and keep the logprobs of these groups under the present weights."""
        groups = self._audible(groups)
        with self.time_logprobs():
            found = self._streamed(self._old_stream, groups)
            if found is None:
                found = self._old_of(self._micro_batches(groups))
        self._old.update(found)
        _check(found, "an old logprob")

    def _streamed(
        self, stream: ModelStream | None, groups: Sequence[TrainGroup]
    ) -> ByTrajectory | None:
        """Take these groups' logprobs out of a stream. None: there is none, or no memory for it."""
        if stream is None:
            return None
        try:
            return stream.take_logprobs(groups)
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            log.warning("out of memory in the cached forward: logprobs are computed without it")
        stream.clear_stream()
        return None

    def _old_of(self, batches: Sequence[MicroBatch]) -> ByTrajectory:
        empty = self._empty_passes(len(batches))
        found = self._logprobs(self.zero.engine, batches)
        with torch.no_grad():
            for _ in range(empty):
                self._empty_pass()
        return found

    def whole_logprobs(
        self, groups: Sequence[TrainGroup], stop: Callable[[], bool]
    ) -> Iterator[ByTrajectory]:
        """Compute logprobs of whole responses under the present weights, one micro-batch after
        another, until `stop` says so; with collective passes all ranks together, until one's does.

        Where memory runs out it ends too: what is missing then is counted. Raises MemoryShortage
        where the other ranks wait in that pass.
        """
        batches = self._micro_batches(groups)
        for index in range(len(batches) + self._empty_passes(len(batches))):
            stops = int(stop())
            if self.zero.max_over_ranks(stops) if self.zero.collective_passes else stops:
                return
            if index >= len(batches):
                with torch.no_grad():
                    self._empty_pass()
                continue
            try:
                found = self._logprobs(self.zero.engine, batches[index : index + 1])
            except RuntimeError as error:
                self.lower_limit(error, together=self.zero.collective_passes)
                return
            yield found

    def _logprobs(self, model: Forward, batches: Sequence[MicroBatch]) -> ByTrajectory:
        begun_s = time.monotonic()
        found = member_logprobs(model, self.limit.watch(batches), self._temperature)
        self._pace.wait_forward(begun_s, sum(batch.packed.tokens for batch in batches))
        return found

    def release_streamed(self, groups: Sequence[TrainGroup]) -> None:
        """Free what the own weights' stream holds of these groups: they are trained on now."""
        if self._old_stream is not None:
            self._old_stream.release_groups(groups)

    @contextlib.contextmanager
    def time_logprobs(self) -> Generator[None, None, None]:
        """Record the time inside as a forward for old or reference logprobs."""
        started = time.monotonic()
        yield
        self.spans.append((started, time.monotonic()))

    def forget_streams(self) -> None:
        """Drop logprobs that were computed ahead: the weights are about to change."""
        for stream in (self._old_stream, self._reference_stream):
            if stream is not None:
                stream.clear_stream()

    def forget_groups(self, groups: Iterable[TrainGroup]) -> None:
        """Drop the logprobs that were kept for these groups."""
        for group in groups:
            for member in group.members:
                self._old.pop(member.trajectory, None)
                self._reference.pop(member.trajectory, None)

    # --- the gradient -----------------------------------------------------------------------

    def forward_backward(self, groups: Sequence[TrainGroup]) -> Metrics:
        """Run forward and backward over these groups. Raises NotFinite.

        The metrics are sums over tokens; `computed` counts those that went through the loss.

        A loss that is not finite is found before its backward would spoil the gradient;
        with collective passes its backward runs nevertheless, as on the other ranks.
        """
        total: Metrics = {"computed": 0.0}
        weighed = [self.loss_pass.aggregation.weighed(group) for group in groups]
        whole_groups = self.loss_pass.whole_groups
        zero, batches = self.zero, self._micro_batches(self._audible(weighed), whole_groups)
        empty, bad = self._empty_passes(len(batches)), ""
        for index, batch in enumerate(self.limit.watch(batches)):
            begun_s = time.monotonic()
            loss, metrics = self.loss_pass.forward(zero.engine, batch, self._old, self._reference)
            if not bool(torch.isfinite(loss)):
                bad = f"the loss is {loss.item()}"
                if not zero.collective_passes:
                    raise NotFinite(bad, spoiled=index > 0)
            zero.backward(loss)
            self._pace.wait_training(begun_s, batch.packed.tokens)
            merge_metrics(total, metrics)
        for _ in range(empty):
            zero.backward(self._empty_pass() * 0.0)
        if bad:
            raise NotFinite(bad, spoiled=True)
        merge_metrics(self._sums, total)
        return reported(total)

    def apply_step(
        self, groups: Sequence[TrainGroup], normaliser: float, version: int, *, built: bool
    ) -> tuple[Metrics, Metrics] | None:
        """Run one optimizer step over these groups, all ranks together; None: not applied.

        Args:
            groups: those of this rank, maybe none.
            normaliser: N, over all ranks.
            version: that of the weights before the batch, for the learning rate.
            built: `forward_backward` has already built the gradient.

        A gradient that is not finite is built once more, in micro-batches of half the size;
        after the second time the weights stay untouched. All ranks decide alike. Returns
        the sums of the groups' metrics (empty if built before), and `grad_norm` and `lr`.
        """
        sums: Metrics | None = {} if built else self._build(groups)
        for attempt in range(2):
            if sums is not None and not self.zero.has_gradient():
                self.zero.backward(self._empty_pass() * 0.0)  # ZeRO 1 fails without a backward
            if self.zero.gradient_is_finite(normaliser, fine_here=sums is not None):
                return sums or {}, self._apply(normaliser, version)
            if attempt == 0:
                log.warning("gradient not finite; building it again")
                self.limit.halve_setting()
                sums = self._build(groups)
        self.forget_gradient()
        return None

    def _apply(self, normaliser: float, version: int) -> Metrics:
        """Step, at the rate that the loss may scale, and keep what the loss remembers."""
        if not self.loss_pass.scales_steps:
            applied = self.zero.step(normaliser, version)
        else:
            sums: Metrics = {}
            for found in self.zero.gather_from_ranks(self._sums):
                merge_metrics(sums, found)
            scale = self.loss_pass.step_scale(sums)
            applied = {**self.zero.step(normaliser, version, scale), "lr_scale": scale}
        self._sums = {}
        self.loss_pass.state.keep()
        if self.average is not None:
            self.average.follow()
        return applied

    def forget_gradient(self) -> None:
        """Forget everything accumulated since the last optimizer step."""
        self.zero.zero_gradients()
        self._sums = {}
        self.loss_pass.state.rewind()

    def rebuild_gradient(self, groups: Sequence[TrainGroup]) -> bool:
        """Build the gradient of these groups anew; returns False if a loss is not finite."""
        return self._build(groups) is not None

    def _build(self, groups: Sequence[TrainGroup]) -> Metrics | None:
        self.forget_gradient()
        try:
            return self.forward_backward(groups) if groups or self.zero.collective_passes else {}
        except NotFinite as error:
            log.warning("a group that was finite before: %s", error)
            return None
        except RuntimeError as error:
            self.lower_limit(error, together=self.zero.collective_passes)
        return self._build(groups)

    # --- memory -----------------------------------------------------------------------------

    def lower_limit(self, error: RuntimeError, *, together: bool) -> None:
        """Make micro-batches smaller after a lack of memory; then the same work may be run again.

        Args:
            together: the failed pass was one that all ranks run. The others wait in a
                collective that this rank will not enter: only a restart of all brings them
                out, with the lower limit.

        Raises: MemoryShortage if this rank cannot go on by itself; `error` if it is another.
        """
        if together:
            tokens = self.limit.lowered(error)
            raise MemoryShortage(f"{error}; in a pass of all ranks", tokens) from error
        self.limit.lower(error)
        tokens = self.limit.tokens
        log.warning("out of memory: micro-batches of %d tokens for this step", tokens)

    def _micro_batches(
        self, groups: Sequence[TrainGroup], whole_groups: bool = False
    ) -> list[MicroBatch]:
        limit, device = self.limit.tokens, self.zero.device
        return micro_batches(groups, limit, device, whole_groups=whole_groups)

    # --- one pass ---------------------------------------------------------------------------

    def _audible(self, groups: Sequence[TrainGroup]) -> Sequence[TrainGroup]:
        """Leave out members that cannot change the loss: late in a run, most of them.

        They count in the normaliser, so the gradient is the same.
        """
        if not self.loss_pass.skips_silent:
            return groups
        return [
            msgspec.structs.replace(
                group, members=tuple(member for member in group.members if member.has_advantage)
            )
            for group in groups
        ]

    def _empty_passes(self, own: int) -> int:
        """Return how many passes this rank must add, so that all ranks run equally many.

        With collective passes itself a collective: call it before the first pass.
        """
        return max(1, self.zero.max_over_ranks(own)) - own if self.zero.collective_passes else 0

    def _empty_pass(self) -> torch.Tensor:
        """Run one token through the whole model: takes part without work."""
        packed = pack_whole([([0], [[0]])], self.zero.device)
        return response_logprobs(self.zero.engine, packed, self._temperature).sum()


def merge_metrics(total: Metrics, more: Metrics) -> None:
    """Add sums to sums; a name that ends in `_max` takes the maximum."""
    for name, value in more.items():
        if name.endswith("_max"):
            total[name] = max(value, total.get(name, value))
        else:
            total[name] = total.get(name, 0.0) + value


def _check(found: ByTrajectory, what: str) -> None:
    for trajectory, values_T in found.items():
        if not bool(torch.isfinite(values_T).all()):
            raise NotFinite(f"{what} of trajectory {trajectory} is not finite")
