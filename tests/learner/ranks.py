"""Runs learner ranks as processes and writes down what they computed.

As a module: the tiny model, random groups, and `run_ranks`. As a program
(`python -m tests.learner.ranks MODEL OUT`, RANK and WORLD_SIZE set): every
scenario at ZeRO 0 to 3, one after another, into OUT/rankR.pt.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.schema import LearnerConfig
from pipeline.wire.messages import CloseStep, TrainGroup, TrainMember
from tests.paths import ROOT

VOCABULARY = 24
TEMPERATURE = 0.7
SECTION = LearnerConfig(lr=1e-3, clip_norm=0.05, warmup_steps=2, tokens_per_micro_batch=150)
RUN_STEPS = 6
"""`step.count` that the schedules end at."""
SEVERAL: dict[str, Any] = {"updates": 2, "epochs": 2, "importance": "mask", "importance_cap": 2.5}
SEVERAL_LOSS: dict[str, Any] = {"clip_low": 0.02, "clip_high": 0.03, "kl": 0.2}
"""Several updates against a reference model, with narrow clips that act within one batch."""


SILENT = (1, 9)
"""Groups whose members all have advantage 0; of group 5 the second member has."""


def group_of(
    number: int, *, step: int = 0, members: int | None = None, **changes: Any
) -> TrainGroup:
    """A random group, the same for the same number; sizes, lengths and weights differ."""
    rng = random.Random(number)
    prompt = np.array([rng.randrange(2, 24) for _ in range(rng.randint(3, 9))], dtype="<i4")
    found: list[TrainMember] = []
    for index in range(members or rng.randint(2, 6)):
        length = rng.randint(1, 40)
        response = np.array([rng.randrange(24) for _ in range(length)], dtype="<i4")
        behaviour = np.array([-rng.random() * 4 for _ in range(length)], dtype="<f4")
        advantage = rng.uniform(-1, 1)
        fields: dict[str, Any] = {
            "trajectory": number * 100 + index,
            "response": response.tobytes(),
            "behaviour": behaviour.tobytes(),
            "reward": 1.0,
            "advantage": 0.0 if number in SILENT or (number, index) == (5, 1) else advantage,
            "weight": rng.choice([1.0, 1.0, 0.5, 0.0]) if index else 1.0,
        }
        found.append(TrainMember(**{**fields, **changes}))
    return TrainGroup(step=step, group=number, prompt=prompt.tobytes(), members=tuple(found))


STEPS: tuple[tuple[int, ...], ...] = ((1, 2, 3, 4, 5), (6, 7), (8, 9, 10))
"""Groups of the three steps of the plain scenarios."""


ZEROS: dict[int, tuple[int, ...]] = {1: (0, 3), 2: (0, 2, 3)}
"""World -> ZeRO stages tried there: 2 shares out what 1 does, and gradients besides."""
CASES = [(zero, world) for world, zeros in ZEROS.items() for zero in zeros]


def make_model(directory: Path, scale: float = 4.0, seed: int = 3) -> Path:
    """A tiny random Qwen3 whose weights are sharpened: small ones hide position errors."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" not in name:
                p.mul_(scale)
    model.save_pretrained(directory)
    return directory


def run_ranks(
    model: Path, out: Path, world: int, program: str = "tests.learner.ranks"
) -> list[dict[str, Any]]:
    """What each rank of a program wrote down.

    Raises RuntimeError with the output of a rank that failed.
    """
    import torch

    out.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    ranks: list[subprocess.Popen[str]] = []
    for rank in range(world):
        with (out / f"rank{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", program, str(model), str(out)],
                    cwd=ROOT,
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    try:
        for rank, process in enumerate(ranks):
            if process.wait(timeout=300) != 0:
                raise RuntimeError((out / f"rank{rank}.log").read_text()[-4000:])
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


# --- in a rank's process --------------------------------------------------------------------


