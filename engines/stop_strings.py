"""Texts that end a turn: found in the tokens of a request, whatever engine samples them.

Turns deltas into deltas that end with the token which completes a stop text. That token
and all before it stay as they were sampled; what the engine had sampled beyond it is
thrown away and counts nowhere. Knows no socket and no leg.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from engines.base import Delta, Engine, EngineError, Sampling

_SLACK = 4
"""Tokens decoded beyond a stop text's bytes, so that it does not begin in mid-character."""

_BROKEN = "\ufffd"  # stands for bytes that are no character yet


class StopStrings:
    """What ends a turn. Raises EngineError if the model's tokenizer cannot be read.

    Args:
        model: directory with a tokenizer.json.
        texts: any of them; none is empty.
    """

    def __init__(self, model: str, texts: Sequence[str]) -> None:
        path = Path(model) / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise EngineError(f"{path}: not a tokenizer: {error}") from error
        self._texts = tuple(texts)
        self._window = max(len(text.encode()) for text in texts) + _SLACK
        ids = sorted(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.tokens = frozenset(token for token in ids if self._holds([token]))
        """Tokens whose own text holds a stop text: an engine can stop at these by itself."""

    def kept_tokens(self, before: Sequence[int], new: Sequence[int]) -> int:
        """How many of the new tokens there are up to the one that completes a stop text; 0: none.

        Args:
            before: tokens that came earlier, at least the last few. What ends in them is not
                found again.
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
        """The engine's deltas up to a stop text, which is a finish as a stop token is."""
        asked = msgspec.structs.replace(sampling, stop_tokens=tuple(sorted(self.tokens)))
        before = list(sampling.tokens)[-self._window :]
        deltas = engine.generate(asked)
        async for delta in deltas:
            kept = self.kept_tokens(before, delta.tokens)
            if not kept:
                yield delta
                before = [*before, *delta.tokens][-self._window :]
                continue
            if not delta.finish:  # now: who hears of a finish asks for nothing after it
                await engine.abort([sampling.id])
            yield Delta(delta.tokens[:kept], delta.logprobs[:kept], "stop", delta.version)
            return

    def _holds(self, tokens: Sequence[int]) -> bool:
        return any(stop in self._text(tokens) for stop in self._texts)

    def _completed(self, tokens: Sequence[int]) -> bool:
        """Whether the last of these ends a stop text that was not there without it."""
        earlier, text = self._text(tokens[:-1]), self._text(tokens)
        known = len(earlier.rstrip(_BROKEN))  # half a character may become a whole one
        return any(stop in text[max(0, known - len(stop) + 1) :] for stop in self._texts)

    def _text(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)
