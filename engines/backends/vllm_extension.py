"""Reloads weights in place, inside the vLLM process that holds the model, shows them, and holds its
steps back to an emulated pace.

Named by `worker_extension_cls`: vLLM mixes the class into its worker and
`collective_rpc` calls it by name. Imported nowhere else.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engines.pace import Load

if TYPE_CHECKING:
    import torch

    from engines.backends.vllm_tensors import HeldTensors
    from engines.pace import StepPace


class Reload:
    """Mixed into vLLM's worker, whose attributes these are."""

    if TYPE_CHECKING:  # vLLM refuses an extension that defines a name of its worker
        model_runner: Any
        darts_held: HeldTensors
        darts_readable_names: frozenset[str]
        darts_step_pace: StepPace

        def reload_weights(self, *, weights_path: str) -> None: ...

    def darts_reload(self, directory: str) -> None:
        """Load `directory`/model.safetensors over the weights served now."""
        from vllm.platforms import current_platform

        # It warns about every layer without a tensor of its own in the file: the tied head, the
        # rotary embedding. `darts_check` compares what was loaded.
        logging.getLogger("vllm.model_executor.model_loader.reload").setLevel(logging.ERROR)
        self.reload_weights(weights_path=directory)
        if current_platform.is_cpu():
            _repack_tied_heads(self.model_runner.get_model())

    def darts_readable(self, directory: str) -> int:
        """Find out which tensors can be read, by the files that vLLM has just loaded itself.

        A tensor that we do not read as it is in the file (an expert's, a quantised one, one that
        this model transforms) is never compared later. Returns the number of readable ones.
        """
        from engines.backends.held_tensors import equal_to_files
        from engines.backends.vllm_tensors import HeldTensors

        self.darts_held = HeldTensors(self.model_runner.get_model())
        files = sorted(Path(directory).glob("*.safetensors"))
        self.darts_readable_names = equal_to_files(files, self.darts_held.pairs)
        return len(self.darts_readable_names)

    def darts_check(
        self, file: str, checksums: dict[str, str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the published tensors that are held unchanged, and that are not."""
        from engines.backends.held_tensors import compare_with_file

        def pairs(name: str, published: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
            readable = name in self.darts_readable_names
            return self.darts_held.pairs(name, published) if readable else []

        self.darts_held.begin()
        check = compare_with_file(Path(file), checksums, pairs)
        return check.equal, check.different

    def darts_pace(self, cost: dict[str, Any]) -> None:
        """Hold every step back to this cost, an `EngineCost`, from now on."""
        from engines.pace import StepPace
        from pipeline.hardware.costs import EngineCost

        self.darts_step_pace = pace = StepPace(msgspec.convert(cost, EngineCost))
        runner = self.model_runner
        execute, sample = runner.execute_model, runner.sample_tokens

        def execute_model(scheduled: Any, *rest: Any, **named: Any) -> Any:
            pace.begin(_load_of(scheduled))
            output = execute(scheduled, *rest, **named)
            if output is not None:  # else its tokens are sampled by a call of their own
                pace.end()
            return output

        def sample_tokens(*given: Any, **named: Any) -> Any:
            output = sample(*given, **named)
            pace.end()
            return output

        runner.execute_model, runner.sample_tokens = execute_model, sample_tokens

    def darts_paced(self) -> dict[str, Any]:
        """Return the counts of paced steps since the last call, a `PacedSteps`."""
        return msgspec.to_builtins(self.darts_step_pace.take_counts())


def _load_of(scheduled: Any) -> Load:
    """Return the load of a step from vLLM's `SchedulerOutput`."""
    load, counts, running = Load(), scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    for request in scheduled.scheduled_new_reqs:
        load.add(request.req_id, request.num_computed_tokens, counts[request.req_id])
    for name, held in zip(running.req_ids, running.num_computed_tokens, strict=True):
        load.add(name, held, counts[name])
    return load


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Give the output layer of tied embeddings its new weights.

    vLLM's CPU backend packs linear layers when it loads them; the tied head is not
    packed again by a reload, and would keep the old weights (error seen: 0.5).
    """
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
