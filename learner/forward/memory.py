"""Recognises a lack of memory, and decides how much smaller micro-batches have to be then.

Turns the micro-batch that did not fit into a limit under which it is split; a micro-batch of
one response cannot be split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from learner.forward.micro_batches import MicroBatch

_WORDS = (
    "can't allocate memory",  # the CPU's allocator
    "CUDA error: out of memory",  # outside of torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
)


class MemoryShortage(Exception):
    """Memory ran out, and this rank cannot go on by itself."""

    def __init__(self, why: str, tokens: int = 0) -> None:
        super().__init__(why)
        self.tokens = tokens
        """Most tokens of a micro-batch with which all ranks may try again from a checkpoint;
        0: smaller micro-batches would not help."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Return True if torch, or a library below it, could not allocate memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )


def shortage_outside_of_passes(error: RuntimeError) -> MemoryShortage:
    """Explain a lack of memory that no smaller micro-batch would have prevented."""
    return MemoryShortage(
        f"{error}; not in a pass over a micro-batch: a smaller learner.tokens_per_micro_batch "
        "would not help. Use more learner.ranks at a higher learner.zero, or a lower "
        "engine.gpu_memory if engines share the GPU"
    )


class MicroBatchLimit:
    """The most tokens of a micro-batch (a longer response has one of its own).

    Args:
        setting: `learner.tokens_per_micro_batch`.
        whole_groups: the loss needs the members of a group together.
    """

    def __init__(self, setting: int, *, whole_groups: bool = False) -> None:
        self._setting = self.tokens = setting
        self._whole_groups = whole_groups
        self._running: MicroBatch | None = None

    def watch(self, batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """Yield the micro-batches, and remember which one's pass runs."""
        for batch in batches:
            self._running = batch
            yield batch
        self._running = None

    def lower(self, error: RuntimeError) -> None:
        """Set the limit to half of what has just failed for lack of memory, or to the size of
        that if it was a single response.

        Raises: `error` if that is something else; MemoryShortage with `tokens` of 0 if no
            smaller micro-batch would help.
        """
        self.tokens = self.lowered(error)

    def lowered(self, error: RuntimeError) -> int:
        """Return the limit that `lower` would set. Raises as it does."""
        if not ran_out_of_memory(error):
            raise error
        failed, self._running = self._running, None
        if failed is None:
            raise shortage_outside_of_passes(error) from error
        tokens = failed.packed.tokens_P.numel()
        whole = self._whole_groups and len(set(failed.group_B.tolist())) == 1
        if len(failed.trajectories) > 1 and not whole:
            return min(self.tokens, tokens) // 2
        if tokens >= self.tokens:
            what = "in a pass over a single response"
            if whole:
                what = "in a pass over a single group, which the loss needs whole"
            raise MemoryShortage(
                f"{error}; {what} ({tokens} tokens with its prompt), "
                "which no smaller learner.tokens_per_micro_batch splits: lower "
                "sampling.max_tokens, set learner.gradient_checkpointing, or use more "
                "learner.ranks at a higher learner.zero"
            ) from error
        return tokens  # it may fit where no larger one has run before it

    def halve_setting(self) -> None:
        """Set the limit to half the setting, unless memory has already forced a lower one."""
        self.tokens = min(self.tokens, max(1, self._setting // 2))

    def restore(self) -> None:
        """Set the limit back to the setting."""
        self.tokens = self._setting
