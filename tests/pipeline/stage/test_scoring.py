"""What is to be scored together is scored in one call, with prompts as the model read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import Plugin, WorkersConfig
from pipeline.coordinator.events import Halt, RequestReward, RewardMissing, RewardReady
from pipeline.data.dataset import Dataset, Item
from pipeline.data.tokenizer import Tokenizer
from pipeline.stage.environment_calls import prompt_text
from pipeline.stage.scoring import RewardRequests
from pipeline.workers.pool import RewardPool
from tests.paths import MODEL

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


def item_of(tokenizer: Tokenizer) -> Item:
    def tokens(text: str) -> bytes:
        return np.array(tokenizer.encode(text), "<i4").tobytes()

    return Item(
        prompt="7+9=",
        tokens=tokens("7+9="),
        answer="16",
        columns={},
        variants={"hint": tokens("10+6")},
    )


def request(tokenizer: Tokenizer, trajectory: int, text: str, together: Any = ()) -> RequestReward:
    return RequestReward(
        kind="train",
        prompt=0,
        group=1,
        trajectory=trajectory,
        tokens=np.array(tokenizer.encode(text), "<i4").tobytes(),
        finish="stop",
        together=together,
    )


async def test_members_that_belong_together_are_answered_one_by_one_after_one_call(
    tokenizer: Tokenizer,
) -> None:
    heard: list[RewardReady | RewardMissing | Halt] = []
    plugin = Plugin(name="tests.pipeline.workers.reward_functions:Ranks", options={})
    async with RewardPool(plugin, WorkersConfig()) as pool:
        data = {"train": Dataset("rows", [item_of(tokenizer)])}
        requests = RewardRequests(pool, tokenizer, data, heard.append, lambda *_: None)
        await requests.request(request(tokenizer, 4, "111", together=(4, 5)))
        assert heard == [], "the other one has still to come"
        await requests.request(request(tokenizer, 5, "1", together=(4, 5)))
        assert [(h.trajectory, h.value) for h in heard if isinstance(h, RewardReady)] == [
            (4, 1.0),
            (5, 0.0),
        ]
        assert pool.statistics().called == 1
        await requests.request(request(tokenizer, 6, "1111"))
        assert isinstance(heard[-1], RewardReady)
        assert (heard[-1].trajectory, heard[-1].value) == (6, 4.0)


def test_the_prompt_that_a_reward_sees_has_what_the_variant_put_behind_it(
    tokenizer: Tokenizer,
) -> None:
    item = item_of(tokenizer)
    found = [prompt_text(item, variant, tokenizer) for variant in ("", "hint", "hint:0.5")]
    assert found == ["7+9=", "7+9=10+6", "7+9=10"]
