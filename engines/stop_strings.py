"""Ends a turn at a stop string, for every engine: finds it in the sampled tokens.

Turns deltas into deltas that end with the token which completes a stop string. That token
and all before it stay as they were sampled; tokens that the engine sampled after it are
thrown away and counted nowhere. Knows no socket and no leg.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from engines.base import Delta, Engine, EngineError, Sampling
from pipeline.system.untrusted_files import read_bytes

_SLACK = 4
"""Tokens decoded beyond a stop string's bytes, so that decoding does not start mid-character."""

_BROKEN = "\ufffd"  # stands for bytes that are not a character yet


class StopStrings:
    """The strings that end a turn. Raises EngineError if the model's tokenizer cannot be read.

    Args:
        model: directory with a tokenizer.json.
        texts: any of them; none is empty.
    """

    def __init__(self, model: str, texts: Sequence[str]) -> None:
        path = Path(model) / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_buffer(read_bytes(path))
        except Exception as error:  # the library raises bare Exception
            raise EngineError(f"{path}: not a tokenizer: {error}") from error
        self._texts = tuple(texts)
        self._window = max(len(text.encode()) for text in texts) + _SLACK
        ids = sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.tokens = frozenset(token for token in ids if self._holds([token]))
        """Tokens whose own text holds a stop string: an engine can stop at these by itself."""

    def kept_tokens(self, before: Sequence[int], new: Sequence[int]) -> int:
        """Count the new tokens up to the one that completes a stop string; 0: there is none.

        Args:
            before: earlier tokens, at least the last few. A stop string that ends in them is
                not found again.
        """
        known = [*before, *new]
        for count in range(1, len(new) + 1):
            end = len(before) + count
            if new[count - 1] in self.tokens or self._completed(known[:end][-self._window :]):
                return count
        return 0

    async def generate_until_stop(
        self, engine: Engine, sampling: Sampling
    ) -> AsyncGenerator[Delta, None]:
        """Stream the engine's deltas up to a stop string, which is a finish like a stop token."""
        asked = msgspec.structs.replace(sampling, stop_tokens=tuple(sorted(self.tokens)))
        before = list(sampling.tokens)[-self._window :]
        deltas = engine.generate(asked)
        async for delta in deltas:
            kept = self.kept_tokens(before, delta.tokens)
            if not kept:
                yield delta
                before = [*before, *delta.tokens][-self._window :]
                continue
            if not delta.finish:  # before the yield: the caller stops reading at a finish
                await engine.abort([sampling.id])
            yield msgspec.structs.replace(
                delta,
                tokens=delta.tokens[:kept],
                logprobs=delta.logprobs[:kept],
                finish="stop",
                remaining=None,
            )
            return

    def _holds(self, tokens: Sequence[int]) -> bool:
        return any(stop in self._text(tokens) for stop in self._texts)

    def _completed(self, tokens: Sequence[int]) -> bool:
        """Return True if the last token completes a stop string."""
        earlier, text = self._text(tokens[:-1]), self._text(tokens)
        known = len(earlier.rstrip(_BROKEN))  # half a character may become a whole one
        return any(stop in text[max(0, known - len(stop) + 1) :] for stop in self._texts)

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)
