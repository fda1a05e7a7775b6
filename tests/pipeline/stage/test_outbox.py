"""What engines are asked for: the sampling of training, of evaluations, and of greedy responses."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from pipeline.config.load import load, stop_texts
from pipeline.coordinator import events
from pipeline.data.dataset import Dataset, Item
from pipeline.stage.outbox import CommandBatch, Outbox, drawings_of
from pipeline.wire.fields import Drawing
from pipeline.wire.messages import Generate
from tests.paths import ROOT

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
OWN = ["eval.temperature=0.6", "eval.top_p=0.95", "eval.top_k=20", "eval.min_p=0.05"]


class Sent:
    """An outbox that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def to(self, name: str, message: Any) -> None:
        self.messages.append(message)


def asked(settings: list[str], kind: str, *, greedy: bool = False) -> Drawing:
    """The drawing of a request that goes out for a group of this kind."""
    item = Item(prompt="7+9=", tokens=bytes(4), answer="16", columns={}, tag="", where="a:1")
    command = events.Generate(
        engine="e0", trajectory=1, leg=0, kind=kind, prompt=0, prefix=b"", max_tokens=5,
        seed=1, greedy=greedy,
    )  # fmt: skip
    data = {"train": Dataset("a", [item]), "eval": Dataset("b", [item])}
    batch, sent = CommandBatch(data, drawings_of(load(QUICKSTART, settings))), Sent()
    assert batch.add(command)
    batch.send_requests(cast(Outbox, sent))
    [message] = sent.messages
    assert isinstance(message, Generate)
    [request] = message.requests
    return request.drawing


@pytest.mark.parametrize("settings", [[], OWN])
def test_training_draws_from_all_tokens_whatever_evaluations_do(settings: list[str]):
    drawing = asked(["sampling.temperature=0.8", *settings], "train")
    assert drawing == Drawing(temperature=0.8)
    assert drawing.whole


def test_an_evaluation_has_a_sampling_of_its_own_or_that_of_training():
    own = Drawing(temperature=0.6, top_p=0.95, top_k=20, min_p=0.05)
    assert asked(OWN, "eval") == own
    assert asked(["sampling.temperature=0.8"], "eval") == Drawing(temperature=0.8)


def test_a_greedy_response_takes_the_likeliest_token():
    assert asked(OWN, "eval", greedy=True) == Drawing(temperature=0.0)


def test_stop_texts_are_those_of_the_settings_or_of_the_environment():
    assert stop_texts(load(QUICKSTART, ["sampling.stop=['</a>', 'Q:']"])) == ("</a>", "Q:")
    assert stop_texts(load(QUICKSTART, ["environment=calculator"])) == ("=",)
    assert stop_texts(load(QUICKSTART)) == ()


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 1.0}])
def test_an_impossible_drawing_is_no_message(wrong: dict[str, float]):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Drawing)
