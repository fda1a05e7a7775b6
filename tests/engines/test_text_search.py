"""The first marker of a response is found where it ends, whatever comes at once."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engines.text_search import FirstMarker, TextSearch

WORDS = ["a", "<", "/t", ">", "#"]
A, OPEN, T, CLOSE, HASH = range(len(WORDS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    directory = tmp_path_factory.mktemp("words")
    tokenizer.save(str(directory / "tokenizer.json"))
    return str(directory)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_first_marker_is_told_of_once(model: str, size: int) -> None:
    search = FirstMarker(TextSearch(model, ["#", "never"]), [A, HASH, A], held=1)
    response = [A, A, HASH, A, HASH, A]
    told = [search.look(response[i : i + size]) for i in range(0, len(response), size)]
    assert [count for count in told if count is not None] == [1 + 3]
    assert told[2 // size] == 4, "with the tokens that it ends in"


def test_a_marker_that_began_before_the_leg_ends_in_it(model: str) -> None:
    """A response that continues with tokens held: they are looked at again, and not counted."""
    tokenizer = TextSearch(model, ["< /t >"])  # words are joined by spaces
    search = FirstMarker(tokenizer, [A, OPEN, T], held=2)
    assert (search.look([CLOSE, A]), search.look([OPEN, T, CLOSE])) == (3, None)
    ended = FirstMarker(tokenizer, [OPEN, T, CLOSE], held=3)
    assert ended.look([A, A]) is None, "the coordinator knows of this one"
