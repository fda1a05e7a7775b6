"""Reloads weights in place, inside the vLLM process that holds the model.

Named by `worker_extension_cls`: vLLM mixes the class into its worker and
`collective_rpc` calls it by name. Imported nowhere else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Reload:
    """Mixed into vLLM's worker, whose attributes these are."""

    if TYPE_CHECKING:  # vLLM refuses an extension that defines a name of its worker
        model_runner: Any

        def reload_weights(self, *, weights_path: str) -> None: ...

    def darts_reload(self, directory: str) -> None:
        """Load `directory`/model.safetensors over the weights served now."""
        from vllm.platforms import current_platform

        # It warns about every layer without a tensor of its own in the file: the tied head, the
        # rotary embedding. The probe checks what was loaded.
        logging.getLogger("vllm.model_executor.model_loader.reload").setLevel(logging.ERROR)
        self.reload_weights(weights_path=directory)
        if current_platform.is_cpu():
            _repack_tied_heads(self.model_runner.get_model())


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