class Rank:
    """One engine at one ZeRO stage, and what happened to it.

    `settings`: of the learner's section; with a `kl` in `loss` the reference model
    beside MODEL is loaded. `adapter`: of a checkpoint, for `lora`.
    """

    def __init__(
        self,
        model: Path,
        zero: int,
        loss: dict[str, Any] | None = None,
        adapter: Path | None = None,
        **settings: Any,
    ) -> None:
        import msgspec
        import torch

        from learner import lora
        from learner.build import checkpoint_layers, load_model, step_of
        from learner.deepspeed.engine import Zero
        from learner.losses.dapo import Dapo, DapoOptions
        from learner.step.passes import Passes

        section = msgspec.structs.replace(SECTION, zero=zero, **settings)
        options, device = DapoOptions(**(loss or {})), torch.device("cpu")
        reference = load_model(model.parent / "reference", device).eval() if options.kl else None
        net = load_model(model, device, section.dtype)
        if section.lora is not None:
            lora.attach(net, section.lora, model)
            if adapter is not None:
                lora.load_adapter(net, adapter)
        if section.gradient_checkpointing:
            checkpoint_layers(net)
        self.zero = Zero(net, section, RUN_STEPS)
        self.passes = Passes(
            self.zero, Dapo(options), section, temperature=TEMPERATURE, reference=reference
        )
        self.step = step_of(self.passes, section)
        self.updates = 0
        self.computed = 0.0  # tokens that went through the loss
        self.reports: list[str] = []
        self.metrics: list[dict[str, float]] = []

    def add(self, groups: Sequence[TrainGroup], *, together: bool = False) -> float:
        """Train on this rank's share; returns its part of the normaliser."""
        packs = [list(groups)] if together else [[group] for group in groups]
        counted = 0.0
        for pack in packs:
            for report in self.step.add_groups(pack):
                self.reports.append(f"{type(report).__name__} {report.group}")
                counted += getattr(report, "tokens", 0.0)
                self.computed += getattr(report, "metrics", {}).get("computed", 0.0)
        return counted

    def close(self, groups: Sequence[int], counted: float) -> bool:
        """All ranks: the normaliser is summed as the stage would."""
        import torch
        import torch.distributed

        total = torch.tensor(counted, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        close = CloseStep(step=0, groups=tuple(groups), normaliser=float(total))
        metrics = self.step.close(close, self.updates)
        if metrics is None:
            return False
        self.updates += 1
        self.metrics.append(metrics)
        return True

    def local_gradient(self) -> Any:
        import torch

        sums = [self.zero.sums.sum_of(at) for at in range(len(self.zero.parameters))]
        parts = [
            torch.zeros_like(p).flatten() if found is None else found.detach().flatten()
            for p, found in zip(self.zero.parameters, sums, strict=True)
        ]
        return torch.cat(parts)

    def weights(self) -> Any:
        import torch

        with self.zero.gathered_weights():
            return torch.cat([p.detach().flatten() for p in self.zero.module.parameters()])

    def momentum(self, zero: int) -> Any:
        """exp_avg: after one step (1 - beta1) times the clipped, reduced gradient."""
        import torch
        from deepspeed.utils import safe_get_full_optimizer_state

        states: Any = self.zero.engine.optimizer.state if zero == 0 else {}
        whole: Any = safe_get_full_optimizer_state
        return torch.cat(
            [
                (states[p]["exp_avg"] if states else whole(p, "exp_avg")).detach().flatten()
                for p in self.zero.parameters
            ]
        )


def shares(groups: Sequence[int], rank: int, world: int, *, lazy: bool) -> list[TrainGroup]:
    """This rank's groups; `lazy` leaves the last rank of two without work."""
    if lazy:
        return [group_of(number) for number in groups] if rank == 0 else []
    return [group_of(number) for at, number in enumerate(groups) if at % world == rank]


def streamed(model: Path, zero: int, rank: int, world: int, **options: Any) -> dict[str, Any]:
    """Three steps, group by group (or packed together), and what came out of them."""
    lazy, together = options.pop("lazy", False), options.pop("together", False)
    actor = Rank(model, zero, **options)
    found: dict[str, Any] = {}
    for number, groups in enumerate(STEPS):
        mine = shares(groups, rank, world, lazy=lazy)
        counted = actor.add(mine, together=together)
        if number == 0 and zero < 3:
            found["gradient"], found["computed"] = actor.local_gradient(), actor.computed
        assert actor.close(groups, counted)
        if number == 0 and "weight_decay" not in options:  # DeepSpeed finds one group's only
            found["momentum"] = actor.momentum(zero)
    return {**found, "weights": actor.weights(), "norms": [m["grad_norm"] for m in actor.metrics]}


def spoiled(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """A group with a NaN advantage, alone and packed with others."""
    actor = Rank(model, zero)
    bad = group_of(99, advantage=float("nan"))
    mine = shares(STEPS[0], rank, world, lazy=False)
    counted = actor.add([*mine[:1], bad, *mine[1:]], together=True)
    counted += actor.add([bad])
    assert actor.close(STEPS[0], counted)
    return {"weights": actor.weights(), "reports": actor.reports}


def poisoned(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """Gradients that are NaN though the loss is finite: once, then always, then never."""
    actor = Rank(model, zero)
    before = actor.weights().clone()
    left = 1 if rank == world - 1 else 0

    def poison(gradient: Any) -> Any:
        nonlocal left
        left -= 1
        return gradient * float("nan") if left >= 0 else gradient

    p = next(iter(actor.zero.module.parameters()))
    handle = p.register_hook(poison)
    mine = shares(STEPS[0], rank, world, lazy=False)
    once = actor.close(STEPS[0], actor.add(mine))
    after_once = actor.weights().clone()
    left = 10**6 if rank == world - 1 else 0
    always = actor.close(STEPS[0], actor.add(mine))
    after_always = actor.weights().clone()
    handle.remove()
    never = actor.close(STEPS[1], actor.add(shares(STEPS[1], rank, world, lazy=False)))
    return {
        "applied": [once, always, never],
        "before": before,
        "once": after_once,
        "always": after_always,
        "weights": actor.weights(),
    }


def several(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """Two batches of several updates; then one whose second mini-batch is not finite."""
    import msgspec

    actor = Rank(model, zero, loss=SEVERAL_LOSS, **SEVERAL)
    for groups in STEPS[:2]:
        assert actor.close(groups, actor.add(shares(groups, rank, world, lazy=False)))
    weights = actor.weights()
    half = Rank(model, zero, updates=2, importance="truncate")
    mine = shares(STEPS[0], rank, world, lazy=False)
    nothing = np.full(40, np.nan, dtype="<f4").tobytes()
    for at, group in enumerate(mine):
        if group.group == STEPS[0][-1]:
            [first, *others] = group.members
            spoiled = nothing[: len(first.response)]
            first = msgspec.structs.replace(first, behaviour=spoiled)
            mine[at] = msgspec.structs.replace(group, members=(first, *others))
    assert half.close(STEPS[0], half.add(mine))
    return {
        "weights": weights,
        "metrics": actor.metrics,
        "half": half.weights(),
        "half_updates": half.metrics[0]["updates"],
    }


def published(model: Path, zero: int, rank: int, world: int, out: Path) -> dict[str, Any]:
    """The weights after a step as engines get them, and the probe's logprobs."""
    from learner.weights import WeightPublisher, probe_logprobs

    actor = Rank(model, zero)
    assert actor.close(STEPS[0], actor.add(shares(STEPS[0], rank, world, lazy=False)))
    probe = list(range(2, 20))
    logprobs = probe_logprobs(actor.zero.module, probe)
    directory = ""
    with actor.zero.gathered_weights():
        if rank == 0:
            publisher = WeightPublisher(out / f"weights-{zero}", probe)
            directory = publisher.publish_version(actor.zero.module, 1, logprobs).directory
    return {"directory": directory, "logprobs": logprobs["1.0"], "weights": actor.weights()}


def starved(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """Memory runs out once, in the second micro-batch of a pack."""
    import torch

    actor = Rank(model, zero)
    calls: list[tuple[int, ...]] = []

    def exhaust(_module: Any, _given: Any, named: dict[str, Any]) -> None:
        calls.append(named["input_ids"].numel())
        if len(calls) == 2:
            raise torch.OutOfMemoryError("the test's")

    handle = actor.zero.module.register_forward_pre_hook(exhaust, with_kwargs=True)
    mine = shares(STEPS[0], rank, world, lazy=False)
    counted = actor.add(mine, together=True)
    handle.remove()
    assert actor.close(STEPS[0], counted)
    return {"weights": actor.weights(), "before": max(calls[:2]), "after": max(calls[2:])}


def forgotten(model: Path, zero: int, rank: int, world: int) -> dict[str, Any]:
    """Groups that leave the step again: one by a message, one by the list of the close."""
    actor = Rank(model, zero)
    mine = shares(STEPS[0], rank, world, lazy=False)
    counted = actor.add([group_of(50 + rank)])
    counted = actor.add(mine)
    actor.add([group_of(60 + rank)])
    actor.step.forget_group(50 + rank)
    assert actor.close(STEPS[0], counted)
    return {"weights": actor.weights()}


def resumed(
    model: Path, zero: int, rank: int, world: int, out: Path, **settings: Any
) -> dict[str, Any]:
    """Save in the middle of the third step; finish it here, and again from the checkpoint."""
    from learner.checkpoint.save import MODEL, load_checkpoint, save_checkpoint
    from learner.lora import ADAPTER

    actor = Rank(model, zero, **settings)
    for groups in STEPS[:2]:
        assert actor.close(groups, actor.add(shares(groups, rank, world, lazy=False)))
    mine = shares(STEPS[2], rank, world, lazy=False)
    counted = actor.add(mine[:1])
    kind = "".join(f"-{name}" for name in settings)
    checkpoint = out / f"checkpoint-{zero}{kind}"
    checkpoint.mkdir(exist_ok=True)  # as the stage does, for all ranks
    save_checkpoint(actor.zero, model, checkpoint, 2, actor.updates)
    counted += actor.add(mine[1:])
    assert actor.close(STEPS[2], counted)
    import torch.distributed

    torch.distributed.barrier()  # rank 0 writes the model
    adapter = checkpoint / ADAPTER
    if adapter.is_dir():
        again = Rank(model, zero, adapter=adapter, **settings)
    else:
        again = Rank(checkpoint / MODEL, zero, **settings)
    restored = load_checkpoint(again.zero, checkpoint)
    again.updates = restored.version
    assert again.close(STEPS[2], again.add(mine))
    return {
        "weights": actor.weights(),
        "again": again.weights(),
        "step": restored.step,
        "version": restored.version,
    }


def main() -> None:
    import torch

    from learner.deepspeed import engine as deep
    from learner.deepspeed.engine import join_ranks, leave_ranks

    deep.PERSISTENT_ELEMENTS = 100  # the tiny model's matrices are shared out, its norms are not
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    join_ranks()
    found: dict[str, Any] = {}
    for zero in ZEROS[world]:
        found[f"streamed{zero}"] = streamed(model, zero, rank, world)
        found[f"together{zero}"] = streamed(model, zero, rank, world, together=True)
        found[f"lazy{zero}"] = streamed(model, zero, rank, world, lazy=True)
        found[f"capped{zero}"] = streamed(
            model, zero, rank, world, importance="truncate", importance_cap=1.5
        )
        found[f"several{zero}"] = several(model, zero, rank, world)
        found[f"published{zero}"] = published(model, zero, rank, world, out)
        found[f"spoiled{zero}"] = spoiled(model, zero, rank, world)
        found[f"poisoned{zero}"] = poisoned(model, zero, rank, world)
        if zero < 3:
            found[f"starved{zero}"] = starved(model, zero, rank, world)
        found[f"forgotten{zero}"] = forgotten(model, zero, rank, world)
        found[f"resumed{zero}"] = resumed(model, zero, rank, world, out)
    torch.save(found, out / f"rank{rank}.pt")
    leave_ranks()


if __name__ == "__main__":
    main()
