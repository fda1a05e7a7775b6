"""Makes a model of Qwen2.5-0.5B's shape with random weights.

    python -m scripts.bench.gpu.model --out DIR

Nothing is downloaded: weights are random, and the tokenizer is the quickstart's, padded to the
shape's vocabulary with unused words. Enough tokens end a response to make lengths geometric; with
`--tail SHORT LONG` they are a mixture of two kinds of responses (`scripts.bench.gpu.tail`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TOKENIZER = Path("models/chain-sums")
QWEN = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
"""config.json of Qwen/Qwen2.5-0.5B (Qwen2ForCausalLM)."""
TINY = QWEN | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
}
"""For trying the script without a GPU."""


def stop_tokens(vocabulary: int, mean_tokens: int) -> list[int]:
    """Returns ids that end a response: a uniform draw ends it after `mean_tokens` on average.

    >>> stop_tokens(512, 128)
    [508, 509, 510, 511]
    """
    return list(range(vocabulary - max(1, vocabulary // mean_tokens), vocabulary))


def padded_tokenizer(source: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Returns a word-level tokenizer.json with a word for each id below `vocabulary`."""
    words: dict[str, int] = source["model"]["vocab"]
    more = {f"<{number}>": number for number in range(len(words), vocabulary)}
    return {**source, "model": {**source["model"], "vocab": {**words, **more}}}


def make_model(
    out: Path,
    shape: dict[str, Any],
    mean_tokens: int,
    dtype: str,
    tail: tuple[int, int] | None = None,
) -> None:
    """Writes model and tokenizer to a new directory.

    Args:
        out: the directory.
        shape: of the model, as in config.json.
        mean_tokens: mean length of a response; of the number of stop tokens alone, with a tail.
        dtype: type of the weights.
        tail: mean lengths of two kinds of responses.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

    from scripts.bench.gpu.tail import Means, add_tail

    stops = stop_tokens(shape["vocab_size"], mean_tokens)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(
            Qwen2Config(**shape, eos_token_id=stops, pad_token_id=0), dtype=getattr(torch, dtype)
        )
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text())
    if tail is not None:
        prompts = len(tokenizer["model"]["vocab"])
        add_tail(model, prompts, stops, Means(short=tail[0], long=tail[1]))
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=0)
    model.save_pretrained(out)
    (out / "tokenizer.json").write_text(
        json.dumps(padded_tokenizer(tokenizer, shape["vocab_size"]))
    )
    settings = (TOKENIZER / "tokenizer_config.json").read_text()
    (out / "tokenizer_config.json").write_text(settings)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench.gpu.model")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--tiny", action="store_true", help="a shape for a CPU")
    parser.add_argument("--mean-tokens", type=int, default=128, help="mean length of a response")
    parser.add_argument(
        "--tail", type=int, nargs=2, metavar=("SHORT", "LONG"), help="mean lengths of two kinds"
    )
    parser.add_argument("--dtype", default="bfloat16", help="type of the weights")
    given = parser.parse_args()
    shape = TINY if given.tiny else QWEN
    tail = (given.tail[0], given.tail[1]) if given.tail else None
    make_model(given.out, shape, given.mean_tokens, given.dtype, tail)


if __name__ == "__main__":
    main()
