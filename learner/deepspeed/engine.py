"""Runs DeepSpeed at ZeRO 0 to 3: any number of backward passes, one step, exact scaling.

Turns losses (sums over tokens) into gradients that stay local to the rank, and
a normaliser that is known only at the end into one optimizer step. Measured to
accumulate exactly: `backward(scale_wrt_gas=False)` everywhere;
`managed_gradient_accumulation` off at stages 0 and 1, one
`coalesce_grad_reduction()` for a whole step at 2 and 3. So gradients are whole
on every rank, and reduced only in `step()`.

In bfloat16 DeepSpeed keeps float32 masters and optimizer state at stages 1 to 3;
the sums over micro-batches are kept here (`learner.deepspeed.gradient_sums`).

At stages 0 to 2 the ranks may run different numbers of micro-batches, but each
at least one. At stage 3 (`collective_passes`) every forward and backward
communicates: all ranks must run equally many passes, those without gradient included.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.deepspeed import build_lock
from learner.deepspeed.gradient_sums import GradientSums
from learner.deepspeed.lr_schedule import decay_groups, scheduled_lr

# All of this must be set before deepspeed is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
build_lock.use_torch_extensions_dir()
if shutil.which("ninja") is None:  # in a virtual environment that is not activated
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

# DeepSpeed's autotuner, which nothing here uses, would import MLflow where that is installed:
# a second of every learner's start.
_LEFT_OUT = {"mlflow": None} if "mlflow" not in sys.modules else {}
sys.modules.update(_LEFT_OUT)  # type: ignore[arg-type]
import deepspeed  # noqa: E402
import torch.distributed  # noqa: E402
from deepspeed import comm  # noqa: E402

for _name in _LEFT_OUT:
    del sys.modules[_name]

from learner.rank_store import store_of  # noqa: E402
from pipeline.config import deepspeed_json  # noqa: E402
from pipeline.config.schema import LearnerConfig  # noqa: E402

PERSISTENT_ELEMENTS = 10_000
"""Stage 3: parameters up to this size (norms, biases) stay whole on every rank."""
GRADIENT_LIMIT = 1e18
"""A gradient norm above this counts as not finite: its square exceeds float32."""


class ZeroError(Exception):
    """DeepSpeed could not do what was requested."""


def device_of(local_rank: int) -> torch.device:
    """Return this rank's device; with GPUs its own card. Raises ZeroError if there are too few."""
    if torch.cuda.is_available():
        if local_rank >= (found := torch.cuda.device_count()):
            raise ZeroError(
                f"this is learner rank {local_rank} of its machine, which has {found} GPU(s): each "
                "rank needs its own; set learner.ranks lower"
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def join_ranks() -> None:
    """Form the learner's process group from MASTER_ADDR, MASTER_PORT, RANK and WORLD_SIZE; see
    `learner.rank_store`. DeepSpeed takes the group that is there."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world = store_of(os.environ)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    with build_lock.no_stale_locks():
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def leave_ranks() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def deepspeed_settings(section: LearnerConfig) -> dict[str, Any]:
    """Make DeepSpeed's configuration: darts' own keys, and those of `learner.deepspeed`.

    Raises: DeepSpeedFileError if that file is not usable.
    """
    theirs = deepspeed_json.read(section)
    return {
        **theirs,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": section.zero >= 2,
        "gradient_clipping": section.clip_norm if section.zero else 0.0,
        "zero_allow_untested_optimizer": True,
        # It would skip an update silently; `gradient_is_finite` decides before the step.
        "bf16": {"enabled": section.dtype == "bfloat16", "check_grad_overflow": False},
        "zero_optimization": {
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            **theirs.get("zero_optimization", {}),
            "stage": section.zero,
            "overlap_comm": False,
        },
        "steps_per_print": None,
    }


class Zero:
    """A model, its optimizer, and the gradient of the step so far."""

    def __init__(self, model: torch.nn.Module, section: LearnerConfig, steps: int) -> None:
        """`steps`: those of the whole run, for the schedule of the learning rate."""
        self._section = section
        self._steps = steps
        self.collective_passes = section.zero == 3
        """Passes communicate, so all ranks must run equally many."""
        self._unreduced: AbstractContextManager[None] | None = None  # stages 2, 3: open in a step
        self._norm = float("nan")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.sums = GradientSums(self.parameters)
        optimizer = torch.optim.AdamW(
            decay_groups(named, section), lr=section.lr, betas=section.betas, eps=section.eps
        )
        if section.zero == 0:
            # DeepSpeed clips here too, but does not report the norm.
            optimizer.register_step_pre_hook(self._clip_reduced)
        model.eval()  # with dropout the old logprobs would be those of another policy
        try:
            found = deepspeed.initialize(
                model=model, optimizer=optimizer, config=deepspeed_settings(section)
            )
        except ValueError as error:  # DeepSpeed's own checks, of nested keys that we do not check
            if section.deepspeed:
                raise ZeroError(f"{section.deepspeed}: {error}") from error
            raise
        self.engine: Any = found[0]
        self.engine.eval()
        self.world: int = comm.get_world_size()
        self.rank: int = comm.get_rank()
        self.device = self.parameters[0].device

    @property
    def module(self) -> Any:
        """The bare model, for passes without gradient; with `collective_passes` on all ranks."""
        return self.engine.module

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Give the parameters of `module` their values inside this context (at stage 3 a
        collective that gathers all of them on every rank)."""
        if not self.collective_passes:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters(self.parameters)

    def sum_over_ranks(self, *values: float) -> list[float]:
        """Sum each value over the ranks (a collective)."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        comm.all_reduce(sums)
        return sums.tolist()

    def max_over_ranks(self, value: int) -> int:
        """Return the largest of the ranks' values (a collective)."""
        found = torch.tensor(value, device=self.device)
        comm.all_reduce(found, op=comm.ReduceOp.MAX)
        return int(found.item())

    def gather_from_ranks(self, value: dict[str, float]) -> list[dict[str, float]]:
        """Return every rank's value, in order of rank (a collective)."""
        found: list[dict[str, float]] = [{} for _ in range(self.world)]
        torch.distributed.all_gather_object(found, value)
        return found

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a sum over tokens; a collective with `collective_passes` only."""
        if self._section.zero >= 2 and self._unreduced is None:
            unreduced: AbstractContextManager[None] = self.engine.coalesce_grad_reduction()
            unreduced.__enter__()
            self._unreduced = unreduced
        self.engine.backward(loss, scale_wrt_gas=False)
        self.sums.add_gradients()

    def zero_gradients(self) -> None:
        """Forget everything accumulated since the last step."""
        self.sums.clear_sums()  # first: stage 3's own call fails on a device without streams
        self.engine.optimizer.zero_grad(set_to_none=True)

    def has_gradient(self) -> bool:
        return bool(self.sums.all_sums())

    def gradient_is_finite(self, normaliser: float, *, fine_here: bool = True) -> bool:
        """Return True if the reduced gradient is finite; equal on all ranks (a collective).

        The reduced norm is at most the sum of the ranks' norms, so that sum decides
        before the reduction. At stage 0 DeepSpeed itself checks nothing.
        """
        norm = torch.zeros((), dtype=torch.float64, device=self.device)
        gradients = self.sums.all_sums()
        if gradients:
            norms = torch._foreach_norm(gradients)  # noqa: SLF001 - its only name
            norm = torch.stack([one.double() for one in norms]).norm()
        if not fine_here:
            norm = torch.full_like(norm, float("inf"))
        comm.all_reduce(norm)
        value = float(norm.item()) / normaliser
        return value < GRADIENT_LIMIT and float(norm.item()) < GRADIENT_LIMIT

    def step(self, normaliser: float, updates: int, rate_scale: float = 1.0) -> dict[str, float]:
        """Divide by the normaliser, clip, and apply (a collective); clears the gradients.

        Args:
            normaliser: N, over all ranks.
            updates: steps applied before this one, for the learning rate.
            rate_scale: what this step's learning rate is multiplied by.

        Returns: `grad_norm` (before clipping) and `lr`.
        """
        if not normaliser > 0:
            raise ZeroError(f"the step's normaliser is {normaliser}: no token to learn from")
        learning_rate = scheduled_lr(self._section, updates, self._steps) * rate_scale
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._section.dtype == "bfloat16":
            with self.gathered_weights():  # a gradient must have its parameter's size
                self.sums.hand_over()
        if self._section.zero == 0:
            # reduction averages over ranks; the loss is a sum over all of them
            for p in self.parameters:
                if p.grad is not None:
                    p.grad.mul_(self.world / normaliser)
            self.engine.step()
        else:
            if self._unreduced is not None:
                unreduced, self._unreduced = self._unreduced, None
                unreduced.__exit__(None, None, None)  # reduces
            # Stages 1 to 3 unscale before they clip, and report the norm unscaled.
            scaler = self.engine.optimizer.loss_scaler
            scaler.cur_scale = normaliser / self.world
            try:
                self.engine.step()
            finally:
                scaler.cur_scale = 1.0
            norm = self.engine.get_global_grad_norm()
            self._norm = float("nan") if norm is None else float(norm)
        if not self.engine.was_step_applied():
            raise ZeroError("DeepSpeed did not apply a step whose gradient was finite")
        return {"grad_norm": self._norm, "lr": learning_rate}

    def _clip_reduced(self, *_: Any) -> None:
        limit = self._section.clip_norm or float("inf")
        self._norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))

    # --- checkpoints ------------------------------------------------------------------------

    def owns_state(self) -> bool:
        """Return True if this rank's optimizer state must be saved: at stage 0 all are equal."""
        return self._section.zero > 0 or self.rank == 0

    def optimizer_state(self) -> dict[str, Any]:
        """Return this rank's optimizer state as tensors and plain values; no gradients."""
        optimizer = self.engine.optimizer
        state: dict[str, Any] = {"zero": self._section.zero, "world": self.world}
        if self._section.zero == 0:
            return {**state, "optimizer": optimizer.state_dict()}
        if self._section.zero == 3:
            whole = optimizer.state_dict()  # with objects that torch.load refuses
            masters = whole["fp32_flat_groups"]
            state["optimizer"] = whole["optimizer_state_dict"]
        else:
            masters = optimizer.single_partition_of_fp32_groups
            state["optimizer"] = optimizer.optimizer.state_dict()
        return {**state, "masters": [part.detach() for part in masters]}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restore a state of the same stage (and, above stage 0, the same number of ranks)."""
        zero, world = self._section.zero, self.world
        if state["zero"] != zero or (zero > 0 and state["world"] != world):
            raise ZeroError(
                f"the checkpoint was written at ZeRO {state['zero']} by {state['world']} ranks, "
                f"but learner.zero is {zero} with {world}: resume with the same"
            )
        optimizer = self.engine.optimizer
        if zero == 0:
            optimizer.load_state_dict(state["optimizer"])
        elif zero == 3:
            whole = optimizer.state_dict()
            whole["optimizer_state_dict"] = state["optimizer"]
            whole["fp32_flat_groups"] = state["masters"]
            optimizer.load_state_dict([whole] * world)
            optimizer.checkpoint_event_epilogue()  # makes small parameters whole again
        else:
            optimizer.optimizer.load_state_dict(state["optimizer"])
            for part, saved in zip(
                optimizer.single_partition_of_fp32_groups, state["masters"], strict=True
            ):
                part.data.copy_(saved)
