"""Columns that stand behind prompts: tokenized at load, checked line by line, shares of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pipeline.config.schema import DataConfig
from pipeline.coordinator import events
from pipeline.data.dataset import DataError, Dataset, load_held_out, load_train
from pipeline.data.tokenizer import Tokenizer
from pipeline.plugins.variants import column_and_share
from pipeline.stage.translate import with_prompts
from pipeline.wire.messages import StreamedChunk, TrainGroup, TrainMember
from tests.paths import MODEL

ROWS: list[dict[str, Any]] = [
    {"prompt": "7+9=", "answer": "16", "hint": "7+9=10+6;", "way": {"short": 16}},
    {"prompt": "1+2=", "answer": "3", "hint": "", "way": {"short": 3}},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def load(tmp_path: Path, tokenizer: Tokenizer, rows: list[Any], **data: Any) -> Dataset:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    given: dict[str, Any] = {"variants": ("hint",), **data}
    section = DataConfig(train=str(path), held_out=str(path), **given)
    return load_train(section, tokenizer, 128)


def text(tokenizer: Tokenizer, tokens: bytes) -> str:
    return tokenizer.decode(np.frombuffer(tokens, "<i4").tolist())


def test_a_prompt_is_followed_by_the_column_or_its_first_tokens(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    data = load(tmp_path, tokenizer, ROWS, variants=("hint", "way.short"))
    shown = {
        variant: text(tokenizer, data.prompt_tokens(0, variant))
        for variant in ("", "hint", "hint:0.5", "hint:0", "way.short")
    }
    assert shown == {
        "": "7+9=",
        "hint": "7+9=7+9=10+6;",
        "hint:0.5": "7+9=7+9=",
        "hint:0": "7+9=",
        "way.short": "7+9=16",
    }
    assert data.prompt_tokens(1, "hint") == data.prompt_tokens(1)
    assert data.variant_lengths() == {"hint": [9, 0], "way.short": [2, 1]}


def test_a_share_has_no_error_of_binary_fractions() -> None:
    column, share = column_and_share("hint:0.29", ["hint"])
    assert (column, int(share * 100)) == ("hint", 29)


@pytest.mark.parametrize(
    "change, why",
    [
        ({"hint": None}, "hint is null, expected text"),
        ({"hint": ["7"]}, "hint is a list, expected text"),
        ({"hint": "what"}, "prompt may be followed by hint, which cannot be written"),
    ],
)
def test_a_line_without_the_column_is_named_before_anything_starts(
    tmp_path: Path, tokenizer: Tokenizer, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:2: {why}"):
        load(tmp_path, tokenizer, [ROWS[0], ROWS[1] | change])


def test_an_unknown_column_lists_those_that_there_are(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"no field 'clue' \(data.variants\); fields: prompt"):
        load(tmp_path, tokenizer, ROWS, variants=("clue",))


def test_held_out_lines_need_no_such_column(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "bare.jsonl"
    path.write_bytes(msgspec.json.encode({"prompt": "1+2=", "answer": "3"}))
    section = DataConfig(held_out=str(path), variants=("hint",))
    assert load_held_out(section, tokenizer, 128)[0].variants == {}


def test_the_longest_variant_counts_where_the_length_of_prompts_is_limited(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    why = "of 4 tokens, with up to 9 of data.variants behind them, but data.max_prompt_tokens is 12"
    with pytest.raises(DataError, match=why):
        load(tmp_path, tokenizer, ROWS, max_prompt_tokens=12)
    dropped = load(tmp_path, tokenizer, ROWS, max_prompt_tokens=12, long_prompts="drop")
    assert [item.prompt for item in dropped.items] == ["1+2="]
    cut = load(tmp_path, tokenizer, ROWS, max_prompt_tokens=12, long_prompts="cut")
    assert [item.prompt for item in cut.items] == ["+9=", "1+2="]
    assert cut[0].most_tokens == 12


def test_the_models_positions_hold_prompt_variant_and_response(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    room = 512 - 128 - 4
    fits = load(tmp_path, tokenizer, [ROWS[0] | {"hint": "7" * room}])
    assert fits[0].most_tokens == 512 - 128
    with pytest.raises(DataError, match="are 513, the model takes 512"):
        load(tmp_path, tokenizer, [ROWS[0] | {"hint": "7" * (room + 1)}])


def test_orders_of_the_learner_get_the_prompts_of_their_members(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    data = load(tmp_path, tokenizer, ROWS)

    def member(trajectory: int) -> TrainMember:
        return TrainMember(
            trajectory=trajectory, response=bytes(8), behaviour=bytes(8), reward=0.0, advantage=1.0
        )

    members = (member(4), member(5))
    command = events.TrainGroup(
        rank=0, step=0, group=1, prompt=0, members=members, variants={5: "hint"}
    )
    found = with_prompts(command, {"train": data})
    assert isinstance(found, TrainGroup)
    assert [text(tokenizer, found.prompt_of(m)) for m in found.members] == ["7+9=", "7+9=7+9=10+6;"]
    chunks = (StreamedChunk(1, 4, 0, bytes(8)), StreamedChunk(1, 5, 0, bytes(8)))
    order = events.CloseVersion(
        rank=0, version=2, prompts={1: 0}, chunks=chunks, variants={5: "hint:0.5"}
    )
    closing = with_prompts(order, {"train": data})
    assert not isinstance(closing, TrainGroup)
    assert [text(tokenizer, closing.prompt_of(c)) for c in chunks] == ["7+9=", "7+9=7+9="]
