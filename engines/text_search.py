"""Finds texts in sampled tokens, as they come: stop strings, and markers of an answer.

Turns the newest tokens and the few before them into the number of tokens up to the one that
completes a text. Knows no engine and no leg.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from engines.base import EngineError
from pipeline.system.untrusted_files import read_bytes

_SLACK = 4
"""Tokens decoded beyond a text's bytes, so that decoding does not start mid-character."""

_BROKEN = "\ufffd"  # stands for bytes that are not a character yet


class TextSearch:
    """Some texts. Raises EngineError if the model's tokenizer cannot be read.

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
        """Tokens whose own text holds one of the texts."""

    def last_tokens(self, *tokens: Sequence[int]) -> list[int]:
        """Return as many of these tokens, the last ones, as a search behind them needs."""
        return [token for some in tokens for token in some[-self._window :]][-self._window :]

    def completed_after(self, before: Sequence[int], new: Sequence[int]) -> int:
        """Count the new tokens up to the one that completes a text; 0: there is none.

        Args:
            before: `last_tokens` of the earlier ones. A text that ends in them is not found again.
        """
        known = [*before, *new]
        if self.tokens.isdisjoint(new) and not self._holds(known):
            return 0  # nearly always: one look for all of them
        for count in range(1, len(new) + 1):
            end = len(before) + count
            if new[count - 1] in self.tokens or self._completed(known[:end][-self._window :]):
                return count
        return 0

    def _holds(self, tokens: Sequence[int]) -> bool:
        decoded = self._decoded(tokens)
        return any(text in decoded for text in self._texts)

    def _completed(self, tokens: Sequence[int]) -> bool:
        """Return True if the last token completes a text."""
        earlier, text = self._decoded(tokens[:-1]), self._decoded(tokens)
        known = len(earlier.rstrip(_BROKEN))  # half a character may become a whole one
        return any(wanted in text[max(0, known - len(wanted) + 1) :] for wanted in self._texts)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)


class FirstMarker:
    """Looks for the first marker in the tokens of one leg.

    Args:
        before: tokens of prompt and response that the leg begins with.
        held: those of the response among them.
    """

    def __init__(self, search: TextSearch, before: Sequence[int], held: int) -> None:
        self._search, self._held = search, held
        self._before = search.last_tokens(before)
        self._found = False

    def look(self, tokens: Sequence[int]) -> int | None:
        """Return how many response tokens there are up to the one that completes it, once."""
        if self._found:
            return None
        if count := self._search.completed_after(self._before, tokens):
            self._found = True
            return self._held + count
        self._held += len(tokens)
        self._before = self._search.last_tokens(self._before, tokens)
        return None
